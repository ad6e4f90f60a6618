"""stream(): one step at a time gives what the whole sequence gives."""

import copy
import pickle
import warnings

import pytest
import torch
from torch._subclasses import FakeTensorMode

import fastrnn
from fastrnn import _library

IN, H, T, B = 5, 7, 6, 4
KINDS = [
    (fastrnn.LSTM, {}),
    (fastrnn.LSTM, {"num_layers": 3, "dropout": 0.5, "zoneout": (0.3, 0.1)}),
    (fastrnn.GRU, {"num_layers": 2, "batch_first": True}),
    (fastrnn.GRU, {"reset_after": False, "bias": False}),
    (fastrnn.RNN, {"num_layers": 2}),
    (fastrnn.LSTM, {"proj_size": 3, "num_layers": 2}),
    (fastrnn.GRU, {"layer_norm": True, "num_layers": 2}),
    (fastrnn.LSTM, {"layer_norm": True, "zoneout": 0.2, "bias": False}),
]


def made(kind, options):
    torch.manual_seed(0)
    return kind(IN, H, dtype=torch.float64, **options)


def unpacked(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_steps_equal_the_sequence(kind, options, backend):
    with fastrnn.use_backend(backend):
        module = made(kind, options)
        stream = module.stream(B)  # the module may be training
        module.eval()
        x = torch.randn(T, B, IN, dtype=torch.float64)
        resets = torch.zeros(T, B, dtype=torch.bool)
        resets[3, 1] = resets[4, :] = True
        steps = []
        for t in range(T):
            if t == 4:
                stream.reset()
            elif resets[t].any():
                stream.reset(resets[t])
            steps.append(stream.step(x[t]))
        assert not steps[0].requires_grad
        first = module.batch_first
        with torch.no_grad():
            output, state = module(
                x.transpose(0, 1) if first else x, resets=resets.T if first else resets
            )
        output = output.transpose(0, 1) if first else output
        torch.testing.assert_close(torch.stack(steps), output, rtol=0, atol=1e-12)
        for part, expected in zip(unpacked(stream.state), unpacked(state), strict=True):
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "options"), KINDS[:5])
def test_steps_in_bfloat16(kind, options):
    module = made(kind, options).bfloat16().eval()
    x = torch.randn(T, B, IN).bfloat16()
    stream = module.stream(B)
    steps = torch.stack([stream.step(row) for row in x])
    with torch.no_grad():
        output, _ = module.double()(
            x.double().transpose(0, 1) if module.batch_first else x.double()
        )
    assert steps.dtype == torch.bfloat16
    output = output.transpose(0, 1) if module.batch_first else output
    torch.testing.assert_close(steps.double(), output, rtol=0, atol=0.02)


@pytest.mark.parametrize(("kind", "options"), [*KINDS[:3], KINDS[5]])
def test_states_can_be_taken_and_put_back(kind, options):
    module = made(kind, options)
    stream, x = module.stream(B), torch.randn(T, B, IN, dtype=torch.float64)
    for t in range(3):
        stream.step(x[t])
    state = stream.state
    first = [stream.step(x[t]) for t in range(3, T)]
    stream.state = state
    assert all(torch.equal(stream.step(x[t]), first[t - 3]) for t in range(3, T))
    other = module.stream(B)
    other.state = state
    assert torch.equal(other.step(x[3]), first[0])


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize(("kind", "options"), [KINDS[1], KINDS[5]])
def test_a_copy_goes_its_own_way(kind, options, copied, backend):
    with fastrnn.use_backend(backend):
        stream, x = made(kind, options).stream(B), torch.randn(T, B, IN, dtype=torch.float64)
        stream.step(x[0])
        other = copied(stream)
        first = [stream.step(row) for row in x]
        assert all(torch.equal(other.step(row), step) for row, step in zip(x, first, strict=True))
        other.reset()
        assert all(part.count_nonzero() == 0 for part in unpacked(other.state))
        assert all(part.count_nonzero() for part in unpacked(stream.state))


@pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")
def test_a_copy_on_another_processor_is_refused(monkeypatch):
    kept = pickle.dumps(made(*KINDS[0]).stream(B))
    packed_for = _library.instruction_set
    monkeypatch.setattr(_library, "instruction_set", "another")
    with pytest.raises(RuntimeError, match=f"packed for {packed_for}, got .* takes another"):
        pickle.loads(kept)


@pytest.mark.parametrize(
    "laid_out",
    [
        lambda x: x.T.contiguous().T,
        lambda x: x[:, :1].clone().expand_as(x),
        lambda x: torch._neg_view(-x),
        lambda x: torch.complex(x, -x).conj().imag,
        lambda x: x.clone().requires_grad_(),
    ],
)
def test_any_layout_of_the_input(laid_out):
    module, x = made(fastrnn.GRU, {}), torch.randn(B, IN, dtype=torch.float64)
    given = laid_out(x)
    output = module.stream(B).step(given)
    plain = torch.tensor(given.tolist(), dtype=torch.float64)
    assert torch.equal(output, module.stream(B).step(plain))
    assert not output.requires_grad


def test_weights_are_those_of_the_beginning():
    module = made(fastrnn.GRU, {})
    stream, x = module.stream(1), torch.randn(1, IN, dtype=torch.float64)
    expected = module.stream(1).step(x)
    with torch.no_grad():
        module.weight_hh_l0.zero_()
        module.bias_hh_l0.add_(1)
    assert torch.equal(stream.step(x), expected)


def test_mistakes():
    module = made(fastrnn.LSTM, {})
    stream = module.stream(B)
    for bad in (torch.zeros(B, IN + 1).double(), torch.zeros(B, IN), torch.zeros(IN).double()):
        with pytest.raises(
            ValueError, match=r"step: x_t must be torch.float64 \[B, I\] = \[4, 5\]"
        ):
            stream.step(bad)
    with pytest.raises(ValueError, match="batch_size must be greater than zero, got 0"):
        module.stream(0)
    with pytest.raises(ValueError, match="stream: module must run in one direction"):
        made(fastrnn.LSTM, {"bidirectional": True}).stream(1)
    with pytest.raises(ValueError, match=r"stream: state must have shapes \[\[1, 4, 7\], "):
        stream.state = torch.zeros(1, B, H)
    with pytest.raises(ValueError, match=r"reset: sequences must be torch.bool \[B\] = \[4\]"):
        stream.reset(torch.zeros(B))
    for wrong in (lambda: stream.step(None), lambda: stream.reset([True])):
        with pytest.raises(TypeError, match="must be a Tensor, got"):
            wrong()
    with pytest.raises(TypeError, match="stream: state must be a Tensor, got NoneType"):
        stream.state = None


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("copied", [lambda s: s, copy.deepcopy])
def test_what_began_in_inference_mode_goes_on_outside(copied, backend):
    module, x = made(fastrnn.LSTM, {"num_layers": 2}), torch.randn(B, IN, dtype=torch.float64)
    with fastrnn.use_backend(backend):
        first = module.stream(B).step(x)
        with torch.inference_mode():
            stream = copied(module.stream(B))
            before = stream.state
            assert torch.equal(stream.step(x), first)
        second = stream.step(x)
        stream.reset()
        assert torch.equal(stream.step(x), first)
        assert torch.equal(stream.step(x), second)
        stream.reset(torch.arange(B) < 2)
        assert torch.equal(stream.step(x)[:2], first[:2])
        stream.state = before
        assert torch.equal(stream.step(x), first)
        with torch.inference_mode():
            stream.reset()
            assert torch.equal(stream.step(x), first)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_tensors_without_memory_are_refused(backend):
    with fastrnn.use_backend(backend):
        stream, x = made(fastrnn.GRU, {}).stream(B), torch.randn(B, IN, dtype=torch.float64)
        for refused in (
            lambda: torch.func.vmap(stream.step)(torch.stack([x, x])),
            lambda: torch.func.grad(lambda x: stream.step(x).sum())(x),
            lambda: torch.func.jvp(stream.step, (x,), (x,)),
            lambda: stream.step(x.to_sparse()),
            lambda: stream.step(x.to_sparse_csr()),
        ):
            with (
                warnings.catch_warnings(),
                pytest.raises(ValueError, match="hold values, got a sp"),
            ):
                warnings.simplefilter("ignore")
                refused()
        stream.reset()
        with pytest.raises(ValueError, match="hold values, got a sp"):
            made(fastrnn.GRU, {}).float().stream(B).step(x.float().to_mkldnn())
        assert stream.state.count_nonzero() == 0


def test_what_holds_no_values_is_refused():
    """Traced, fake, or zeros without memory: nothing that could be read."""
    stream, x = made(fastrnn.LSTM, {}).stream(B), torch.zeros(B, IN, dtype=torch.float64)
    before = stream.state

    def fake():
        with FakeTensorMode(allow_non_fake_inputs=True):
            return stream.step(torch.zeros_like(x))

    for refused in (
        fake,
        lambda: stream.step(torch._efficientzerotensor((B, IN), dtype=torch.float64)),
        lambda: torch.jit.trace(lambda x_t: stream.step(x_t), x),
    ):
        with warnings.catch_warnings(), pytest.raises(ValueError, match="x_t must hold values"):
            warnings.simplefilter("ignore")
            refused()
    assert all(torch.equal(a, b) for a, b in zip(stream.state, before, strict=True))
