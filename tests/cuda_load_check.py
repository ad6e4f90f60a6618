"""Run by `make cuda-load-check`: the built library under a CUDA build of torch, with no GPU."""

from __future__ import annotations

import warnings

import torch

with warnings.catch_warnings():
    warnings.simplefilter("error")  # a library that does not load is a warning
    import fastrnn
from fastrnn import _cuda


class OnCuda(torch.Tensor):
    """A CUDA tensor without memory; where Python is left out the dispatcher takes it for real."""

    __torch_dispatch__ = None


def on_cuda(*shape: int) -> torch.Tensor:
    """One of float32."""
    return torch.Tensor._make_wrapper_subclass(OnCuda, shape, dtype=torch.float32, device="cuda:0")


def refused(run: object, *args: object) -> str:
    """What calling it says."""
    try:
        run(*args)  # type: ignore[operator]
    except RuntimeError as error:
        return str(error).splitlines()[0]
    raise AssertionError("a device that is not there ran a kernel")


assert torch.version.cuda is not None, f"torch {torch.__version__} is not a CUDA build"
assert not torch.cuda.is_available(), "there is a GPU here: run make gpu"
names = ("recurrence", "recurrence_backward", "recurrence_both", "recurrence_both_backward")
names += ("recurrence_stack", "recurrence_stack_backward")
operators = [getattr(torch.ops.fastrnn, name).default for name in names]
for operator in operators:
    name = operator.name()
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"), f"{name} has no CUDA part"

x, state = on_cuda(6, 5), on_cuda(2, 2, 4)
w_ih, w_hh, b = on_cuda(16, 5), on_cuda(16, 4), on_cuda(16)
rows = (torch.tensor([2, 2, 2]), None, None, None, [])
arguments = (x, state, w_ih, w_hh, b, b, None, None, *rows)
saved = (on_cuda(6, 4), on_cuda(1, 6, 4), on_cuda(6, 16))
mistaken = (*arguments[:3], on_cuda(15, 4), *arguments[4:])
way, (batch_sizes, *_) = (state, w_ih, w_hh, b, b), rows
of_stack = (x, list(way), batch_sizes, None)
of_both = (x, *way, *way, batch_sizes, None, None, None, None, None, [])
with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
    forward, backward, both, both_backward, stack, stack_backward = operators
    said = refused(forward, *mistaken, "lstm", False, True)
    assert said.startswith("recurrence: weight_hh must be [16, 4], got [15, 4]"), said
    found = {
        "recurrence": refused(forward, *arguments, "lstm", False, True),
        "recurrence_backward": refused(
            backward, saved[0], None, None, *arguments, *saved, "lstm", False, True, True
        ),
        "recurrence_both": refused(both, *of_both, "lstm", True),
        "recurrence_both_backward": refused(
            both_backward,
            *(saved[0], *[None] * 5, *of_both, *saved, *saved, "lstm", True, True),
        ),
        "recurrence_stack": refused(stack, *of_stack, "lstm", True, True),
        "recurrence_stack_backward": refused(
            stack_backward, saved[0], None, [], *of_stack, list(saved), "lstm", *[True] * 4
        ),
        "cuda_device": str(_cuda.facts(0)),
    }
for name, said in found.items():
    print(f"{name}: {said}")
    assert "CUDA driver" in said or "no CUDA-capable device" in said, f"{name}: {said}"

# The CPU's side is none the worse for it.
torch.manual_seed(0)
ours, peer, rows = fastrnn.LSTM(5, 4), torch.nn.LSTM(5, 4), torch.randn(3, 2, 5)
ours.load_state_dict(peer.state_dict())
torch.testing.assert_close(ours(rows)[0], peer(rows)[0])
archs = fastrnn._library.build_info().get("cuda_archs", "?")
print(f"loaded under torch {torch.__version__} with CUDA {torch.version.cuda}; code for {archs}")
