"""What has to hold of attention on a machine with a GPU; part of `tests/gpu_checks.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fastrnn import _attention
from tests.attentions import Case, random_case
from tests.layers import assert_as_close_as_torch

# B, heads, Lq, Lk, E, D
ATTENTIONS = {
    "small": (1, 2, 40, 70, 32, 32),
    "words": (4, 4, 35, 35, 32, 32),
    "long": (2, 3, 300, 517, 64, 64),
    "wide": (1, 2, 130, 260, 128, 80),
    "widest": (1, 2, 70, 90, 250, 256),
    "odd": (2, 2, 65, 33, 7, 11),
}
MASKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "boolean": {"mask": "full", "dropout_p": 0.3},
    "padding": {"mask": "keys", "is_causal": True},
    "added": {"mask": "bias", "additive": True, "is_causal": True, "dropout_p": 0.1},
    "added-to-keys": {"mask": "keys", "additive": True},
}


def attention_there(case: Case, dtype: torch.dtype) -> Case:
    """A copy on the GPU whose tensors want gradients."""
    there = case.to(dtype)
    tensors = [t.detach().cuda().requires_grad_() for t in there.differentiable]
    if there.mask is not None and len(tensors) == 3:
        there.mask = there.mask.cuda()
    there.seed = None if there.seed is None else there.seed.cuda()
    return there.with_tensors(*tensors)


def attended(function: Callable[..., tuple[torch.Tensor, ...]], case: Case) -> list[torch.Tensor]:
    """Output, logsumexp, and gradients of a weighted sum of the output."""
    leaves = [t if t.requires_grad else t.detach().requires_grad_() for t in case.differentiable]
    output, logsumexp = function(*case.with_tensors(*leaves).arguments)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    grads = torch.autograd.grad(output, leaves, grad)
    return [output.detach(), logsumexp.detach().nan_to_num(posinf=9.0), *grads]


def attention_agrees(dtype: torch.dtype, floor: float, shape: str, mask: str) -> None:
    """One attention, forward and backward, against float64; the same bits twice."""
    case = random_case(ATTENTIONS[shape], **MASKS[mask])
    there = attention_there(case, dtype)
    ours = attended(_attention.MaskedAttention.apply, there)
    again = attended(_attention.MaskedAttention.apply, there)
    exact, torchs = attended(_attention.reference, case), attended(_attention.reference, there)
    largest = max(t.abs().max().item() for t in exact)
    for i, right in enumerate(exact):
        name = f"{mask} {i}"
        assert torch.equal(ours[i], again[i]), f"{name}: other bits the second time"
        found = ours[i].cpu(), torchs[i].cpu()
        assert_as_close_as_torch(name, *found, right, floor, largest)


def attention_graph_replays() -> None:
    """A captured training pass follows its input, to the bit."""
    there = attention_there(random_case((2, 2, 100, 100, 64, 64), "full"), torch.bfloat16)
    query, grad = there.tensors[0], torch.randn_like(there.tensors[0])

    def step() -> tuple[torch.Tensor, ...]:
        output = _attention.MaskedAttention.apply(*there.arguments)[0]
        return (output, *torch.autograd.grad(output, there.tensors, grad))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        query.copy_(torch.randn_like(query))
    graph.replay()
    for found, expected in zip(captured, step(), strict=True):
        assert torch.equal(found, expected)


def attention_checks(floors: dict[torch.dtype, float]) -> dict[str, Callable[[], None]]:
    """All of them, by name; `floors`: of the errors, relative to the largest value."""
    found: dict[str, Callable[[], None]] = {"attention-graph": attention_graph_replays}
    for dtype, floor in floors.items():
        for shape in ATTENTIONS:
            for mask in MASKS:
                name = f"attention-{mask}-{str(dtype)[6:]}-{shape}"
                found[name] = partial(attention_agrees, dtype, floor, shape, mask)
    return found
