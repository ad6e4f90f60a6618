"""The step schedule's kernels of a projected h and of layer normalisation, run by the emulator."""

import pytest
import torch

from tests.device_recurrence import OnDevice, run_steps
from tests.emulator import DTYPES, EmulatorError
from tests.layers import assert_as_close_as_torch
from tests.recurrence_problems import EXTRAS, problem
from tests.test_cuda_step import FLOORS

KINDS = ("projected", "normed lstm", "normed gru")


def problem_of(kind, sizes, hidden, **options):
    if kind == "projected":
        return problem("lstm", sizes, hidden, projected=(hidden + 1) // 2, **options)
    return problem(kind.split()[1], sizes, hidden, norm=True, **options)


def check(device, p, dtype, **options):
    exact, torchs = p.reference(torch.float64), p.reference(dtype)
    found = run_steps(OnDevice(device, p, dtype, **options))
    sums = {"grad_bias_ih", "grad_bias_hh"} if p.projected else set()  # torch's
    assert set(found) == set(exact) - sums
    for name, ours in found.items():
        assert_as_close_as_torch(name, ours, torchs[name], exact[name], FLOORS[dtype])


# One, two and more than eight warps to a row; rows of whole packets, and not, or of P alone.
@pytest.mark.parametrize(
    ("sizes", "hidden"),
    [([2], 8), ([5, 4, 4, 2, 1], 33), ([3, 3, 0], 48), ([4] * 3, 64), ([2, 1], 300), ([3], 15)],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_grid(device, kind, dtype, sizes, hidden):
    check(device, problem_of(kind, sizes, hidden, reverse=hidden == 33, seed=hidden), dtype)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extras", EXTRAS, ids=str)
def test_extras(device, kind, reverse, extras):
    if kind == "normed gru" and "zoneout" in extras:
        extras = extras | {"zoneout": extras["zoneout"][:1]}
    for dtype, hidden in ((torch.float64, 33), (torch.float32, 32), (torch.bfloat16, 32)):
        check(device, problem_of(kind, [4, 4, 3, 1], hidden, reverse=reverse, **extras), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_what_may_be_absent(device, kind):
    for grads in (["output"], ["state_n"], ["cells"]):
        if grads == ["cells"] and kind == "normed gru":
            continue
        check(device, problem_of(kind, [3, 2], 24, grads=grads, bias=False), torch.float32)
    check(device, problem_of(kind, [3, 2], 32), torch.float16, misalign=1)
    p = problem_of(kind, [3, 2], 32)
    output = run_steps(OnDevice(device, p, torch.float64, save=False), backward=False)["output"]
    torch.testing.assert_close(output, p.reference(torch.float64)["output"])


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_of_threads_gives_the_same_bits(device, kind):
    zoneout = (0.3, 0.2) if kind != "normed gru" else (0.3,)
    p, found = problem_of(kind, [3, 2], 72, resets=0.3, zoneout=zoneout), []
    for seed in range(20):
        device.clear()
        device.seed(seed)
        results = run_steps(OnDevice(device, p, torch.float32))
        found.append({name: t.clone() for name, t in results.items()})
    assert all(torch.equal(t, found[0][n]) for other in found for n, t in other.items())


def test_long_sums_of_gains(device):
    """More rows than the warps of a block sum before they join."""
    check(device, problem_of("normed gru", [40] * 8, 8), torch.float32)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_barrier_is_missed(device, kind):
    """With any one of them taken out, the emulator finds unordered accesses."""

    def run():
        check(device, problem_of(kind, [2, 2], 64), torch.float64)

    run()
    sites = device.sites()
    assert {site.split(" ", 1)[1] for site in sites} == {"__syncthreads"}
    for site in sites:
        device.clear()
        device.remove(site)
        with pytest.raises(EmulatorError, match="race|never written|a block that ends"):
            run()
