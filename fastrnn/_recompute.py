"""Layers that keep only their inputs for the backward pass, which runs them once more."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from fastrnn.backends import AsAskedNow
from fastrnn.functional import run


def run_again(*args: Any, **options: Any) -> tuple[Any, Any, Any]:
    """`run` that keeps its inputs alone; what is missing backwards is made by the same backend."""
    if not torch.compiler.is_compiling():
        options["context_fn"] = lambda: (nullcontext(), AsAskedNow())
    results: tuple[Any, Any, Any] = checkpoint(
        run, *args, use_reentrant=False, preserve_rng_state=False, **options
    )
    return results


def may_run_again() -> bool:
    """Whether `checkpoint` works, and has something to save: torch.func refuses its hooks."""
    if not torch.is_grad_enabled():
        return False
    return torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active()
