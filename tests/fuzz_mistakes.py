"""Wrong arguments, put into calls that would be right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import modules
from tests.fuzz_cases import Call, assert_same_refusal, attempt, calls, tensors

# A wrong value for an option of the constructor.
OPTIONS: list[tuple[str, Any]] = [
    *[(name, v) for name in ("input_size", "hidden_size") for v in (-1, 2.0, "4", None)],
    *[("num_layers", v) for v in (-1, 0, 1.0, "2", None)],
    *[(name, v) for name in ("bias", "batch_first") for v in (0, 1, "True", None)],
    *[("dropout", v) for v in (-0.1, 1.5, True, "0.5", None, 1, float("nan"))],
    *[("proj_size", v) for v in (-1, 99, 1.0, "1")],
    *[("nonlinearity", v) for v in ("sin", "TANH", "", None, 3)],
    *[("unknown", 1), ("dtype", torch.int64), ("dtype", "float"), ("device", "nowhere")],
]


def dtyped(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.detach().to(dtype)


# What can be wrong with one tensor.
TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "one axis more": lambda t: t.unsqueeze(0),
    "one axis more at the end": lambda t: t.unsqueeze(-1),
    "two axes more": lambda t: t[None, None],
    "one axis fewer": lambda t: t.sum(0),
    "a number": lambda t: t.sum(),
    "one unit more": lambda t: torch.cat([t, t.new_zeros(*t.shape[:-1], 1)], -1),
    "one unit fewer": lambda t: t[..., 1:],
    "first axis longer": lambda t: torch.cat([t, t.new_zeros(1, *t.shape[1:])]),
    "last axis doubled": lambda t: torch.cat([t, t], -1),
    "axes swapped": lambda t: t.transpose(0, -1),
    "flattened": lambda t: t.flatten(),
    "float16": dtyped(torch.float16),
    "float32": dtyped(torch.float32),
    "float64": dtyped(torch.float64),
    "int64": dtyped(torch.int64),
    "bool": dtyped(torch.bool),
    "complex": dtyped(torch.complex128),
    "meta": lambda t: t.to("meta"),
    "list": lambda t: t.tolist(),
    "array": lambda t: t.detach().double().numpy(),
    "None": lambda t: None,
    "str": lambda t: "tensor",
}

# What can be wrong with a whole state, besides its tensors.
STATES: dict[str, Callable[[Any], Any]] = {
    "pair": lambda hx: hx if isinstance(hx, tuple) else (hx, hx),
    "list": lambda hx: list(hx) if isinstance(hx, tuple) else [hx],
    "first": lambda hx: hx[0],
    "joined": lambda hx: torch.cat(hx, -1) if isinstance(hx, tuple) else hx,
    "three": lambda hx: (*hx, hx[0]) if isinstance(hx, tuple) else (hx,) * 3,
    "none inside": lambda hx: (hx[0], None) if isinstance(hx, tuple) else (None, hx),
    "empty": lambda hx: (),
}


# Where torch.nn computes something although an argument is wrong, ours says so.
STRICTER = (
    "must have the same dtype",  # of a state: some paths of torch.nn promote it
    "hx must be a pair",  # torch.nn's LSTMCell leaves a third state alone
    "batch_sizes must sum",  # rows that belong to no sequence are ignored
    "not at the same device",  # a meta state
    "input must have 2 dimensions",  # torch.nn's LSTM does not check packed rows
    "Expected hidden",  # nor a c of more layers than there are
)


@dataclass
class Mistake:
    """A call and what is wrong with it: an option, or ("input" | "h" | "c" | "state", which)."""

    call: Call
    what: str
    which: Any

    def arguments(self) -> tuple[Any, ...]:
        args = self.call.arguments(self.call.dtype)
        if self.what == "option":
            return args
        if self.what == "input":
            x = args[0]
            changed = TENSORS[self.which](x.data if isinstance(x, PackedSequence) else x)
            if isinstance(x, PackedSequence) and isinstance(changed, Tensor):
                changed = x._replace(data=changed)
            return (changed, *args[1:])
        state = args[1]
        if self.what == "state":
            return args[0], STATES[self.which](state)
        change = TENSORS[self.which]
        if not isinstance(state, tuple):
            return args[0], change(state)
        h, c = state
        return args[0], (change(h), c) if self.what == "h" else (h, change(c))


@st.composite
def mistakes(draw: Any) -> Mistake:
    """Mistakes of every kind, one at a time."""
    call = draw(calls())
    sizes = tuple(max(size, 2) for size in call.sizes)
    options = dict(call.options)
    if "num_layers" in options:
        options["num_layers"] = max(options["num_layers"], 1)
    if options.get("proj_size", 0) >= sizes[1]:
        options["proj_size"] = 0
    lengths = [max(length, 1) for length in call.lengths] or [2]
    call = replace(call, sizes=sizes, options=options, lengths=lengths, hx=True, values="normal")
    what = draw(st.sampled_from(["option", "input", "input", "h", "c", "state"]))
    if what == "option":
        return Mistake(call, what, draw(st.sampled_from(OPTIONS)))
    table = STATES if what == "state" else TENSORS
    return Mistake(call, what, draw(st.sampled_from(sorted(table))))


def build(mistake: Mistake, library: Any) -> nn.Module:
    call = mistake.call
    if mistake.what != "option":
        return call.build(library)
    name, value = mistake.which
    sizes = dict(zip(("input_size", "hidden_size"), call.sizes, strict=True))
    torch.manual_seed(call.seed)
    options = {"dtype": call.dtype} | sizes | call.options | {name: value}
    return getattr(library, call.name)(**options).train(call.training)


def compare_mistake(mistake: Mistake) -> None:
    """Both libraries refuse it with the same type of error, or both answer alike."""
    args = mistake.arguments()
    expected, refused = attempt(lambda: build(mistake, nn)(*args))
    got, we_refused = attempt(lambda: build(mistake, modules)(*args))
    if we_refused is not None and any(text in str(we_refused) for text in STRICTER):
        assert_same_refusal(we_refused, we_refused)
        return
    if refused is not None and we_refused is None:
        # A list of two states is as good as a tuple.
        assert mistake.which == "list" and "LSTM" in mistake.call.name, repr(refused)
        return
    if "RNN input dtype" in str(we_refused):  # torch.nn's LSTM does not check packed rows
        refused = we_refused
    assert_same_refusal(refused, we_refused)
    for his, mine in zip(tensors(expected), tensors(got), strict=True):
        assert mine.shape == his.shape and mine.dtype == his.dtype
        if not mine.is_meta:
            torch.testing.assert_close(mine, his, rtol=0.05, atol=0.05)
