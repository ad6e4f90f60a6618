"""Argument checks of functions; most are of `recurrence`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

from fastrnn._cell import Cell, Tensors
from fastrnn.cells import CELLS, LAYER_NORMED
from fastrnn.regularisers import Extras, LayerNorm

Rates = float | tuple[float, ...]
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def is_tensor(name: str, value: object) -> None:
    """Raise unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")


def are_tensors(op: str, needed: Mapping[str, object], optional: Mapping[str, object]) -> None:
    """Raise unless what is needed, and of the rest what is not None, are tensors."""
    for name, value in {**needed, **optional}.items():
        if not isinstance(value, Tensor) and (value is not None or name in needed):
            is_tensor(f"{op}: {name}", value)


def number(name: str, value: object) -> None:
    """Raise unless `value` is a real number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def expect(name: str, tensor: Tensor, symbols: str, shape: tuple[int, ...]) -> None:
    """Raise unless a tensor has its shape."""
    if tensor.shape != shape:
        raise ValueError(
            f"recurrence: {name} must be {symbols} = {list(shape)}, got {list(tensor.shape)}"
        )


def expect_like(name: str, tensor: Tensor, input: Tensor) -> None:
    """Raise unless a tensor has the input's dtype and device."""
    if tensor.dtype != input.dtype:
        raise ValueError(
            f"recurrence: {name} must have the input's dtype {input.dtype}, got {tensor.dtype}"
        )
    if tensor.device != input.device:
        raise ValueError(
            f"recurrence: {name} must be on the input's device {input.device}, got {tensor.device}"
        )


def tensors(
    cell: Cell,
    input: Tensor,
    state: Tensors,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    batch: int | None,
) -> None:
    """Raise unless the tensors fit each other; S states, `batch` sequences if that is known."""
    if len(state) != cell.states:
        raise ValueError(f"recurrence: state must hold S = {cell.states} tensors, got {len(state)}")
    for part in state:
        if part.dim() != 2:
            raise ValueError(f"recurrence: each state must be [B, H], got {list(part.shape)}")
    hidden = state[-1].size(1)
    width = hidden if weight_hr is None else weight_hr.size(0)
    for s, part in enumerate(state):
        size = state[0].size(0) if batch is None else batch
        expect("state", part, "[B, H]", (size, width if s == 0 else hidden))
    rows = cell.gates * hidden
    expect(
        "weight_hh", weight_hh, "[G*H, P]" if weight_hr is not None else "[G*H, H]", (rows, width)
    )
    if weight_hr is not None:
        if cell.states == 1:
            raise ValueError("recurrence: weight_hr must be None for a cell of one state")
        expect("weight_hr", weight_hr, "[P, H]", (width, hidden))
    if weight_ih is None:
        expect("input", input, "[..., G*H] (x_proj)", (*input.shape[:-1], rows))
    else:
        expect("weight_ih", weight_ih, "[G*H, I]", (rows, input.size(-1)))
    for name, bias in (("bias_ih", bias_ih), ("bias_hh", bias_hh)):
        if bias is not None:
            expect(name, bias, "[G*H]", (rows,))
    dtype, device = input.dtype, input.device
    for name, tensor in (
        *(("state", part) for part in state),
        ("weight_ih", weight_ih),
        ("weight_hh", weight_hh),
        ("bias_ih", bias_ih),
        ("bias_hh", bias_hh),
        ("weight_hr", weight_hr),
    ):
        if tensor is not None and (tensor.dtype != dtype or tensor.device != device):
            expect_like(name, tensor, input)


def dense(name: str, tensor: object) -> None:
    """Raise unless `tensor` is one, and strided."""
    is_tensor(f"recurrence: {name}", tensor)
    if isinstance(tensor, Tensor) and tensor.layout != torch.strided:
        raise TypeError(f"recurrence: {name} must be a dense tensor, got {tensor.layout}")


def layers(
    cell: str,
    rows: Tensor,
    batch: int,
    hidden_size: int,
    weights: Sequence[Sequence[Tensor]],
    directions: int = 1,
) -> None:
    """Raise unless the weights of layers, each maybe with both biases, fit those below them."""
    dense("input", rows)
    states = rows.new_empty(CELLS[cell].states, batch, hidden_size).unbind()
    for k, (weight_ih, weight_hh, *biases) in enumerate(weights):
        for name, weight in zip(WEIGHTS, weights[k], strict=False):
            dense(name, weight)
        below = rows if k < directions else rows.new_empty(batch, directions * hidden_size)
        bias_ih, bias_hh = biases or (None, None)
        tensors(CELLS[cell], below, states, weight_ih, weight_hh, bias_ih, bias_hh, None, batch)


def padded_sizes(input: Tensor) -> Tensor:
    """The `batch_sizes` of a padded input [T, B, I], on the CPU whatever torch's default device."""
    return torch.full(input.shape[:1], input.size(1), dtype=torch.int64, device="cpu")


def numbers(name: str, tensor: Tensor) -> list[int]:
    """What a CPU int64 [n] holds; raise where nothing can be read, as inside a transform."""
    try:
        return tensor.tolist()
    except RuntimeError as error:
        raise ValueError(
            f"{name} must hold numbers that can be read, the same for all samples of torch.vmap, "
            f"got {list(tensor.shape)} inside a transform"
        ) from error


def sizes(batch_sizes: Tensor, rows: int, batch: int) -> None:
    """Raise unless `batch_sizes` divides N rows among the steps of B sequences."""
    if batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1 or not batch_sizes.is_cpu:
        raise ValueError(
            "recurrence: batch_sizes must be a CPU int64 tensor [T], "
            f"got {batch_sizes.dtype} {list(batch_sizes.shape)} on {batch_sizes.device}"
        )
    if torch.compiler.is_compiling():  # values are not known while tracing
        return
    sizes = numbers("recurrence: batch_sizes", batch_sizes)
    if sizes != sorted(sizes, reverse=True) or sizes[-1:] < [1] or sizes[0] != batch:
        raise ValueError(
            f"recurrence: batch_sizes must be non-increasing from B = {batch} to at least 1, "
            f"got {sizes}"
        )
    if sum(sizes) != rows:
        raise ValueError(f"recurrence: batch_sizes must sum to N = {rows}, got {sum(sizes)}")


def rates(op: str, zoneout: object, states: int) -> tuple[float, ...] | None:
    """The probability of each state to be kept; None if all are zero."""
    given = zoneout if isinstance(zoneout, tuple | list) else (zoneout, *(0.0,) * (states - 1))
    if len(given) != states:
        raise ValueError(
            f"{op}: zoneout must be a probability, or S = {states} of them, got {zoneout!r}"
        )
    for p in given:
        number(f"{op}: zoneout", p)
        if not 0 <= p <= 1:  # type: ignore[operator]
            raise ValueError(f"{op}: zoneout must be in [0, 1], got {p!r}")
    return tuple(map(float, given)) if any(given) else None


def _integers(name: str, tensor: object, symbols: str, count: int, input: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64 or tensor.numel() != count:
        got = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else tensor
        raise ValueError(f"recurrence: {name} must be int64 {symbols}, got {got}")
    if tensor.device != input.device:
        raise ValueError(
            f"recurrence: {name} must be on the input's device {input.device}, got {tensor.device}"
        )


def _gains(cell: str, norm: object, hidden: int, input: Tensor) -> None:
    if not isinstance(norm, LayerNorm):
        raise TypeError(
            "recurrence: layer_norm must be a fastrnn.regularisers.LayerNorm, "
            f"got {type(norm).__name__}"
        )
    if cell not in LAYER_NORMED:
        raise ValueError(f"recurrence: layer_norm needs a cell of {LAYER_NORMED}, got {cell!r}")
    rows = CELLS[cell].gates * hidden
    wanted = {"ln_ih_weight": ("[G*H]", rows), "ln_hh_weight": ("[G*H]", rows)}
    if cell == "lstm":
        wanted |= {"ln_c_weight": ("[H]", hidden), "ln_c_bias": ("[H]", hidden)}
    for name, gain in norm._asdict().items():
        if (gain is None) != (name not in wanted):
            must = "be a tensor" if name in wanted else "be None"
            got = "None" if gain is None else "a tensor"
            raise ValueError(f"recurrence: {name} must {must} for cell {cell!r}, got {got}")
        if gain is not None:
            symbols, size = wanted[name]
            expect(name, gain, symbols, (size,))
            expect_like(name, gain, input)


def extras(
    cell: str,
    input: Tensor,
    state: Tensors,
    weight_hr: Tensor | None,
    resets: Tensor | None,
    zoneout: Rates | None,
    seed: Tensor | None,
    sequences: Tensor | None,
    layer_norm: LayerNorm | None,
) -> Extras:
    """Check the optional behaviours of a recurrence, and put them together."""
    if resets is not None:
        wanted, symbols = tuple(input.shape[:-1]), "[T, B]" if input.dim() == 3 else "[N]"
        given = isinstance(resets, Tensor)
        # While tracing, the number of packed rows may not be known.
        fits = given and (torch.compiler.is_compiling() or resets.shape == wanted)
        if not fits or resets.dtype != torch.bool:
            got = f"{resets.dtype} {list(resets.shape)}" if given else type(resets).__name__
            raise ValueError(
                f"recurrence: resets must be torch.bool {symbols} = {list(wanted)}, got {got}"
            )
        if resets.device != input.device:
            raise ValueError(
                f"recurrence: resets must be on the input's device {input.device}, "
                f"got {resets.device}"
            )
        resets = resets.flatten()
    kept = None if zoneout is None else rates("recurrence", zoneout, CELLS[cell].states)
    if seed is not None:
        _integers("seed", seed, "with one value", 1, input)
    if sequences is not None:
        batch = state[0].size(0)
        _integers("sequences", sequences, f"[B] = [{batch}]", batch, input)
    if layer_norm is not None:
        if weight_hr is not None:
            raise ValueError("recurrence: layer_norm must be None with weight_hr, got both")
        _gains(cell, layer_norm, state[-1].size(1), input)
    return Extras(resets, kept, seed, sequences, layer_norm)
