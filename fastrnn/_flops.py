"""What `torch.utils.flop_counter` counts of our operators: their products, as of torch's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from math import prod
from types import ModuleType
from typing import Any

import torch

from fastrnn.cells import CELLS

_COUNTER = "torch.utils.flop_counter"
Given = dict[str, Any]  # an operator's arguments by name


def _sizes(given: Given) -> tuple[int, int, int, int]:
    """Layers, directions, B, H."""
    bias = given.get("bias")
    if (layers := given.get("layers")) is not None:
        return len(layers) // (5 if bias else 3), 1, *layers[0].shape[1:]
    if (weights := given.get("weights")) is not None:
        ways = 1 + given["bidirectional"]
        each = (1 if given.get("packed") else 2) + (2 if bias else 0)
        return len(weights) // each // ways, ways, given["input"].size(-2), given["hidden_size"]
    return 1, 1 + ("state_reverse" in given), *given["state"].shape[1:]


def _recurrence(given: Given) -> int:
    """Of any operator that runs layers, forwards or, if it has `input_grad`, backwards."""
    *steps, width = given["input"].shape
    layers, ways, batch, hidden = _sizes(given)
    weight_hr = given.get("weight_hr")
    projected = given.get("proj_size", 0) if weight_hr is None else weight_hr.size(0)
    gates = CELLS[given["cell"]].gates * hidden * ways
    # Multiply-adds of a row with each kind of weight.
    first = 0 if given.get("weight_ih", gates) is None else gates * width
    above = (layers - 1) * gates * ways * hidden
    through_time = layers * gates * (projected or hidden)
    rows: int = prod(steps)
    every: int = first + above + through_time + projected * hidden * ways
    if "input_grad" not in given:
        return 2 * rows * every
    found: int = rows * every * (1 + given["weight_grad"])
    found -= 0 if given["input_grad"] else rows * first
    found -= 0 if given.get("state_grad", True) else batch * through_time
    return 2 * found


def _attention(given: Given) -> int:
    """Forwards two products; backwards that of queries and keys once more and four others."""
    *heads, queries, width = given["query"].shape
    keys, value_width = given["value"].shape[-2:]
    both = (3 * width + 2 * value_width) if "grad_output" in given else width + value_width
    found: int = 2 * prod(heads) * queries * keys * both
    return found


def _loss(given: Given) -> int:
    """The logits, and with `gradients` two products more."""
    found: int = 2 * given["hidden"].numel() * given["weight"].size(0)
    return found * 3 if given["gradients"] else found


_RECURRENCES = ("recurrence", "recurrence_both", "recurrence_stack", "recurrence_layers")
_FORMULAS = dict.fromkeys((*_RECURRENCES, "triton_recurrence"), _recurrence)
_FORMULAS |= dict.fromkeys(("masked_attention", "triton_masked_attention"), _attention)
_FORMULAS |= {f"{name}_backward": formula for name, formula in _FORMULAS.items()}
_FORMULAS |= {"recurrence_packed": _recurrence, "linear_cross_entropy": _loss}


def _count(
    names: Sequence[str], formula: Callable[[Given], int], *args: Any, out_val: Any, **named: Any
) -> int:
    return formula(dict(zip(names, args, strict=False)) | named)


def _register(counter: ModuleType) -> None:
    for name, formula in _FORMULAS.items():
        op = getattr(torch.ops.fastrnn, name)
        names = [argument.name for argument in op.default._schema.arguments]
        counter.register_flop_formula(op, get_raw=True)(partial(_count, names, formula))


class _WhenImported:
    """Registers the formulas when the counter is imported, which imports Triton."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == _COUNTER else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            _register(module)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def count_ours() -> None:
    """Have `FlopCounterMode` count our operators."""
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _WhenImported())
