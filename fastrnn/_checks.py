"""Argument checks of the modules, in the words and with the exception types of torch.nn."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn._arguments import is_tensor, numbers

Tensors = tuple[Tensor, ...]


def no_script(module: nn.Module) -> nn.Module:
    """Raise: as a module's `__prepare_scriptable__`, in place of torch's page about its Python."""
    raise RuntimeError(
        f"torch.jit.script: fastrnn.{type(module).__name__} cannot be scripted; "
        "use torch.compile or torch.export"
    )


def whole(name: str, value: object) -> int:
    """Return `value` if it is an int (a TypeError otherwise)."""
    if not isinstance(value, int):
        raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
    return value


def index(name: str, value: Any) -> int:
    """Return the int that `value` is, or stands for, as numpy's do (a TypeError otherwise)."""
    try:
        return operator.index(value)
    except TypeError:
        return whole(name, value)


def positive(name: str, value: object) -> None:
    """Raise unless `value` is an int above zero."""
    if whole(name, value) <= 0:
        raise ValueError(f"{name} must be greater than zero, got {value}")


def not_negative(name: str, value: int) -> None:
    """Raise unless `value` is zero or more."""
    if value < 0:
        raise RuntimeError(f"Trying to create tensor with negative dimension: {name} is {value}")


def flag(name: str, value: object) -> None:
    """Raise unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")


def switch(name: str, value: object) -> None:
    """Raise unless `value` is a bool, or the 0 or 1 that torch.nn takes for one."""
    if value not in (0, 1):
        flag(name, value)


def probability(name: str, value: object) -> None:
    """Raise unless `value` can be a dropout."""
    if not isinstance(value, Real | str):
        raise TypeError(f"{name} should be a number, got: {type(value).__name__}")
    if isinstance(value, bool | str) or not 0 <= float(value) <= 1:
        raise ValueError(
            f"{name} should be a number in range [0, 1] representing the probability of an "
            f"element being zeroed, got {value!r}"
        )


def projection(proj_size: object, hidden_size: int) -> None:
    """Raise unless an LSTM of `hidden_size` units can be projected to `proj_size`."""
    size = whole("proj_size", proj_size)
    if size < 0:
        raise ValueError(
            f"proj_size should be a positive integer or zero to disable projections, got {size}"
        )
    if size >= hidden_size:
        raise ValueError(
            f"proj_size has to be smaller than hidden_size, got {size} and {hidden_size}"
        )


def normalisation(op: str, possible: bool, layer_norm: object, proj_size: int) -> None:
    """Raise unless `layer_norm` can be had."""
    flag("layer_norm", layer_norm)
    if layer_norm and not possible:
        raise ValueError(
            f"{op}: layer_norm needs an LSTM, or a GRU with reset_after=True, got layer_norm=True"
        )
    if layer_norm and proj_size:
        raise ValueError(f"{op}: layer_norm must be False with proj_size, got {proj_size=}")


def _autocast(tensor: Tensor) -> bool:
    """Whether dtypes need not agree, because autocast casts them."""
    kind = tensor.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def fits_weight(input: Tensor, weight: Tensor, error: type[Exception]) -> None:
    """Raise unless `input` has the weights' dtype (an `error` otherwise) and device."""
    if input.dtype != weight.dtype and not _autocast(input):
        raise error(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )
    if input.device != weight.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, found input tensor at "
            f"{input.device} and parameter tensor at {weight.device}"
        )


def _fits_input(name: str, state: Tensor, input: Tensor) -> None:
    if state.device != input.device:
        raise RuntimeError(
            "Input and hidden tensors are not at the same device, found input tensor at "
            f"{input.device} and hidden tensor at {state.device} ({name})"
        )
    if state.dtype != input.dtype and not _autocast(input):
        raise RuntimeError(
            f"{name} and input must have the same dtype, but got {state.dtype} and {input.dtype}"
        )


def as_states(op: str, hx: object, count: int, tensor_error: type[Exception]) -> Tensors:
    """Return `hx` as a tuple of `count` states; several given as one is a `tensor_error`."""
    if count == 1:
        is_tensor("hx", hx)
        return (hx,)  # type: ignore[return-value]
    pair = "two hidden states: hx must be a pair (h_0, c_0)"
    named = pair if count == 2 else f"{count} hidden states: hx must be a tuple"
    wanted = f"{op} expects {named} of tensors, got"
    if isinstance(hx, Tensor):
        raise tensor_error(f"{wanted} one Tensor (it must be tuple of Tensors, not Tensor)")
    if not isinstance(hx, tuple | list):
        raise TypeError(f"{wanted} {type(hx).__name__}")
    if len(hx) != count:
        raise RuntimeError(f"{wanted} {len(hx)}")
    for s, state in enumerate(hx):
        is_tensor(f"hx[{s}]", state)
    return tuple(hx)


def layer_input(op: str, input: Tensor, states: Tensors | None) -> None:
    """Raise unless `input` has 3 axes, or 2 if unbatched, and its states as many."""
    is_tensor(f"{op}: input", input)
    dim = input.dim()
    if dim not in (2, 3):
        # torch.nn.RNN words this differently from LSTM and GRU.
        noun = "D tensor" if op == "RNN" else "D"
        raise ValueError(f"{op}: Expected input to be 2D or 3D, got {dim}{noun} instead")
    dims = [] if states is None else [state.dim() for state in states]
    if all(d == dim for d in dims):
        return
    if len(dims) != 2:
        wanted = f"hx should also be {dim}-D but got {dims[0]}-D tensor"
    else:
        wanted = f"hx and cx should also be {dim}-D but got ({dims[0]}-D, {dims[1]}-D) tensors"
    raise RuntimeError(f"For {'' if dim == 3 else 'un'}batched {dim}-D input, {wanted}")


def layer_rows(rows: Tensor, weight: Tensor, input_size: int) -> None:
    """Raise unless rows [T, B, I] or [N, I] have `input_size` units and fit the weights."""
    fits_weight(rows, weight, ValueError)
    if rows.size(-1) != input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {input_size}, "
            f"got {rows.size(-1)}"
        )
    if rows.size(0) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN, got 0")


def layer_states(states: Tensors, shapes: list[tuple[int, int, int]], input: Tensor) -> None:
    """Raise unless each state has its shape [L*D, B, width] and the input's dtype and device."""
    for s, (state, shape) in enumerate(zip(states, shapes, strict=True)):
        name = "hidden" if len(states) == 1 else f"hidden[{s}]"
        if state.shape != shape:
            raise RuntimeError(f"Expected {name} size {shape}, got {list(state.shape)}")
        _fits_input(name, state, input)


def sequence_lengths(op: str, lengths: object, input: Tensor, batch_first: bool) -> Tensor:
    """Return `lengths` of a padded input as CPU int64 [B], each from 1 to T."""
    if input.dim() != 3:
        raise ValueError(f"{op}: lengths need a batched input of 3 axes, got {input.dim()}")
    steps, batch = input.shape[1::-1] if batch_first else input.shape[:2]
    known = not torch.compiler.is_compiling()  # values are not while tracing

    def within_steps(values: Sequence[int]) -> None:
        wrong = [n for n in values if not 1 <= n <= steps]
        if wrong:
            raise ValueError(f"{op}: lengths must be from 1 to T = {steps}, got {wrong[0]}")

    if not isinstance(lengths, Tensor):
        if not isinstance(lengths, list | tuple) or any(type(n) is not int for n in lengths):
            got = lengths if isinstance(lengths, list | tuple) else type(lengths).__name__
            raise TypeError(f"{op}: lengths must be an int64 tensor or a list of ints, got {got}")
        if known:
            within_steps(lengths)  # some ints are more than a tensor holds
        lengths = torch.tensor(lengths, dtype=torch.int64, device="cpu")
    if lengths.dtype != torch.int64 or lengths.shape != (batch,) or not lengths.is_cpu:
        raise ValueError(
            f"{op}: lengths must be CPU int64 [B] = [{batch}], got {lengths.dtype} "
            f"{list(lengths.shape)} on {lengths.device}"
        )
    if known:
        within_steps(numbers(f"{op}: lengths", lengths))
    else:  # in the graph, then
        allowed = ((lengths >= 1) & (lengths <= steps)).all()
        torch._assert_async(allowed, f"{op}: lengths must be from 1 to T, got one that is not")
    return lengths


def no_lengths(op: str, lengths: object) -> None:
    """Raise unless `lengths` are absent, as they must be for a PackedSequence."""
    if lengths is not None:
        raise ValueError(f"{op}: lengths must be None for a PackedSequence, which has its own")


def layer_resets(op: str, resets: object, input: Tensor | PackedSequence) -> None:
    """Raise unless `resets` says of every step of `input` whether the state is zeroed before."""
    is_tensor(f"{op}: resets", resets)
    assert isinstance(resets, Tensor)
    input = input.data if isinstance(input, PackedSequence) else input
    wanted = input.shape[:-1]
    if resets.dtype != torch.bool or resets.shape != wanted:
        raise ValueError(
            f"{op}: resets must be torch.bool {list(wanted)}, one for each step of the input, got "
            f"{resets.dtype} {list(resets.shape)}"
        )
    if resets.device != input.device:
        raise ValueError(
            f"{op}: resets must be on the input's device {input.device}, got {resets.device}"
        )


def cell_input(op: str, input: Tensor, weight: Tensor, input_size: int) -> None:
    """Raise unless `input` is [B, input_size] or [input_size] and fits the weights."""
    is_tensor(f"{op}: input", input)
    if input.dim() not in (1, 2):
        raise ValueError(f"{op}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    if input.size(-1) != input_size:
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.size(-1)} expected {input_size}"
        )
    fits_weight(input, weight, RuntimeError)


def cell_states(op: str, states: Tensors, input: Tensor, hidden_size: int) -> None:
    """Raise unless each state is [B, hidden_size], or [hidden_size] with a 1-D input."""
    for s, state in enumerate(states):
        name = "hidden" if len(states) == 1 else f"hx[{s}]"
        if state.dim() not in (1, 2):
            raise ValueError(f"{op}: Expected {name} to be 1D or 2D, got {state.dim()}D instead")
        if input.dim() == 2 and state.size(0) != input.size(0):
            raise RuntimeError(
                f"Input batch size {input.size(0)} doesn't match hidden{s} batch size "
                f"{state.size(0)}"
            )
        if state.dim() != input.dim():
            raise RuntimeError(
                f"For {input.dim()}-D input, hidden{s} should also be {input.dim()}-D "
                f"but got {state.dim()}-D tensor"
            )
        if state.size(-1) != hidden_size:
            raise RuntimeError(
                f"hidden{s} has inconsistent hidden_size: got {state.size(-1)}, "
                f"expected {hidden_size}"
            )
        _fits_input(name, state, input)
