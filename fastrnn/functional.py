"""Recurrences as functions of tensors: argument checks, then the backend that runs them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _arguments, _checks, cells, ops, triton_ops, wavefront
from fastrnn._arguments import Rates
from fastrnn._autocast import autocasts
from fastrnn._calls import applied, below_autograd, by_functions
from fastrnn._cell import Tensors
from fastrnn.attention import explained
from fastrnn.attention import masked_attention as masked_attention
from fastrnn.backends import choose, chosen, lacking, scheduled
from fastrnn.cells import CELLS, COMPILED
from fastrnn.loss import linear_cross_entropy as linear_cross_entropy
from fastrnn.regularisers import PLAIN, LayerNorm

# Of each backend with kernels: the operator, and the autograd Function around it.
_OPERATORS: dict[str, tuple[Any, Any]] = {
    "native": (torch.ops.fastrnn.recurrence.default, ops.Recurrence),
    "triton": (torch.ops.fastrnn.triton_recurrence.default, triton_ops.TritonRecurrence),
}


@autocasts
def run(
    cell: str,
    input: Tensor,
    state: Tensor | Tensors,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
    weight_hr: Tensor | None = None,
    resets: Tensor | None = None,
    zoneout: Rates | None = None,
    seed: Tensor | None = None,
    sequences: Tensor | None = None,
    layer_norm: LayerNorm | None = None,
    return_cells: bool = False,
) -> tuple[Tensor, Tensor | Tensors, Tensor | None]:
    """`recurrence` of tensors, but the last states may come stacked, and the third be None."""
    if not isinstance(cell, str) or cell not in CELLS:
        raise ValueError(f"recurrence: cell must be one of {list(CELLS)}, got {cell!r}")
    padded = batch_sizes is None
    if input.dim() != (3 if padded else 2):
        raise ValueError(
            f"recurrence: input must be {'[T, B, I]' if padded else '[N, I]'}, "
            f"got {list(input.shape)}"
        )
    if padded and input.size(0) == 0:
        raise ValueError(
            f"recurrence: input must be of at least one step, T = 1, got {list(input.shape)}"
        )
    states = state if isinstance(state, tuple) else state.unbind()
    _arguments.tensors(
        CELLS[cell],
        input,
        states,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        weight_hr,
        input.size(1) if padded else None,
    )
    if weight_ih is None and bias_ih is not None and layer_norm is None:
        raise ValueError(
            "recurrence: bias_ih must be None without weight_ih: the projection has it; "
            f"got {list(bias_ih.shape)}"
        )
    if return_cells and CELLS[cell].states != 2:
        raise ValueError(f"recurrence: return_cells needs a cell of two states, got {cell!r}")
    extras, lacks = PLAIN, None
    features: tuple[str, ...] = ()
    plain = resets is None and zoneout is None and layer_norm is None and weight_hr is None
    if not plain or cell not in COMPILED:
        extras = _arguments.extras(
            cell, input, states, weight_hr, resets, zoneout, seed, sequences, layer_norm
        )
        features = (*(() if weight_hr is None else ("proj_size",)), *extras.names)
        lacks = lacking(cell)
    if weight_hr is not None and weight_hr.size(0) > weight_hr.size(1):
        lacks = "the compiled kernels project to at most H units"
    if 0 in (states[-1].size(1), input.size(-1)):
        lacks = "the compiled kernels need at least one unit of input and state"
    steps = input.size(0)
    if batch_sizes is None:
        batch_sizes = _arguments.padded_sizes(input)
        rows = input.flatten(0, 1)
    else:
        _arguments.sizes(batch_sizes, steps, states[0].size(0))
        rows = input
    backend = chosen(input, lacks, features=features)
    if backend != "reference":
        op, function = _OPERATORS[backend]
        stacked, gains = state, None
        if weight_hr is not None:
            stacked = cells.widened(states)
        elif isinstance(state, tuple):
            stacked = torch.stack(state)
        if extras.layer_norm is not None:
            gains = extras.layer_norm.joined()
        args = (
            *(rows, stacked, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, gains),
            batch_sizes,
            *(extras.resets, extras.seed, extras.sequences, list(extras.zoneout or ())),
            *(cell, reverse),
        )
        if by_functions():
            output, state_n, every, _ = applied(function, *args)
        else:
            output, state_n, every, _ = below_autograd(op, *args, return_cells)
        if weight_hr is not None and isinstance(state, tuple):
            state_n = cells.narrowed(state_n, weight_hr.size(0))
    else:
        sizes = [input.size(1)] * steps if padded else batch_sizes.tolist()
        x_proj, _ = cells.projected(rows, weight_ih, bias_ih, extras.layer_norm)
        output, last, every, _ = cells.recurrence(
            CELLS[cell], x_proj, states, weight_hh, bias_hh, sizes, reverse, weight_hr, extras
        )
        state_n = torch.stack(last) if isinstance(state, Tensor) else last
    shape = input.shape[:2]
    every = every[0] if return_cells else None
    if padded:
        output = output.unflatten(0, shape)
        every = None if every is None else every.unflatten(0, shape)
    return output, state_n, every


def recurrence(
    cell: str,
    input: Tensor,
    state: Tensor | Tensors,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
    weight_hr: Tensor | None = None,
    resets: Tensor | None = None,
    zoneout: Rates | None = None,
    seed: Tensor | None = None,
    sequences: Tensor | None = None,
    layer_norm: LayerNorm | None = None,
    return_cells: bool = False,
) -> tuple[Any, ...]:
    """One layer and direction of a recurrent network over a batch of sequences.

    Args:
        cell: a key of `CELLS`.
        input: [T, B, I] padded, or packed rows [N, I] with `batch_sizes`; float32, float64 or
            bfloat16 on CPUs, float16 to float64 on CUDA devices; any floating dtype on the
            reference backend.
        state: [S, B, H], or S tensors [B, H], the states before the first step (h; then c for an
            LSTM); with `weight_hr` the pair (h [B, P], c [B, H]).
        weight_ih: [G*H, I] in torch's gate order, or None: `input` is the projection, I = G*H.
        weight_hh: [G*H, H], or [G*H, P] with `weight_hr`.
        bias_ih: [G*H]; default None, as it must be without `weight_ih`, unless `layer_norm` is
            to come before it.
        bias_hh: [G*H]; default None.
        batch_sizes: CPU int64 [T], active sequences per step, non-increasing; default None.
        reverse: run from each sequence's last row to its first; rows stay in place.
        weight_hr: [P, H], the LSTM's output projection; default None.
        resets: bool [T, B] (or [N]), zero the sequence's state just before the step is taken;
            default None.
        zoneout: probability of a unit of h to keep its value for a step, or one for each of the S
            states; default None.
        seed: int64 with one value that zoneout draws its masks from; default None: evaluation,
            with each mask's expectation in its place.
        sequences: int64 [B], numbers that zoneout's masks know the sequences by; default None:
            their place in the batch.
        layer_norm: gains of a layer-normalised LSTM or GRU; default None.
        return_cells: return every step's c, too (cells of two states); default False.

    Returns:
        output [T, B, H] (or [N, H]) and each sequence's last states, shaped as `state`; with
        `return_cells` also [T, B, H] (or [N, H]).

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument's shape, dtype or device does not fit, or `cell` is unknown.
        RuntimeError: an explicitly chosen backend cannot run it.

    Source: see `fastrnn.cells.recurrence` and `fastrnn.regularisers`.
    """
    if isinstance(state, list):
        state = tuple(state)
    for part in state if isinstance(state, tuple) else (state,):
        _arguments.is_tensor("recurrence: state", part)
    if isinstance(state, Tensor) and state.dim() != 3:
        raise ValueError(f"recurrence: state must be [S, B, H], got {list(state.shape)}")
    needed = {"input": input, "weight_hh": weight_hh}
    optional = {"weight_ih": weight_ih, "bias_ih": bias_ih, "bias_hh": bias_hh}
    optional |= {"weight_hr": weight_hr, "batch_sizes": batch_sizes}
    _arguments.are_tensors("recurrence", needed, optional)
    _checks.flag("recurrence: reverse", reverse)
    _checks.flag("recurrence: return_cells", return_cells)
    if not input.is_floating_point():
        raise ValueError(f"recurrence: input must be of a floating dtype, got {input.dtype}")
    output, state_n, every = run(
        cell,
        input,
        state,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        batch_sizes=batch_sizes,
        reverse=reverse,
        weight_hr=weight_hr,
        resets=resets,
        zoneout=zoneout,
        seed=seed,
        sequences=sequences,
        layer_norm=layer_norm,
        return_cells=return_cells,
    )
    if isinstance(state, tuple):
        state_n = tuple(state_n)
    return (output, state_n, every) if return_cells else (output, state_n)


def explain(module: torch.nn.Module, input: Tensor | PackedSequence | None = None) -> str:
    """Say which backend and schedule a module runs on, and why the others do not.

    Args:
        module: one of this package's recurrent modules, or a `MultiHeadAttention`.
        input: what it will be called with; default None: a tensor like its weights.

    Returns:
        One line per backend, the chosen one first.

    Raises:
        TypeError: `module` is not one of ours, or `input` no tensor.
    """
    sizes = None
    if isinstance(input, PackedSequence):
        sizes, input = input.batch_sizes, input.data
    if input is not None:
        _arguments.is_tensor("explain: input", input)
    if isinstance(projection := getattr(module, "q_proj", None), torch.nn.Linear):
        like, n_heads = projection.weight if input is None else input, getattr(module, "n_heads", 1)
        return "\n".join(explained(like.new_empty(1, projection.out_features // n_heads)))
    name = getattr(module, "cell_name", None)
    if name not in CELLS:
        raise TypeError(f"explain: module must be a fastrnn module, got {type(module).__name__}")
    tensor = next(module.parameters()) if input is None else input
    zoneout = _arguments.rates("explain", getattr(module, "zoneout", 0.0), CELLS[name].states)
    options = {
        "proj_size": getattr(module, "proj_size", 0) > 0,
        "zoneout": zoneout is not None,
        "layer_norm": getattr(module, "layer_norm", False),
    }
    used = [option for option, on in options.items() if on]
    choice = choose(tensor, lacking(name), features=used)
    schedule = choice.schedule
    if choice.backend == "triton":
        schedule = triton_ops.schedule(name, int(getattr(module, "hidden_size", 0)), tensor)
    elif tensor.is_cuda:
        steps, batch = 1, 1
        if sizes is not None:
            steps, batch = len(sizes), int(sizes[0])
        elif input is not None and input.dim() == 3:
            steps, batch = input.shape[:2]
            if getattr(module, "batch_first", False):
                steps, batch = batch, steps
        hidden_size: Any = module.hidden_size
        directions = 2 if getattr(module, "bidirectional", False) else 1
        layers, apart = int(getattr(module, "num_layers", 1)), wavefront.refusal(module)
        at_once = layers if apart is None else 1
        shape = (steps, batch, hidden_size, directions, at_once)
        choice = scheduled(choice, name, tensor, *shape, used)
        if layers > 1 and apart is not None:
            choice.refused["layers in one launch"] = apart
        schedule = choice.schedule
    packed = "" if getattr(module, "_frozen", None) is None else ", weights packed"
    lines = [f"{choice.backend}: runs {name} ({schedule}{packed})"]
    return "\n".join(lines + [f"{b}: no, {reason}" for b, reason in choice.refused.items()])
