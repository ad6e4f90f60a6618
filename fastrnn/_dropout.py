"""Dropout whose masks are a function of one random number: nothing but that is kept for backward.

On a CPU torch draws a mask's numbers one after the other, which takes longer than a short layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from fastrnn import _library
from fastrnn._calls import applied, by_functions, second_order, unguarded
from fastrnn._library import LIBRARY
from fastrnn.regularisers import random_words

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_OP = torch.ops.fastrnn.dropout.default


def dropout(input: Tensor, p: float, training: bool = True) -> Tensor:
    """Zero each value with probability `p`, and scale the others by 1 / (1 - p).

    Args:
        input: any shape; other devices and dtypes than the CPU kernels' are torch's to do.
        p: probability, in [0, 1].
        training: default True; False returns `input`.

    Returns:
        A tensor of `input`'s shape. Its mask comes from one number of torch's generator.

    Raises:
        ValueError: `p` is outside [0, 1].

    Source: Srivastava et al. 2014; Salmon et al. 2011 (Philox).
    """
    ours = input.device.type == "cpu" and input.dtype in _DTYPES and _library.unavailable is None
    # Dynamo takes no Function that has tangents, so those are torch's to do, too.
    if not training or not ours or not 0 < p < 1 or forward_ad._current_level >= 0:
        return F.dropout(input, p, training)
    seed = torch.randint(2**63 - 1, (1,), device="cpu")
    args = (input, seed, p)
    found: Tensor = applied(Dropout, *args) if by_functions() else _below(*args)
    return found


class Dropout(torch.autograd.Function):
    """`fastrnn::dropout` with gradients: the operator again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, seed: Tensor, p: float) -> Tensor:
        return _below(input, seed, p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, seed, ctx.p = inputs
        ctx.save_for_backward(seed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (seed,) = ctx.saved_tensors
        args = (grads[0], seed, ctx.p)
        if forward_ad._current_level >= 0:  # a tangent came with the gradient
            return _default(*args), None, None
        return applied(Dropout, *args) if second_order() else _below(*args), None, None


def _below(*args: Any) -> Tensor:
    """The operator without a look at whether gradients are wanted."""
    found: Tensor = _OP(*args) if unguarded() else _guarded(*args)  # as in _calls.below_autograd
    return found


def _guarded(*args: Any) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        found: Tensor = _OP(*args)
    return found


def _default(input: Tensor, seed: Tensor, p: float) -> Tensor:
    nowhere = torch.zeros(1, dtype=torch.int64, device=input.device)
    words = random_words(seed, 0, nowhere, nowhere, input.numel())
    kept = words.view(input.shape) < max(1, round((1 - p) * 2**32))
    return input * kept * (1 / (1 - p))


def _differentiable(input: Tensor, seed: Tensor, p: float) -> Tensor:
    """The operator by itself: gradients flow too, and tangents."""
    if forward_ad._current_level >= 0:
        return _default(input, seed, p)
    wanted = torch.is_grad_enabled() and input.requires_grad
    found: Tensor = applied(Dropout, input, seed, p) if wanted else _guarded(input, seed, p)
    return found


def _batched(info: Any, dims: Any, input: Tensor, seed: Tensor, p: float) -> tuple[Tensor, int]:
    """Each sample's own mask where the seeds differ, else the same."""
    of = [
        [x if d is None else x.select(d, i) for x, d in zip((input, seed), dims[:2], strict=True)]
        for i in range(info.batch_size)
    ]
    return torch.stack([_below(x, s, p) for x, s in of]), 0


_library_of: Any = LIBRARY
_library_of.impl("dropout", _default, "CompositeExplicitAutograd")
_library_of.impl("dropout", _differentiable, "Autograd")
torch.library.register_fake("fastrnn::dropout", lambda input, *_: input.new_empty(input.shape))
torch.library.register_vmap("fastrnn::dropout", _batched)
