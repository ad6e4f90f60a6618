"""What RNN, LSTM and GRU do: argument checks, the walk over layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _checks
from fastrnn._arguments import is_tensor
from fastrnn._autocast import lower_dtype, lowered
from fastrnn._calls import need_gradients, watched
from fastrnn._dropout import dropout
from fastrnn._frozen import Freezable
from fastrnn._recompute import may_run_again, run_again
from fastrnn._recurrent import Pair, Recurrent, Tensors, by_state, unwrap
from fastrnn._rows import PADDED, Layout, by_length, permute, resets_backwards, same_at_every_step
from fastrnn.bidirectional import run_both, side_by_side
from fastrnn.functional import run
from fastrnn.packed import run_packed
from fastrnn.plain import run_layers
from fastrnn.streaming import Stream
from fastrnn.wavefront import acting, at_once, run_stack

__all__ = ["Layers", "Pair", "Recurrent", "Tensors", "unwrap"]

Results = tuple[Any, Any, Any]  # output, last states, every step's c or None


class Layers(Freezable):
    """Stacked layers of one or two directions over whole sequences."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | Tensors | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
        return_cells: bool = False,
    ) -> tuple[Any, ...]:
        """Run the layers over a batch of sequences.

        Args:
            input: [T, B, I], [B, T, I] with `batch_first`, [T, I], or a PackedSequence, in the
                weights' dtype.
            hx: the states before the first step, [L*D, B, H] (D directions; [L*D, H] for
                unbatched input); an LSTM's are a pair (h_0, c_0), whose h_0 has `proj_size`
                units if that is set; default None: zeros.
            lengths: CPU int64 [B], or a list or tuple of ints, from 1 to T in any order: where
                each sequence of a padded input ends. The rest costs nothing, and is zero in the
                output; default None: at T.
            resets: bool, one for each step, laid out as `input` without its last axis ([N] for a
                PackedSequence, as its `data`): a new sequence begins there, and no state crosses
                over, in either direction; default None.
            return_cells: return the last layer's c of every step, too; default False.

        Returns:
            The last layer's output, laid out as `input` with D*H units, and the states after
            each sequence's last step, laid out as `hx`; with `return_cells` also c, laid out as
            the output.

        Raises:
            ValueError, RuntimeError, TypeError: an argument does not fit, as in torch.nn.
        """
        op, cell = type(self).__name__, self.cell_name
        states = None if hx is None else _checks.as_states(cell, hx, self._states, RuntimeError)
        if return_cells and self._states != 2:
            raise ValueError(f"{op}: return_cells needs a cell with a c, got {cell!r}")
        if isinstance(input, PackedSequence):
            _checks.no_lengths(op, lengths)
            form: Callable[..., Results] = self._packed
        else:
            _checks.layer_input(op, input, states)
            form = self._padded
            if lengths is not None:
                lengths = _checks.sequence_lengths(op, lengths, input, self.batch_first)
                form = partial(self._by_length, lengths)
        if resets is not None:
            _checks.layer_resets(op, resets, input)
        output, states, cells = form(input, states, resets, return_cells)
        last = unwrap(states)
        return (output, last, cells) if return_cells else (output, last)

    def stream(self, batch_size: int) -> Stream:
        """Begin to run the layers one step at a time, without gradients, from states of zero.

        Args:
            batch_size: B, sequences that go on together.

        Returns:
            An object whose `step(x_t)` takes [B, I] and returns [B, H]. Its weights are packed
            once: what happens to the module later is not seen.

        Raises:
            ValueError: the module is bidirectional, or `batch_size` is below 1.
        """
        return Stream(self, batch_size)

    def _padded(
        self, input: Tensor, states: Tensors | None, resets: Tensor | None, return_cells: bool
    ) -> Results:
        batched = input.dim() == 3
        rows = input if batched else input.unsqueeze(1)  # [T, B, I]
        if batched and self.batch_first:
            rows = input.transpose(0, 1)
            resets = None if resets is None else resets.T
        if not batched:
            states = None if states is None else tuple(s.unsqueeze(1) for s in states)
            resets = None if resets is None else resets.unsqueeze(1)
        weights = self._read_weights()
        self._check(rows, states, rows.size(1), weights)
        if lower_dtype(rows) is not None and self.cell_name == "lstm" and not self.proj_size:
            # torch's fused layer takes and gives the lower dtype alone.
            rows = lowered(rows)
            states = None if states is None else tuple(map(lowered, states))
        output, states, cells = self._run(rows, states, weights, PADDED, resets, return_cells)
        if not batched:
            states = tuple(s.squeeze(1) for s in states)
            return output.squeeze(1), states, None if cells is None else cells.squeeze(1)
        if self.batch_first:
            return output.transpose(0, 1), states, None if cells is None else cells.transpose(0, 1)
        return output, states, cells

    def _packed(
        self,
        input: PackedSequence,
        states: Tensors | None,
        resets: Tensor | None,
        return_cells: bool,
    ) -> Results:
        rows, *layout = input
        is_tensor("input.data", rows)
        if rows.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {rows.dim()}")
        output, states, cells = self._sorted(rows, states, Layout(*layout), resets, return_cells)
        every = None if cells is None else PackedSequence(cells, *layout)
        return PackedSequence(output, *layout), states, every

    def _by_length(
        self,
        lengths: Tensor,
        input: Tensor,
        states: Tensors | None,
        resets: Tensor | None,
        return_cells: bool,
    ) -> Results:
        if input.numel() == 0:  # no sequence, so none to sort
            return self._padded(input, states, resets, return_cells)
        way = by_length(lengths, input, self.batch_first)
        rows, resets = way.pack(input), None if resets is None else way.pack(resets)
        output, states, cells = self._sorted(rows, states, way.layout, resets, return_cells)
        return way.unpack(output), states, None if cells is None else way.unpack(cells)

    def _sorted(
        self,
        rows: Tensor,
        states: Tensors | None,
        layout: Layout,
        resets: Tensor | None,
        return_cells: bool,
    ) -> Results:
        """Rows [N, I] are sorted by length, the caller's states [L*D, B, width] are not."""
        weights = self._read_weights()
        self._check(rows, states, layout.batch, weights)
        states = None if states is None else permute(states, layout.order)
        output, states, cells = self._run(rows, states, weights, layout, resets, return_cells)
        return output, permute(states, layout.inverse), cells

    def _read_weights(self) -> list[list[Tensor]]:
        """The weights of this pass, read once: parametrizations compute on every access."""
        if self._frozen is not None:
            self._check_frozen(self._frozen)
            return self._frozen.weights
        weights = self.all_weights
        if self.weight_dropout > 0 and self.training:
            for each in weights:
                each[1] = dropout(each[1], self.weight_dropout)
        return weights

    def _check(
        self, rows: Tensor, states: Tensors | None, batch: int, weights: list[list[Tensor]]
    ) -> None:
        """Raise unless rows [T, B, I] or [N, I] and states [L*D, B, width] fit."""
        _checks.layer_rows(rows, weights[0][0], self.input_size)
        if states is not None:
            shapes = [(len(weights), batch, width) for width in self._widths()]
            _checks.layer_states(states, shapes, rows)

    def _run(
        self,
        rows: Tensor,
        states: Tensors | None,
        weights: list[list[Tensor]],
        layout: Layout,
        resets: Tensor | None,
        return_cells: bool,
    ) -> tuple[Tensor, Tensors, Tensor | None]:
        """Every layer over rows [T, B, I] or [N, I], from states [L*D, B, width] or zeros."""
        cell, H, top = self.cell_name, self.hidden_size, self.num_layers - 1
        sizes, packs = layout.batch_sizes, None if self._frozen is None else self._frozen.packs
        batch = rows.size(1) if sizes is None else layout.batch
        option = acting(self)
        if option in (None, "dropout") and at_once(cell, rows, weights):
            plain = sizes is None and resets is None and not return_cells
            if packs is not None and plain:
                plain = not need_gradients((rows, *(states or ()), *sum(weights, [])))
                weights = [[t for t in pack[:3] if t is not None] for pack in packs]
            if plain and rows.is_cpu and not watched():
                options = (H, self.bidirectional, packs is not None)
                between = None if option is None else partial(self._dropped, layout, batch)
                return *run_layers(cell, rows, states or (), weights, *options, between), None
            if packs is None and option is None and not self.bidirectional:
                zeros = (rows.new_zeros(self._states, batch, H) for _ in weights)
                each = tuple(zeros) if states is None else torch.stack(states, 1).unbind()
                output, ends, c_n = run_stack(
                    cell, rows, each, weights, sizes, resets, return_cells
                )
                return output, by_state(ends), c_n
        if states is None:
            shapes = [(len(weights), batch, width) for width in self._widths()]
            states = tuple(map(rows.new_zeros, shapes))
        call: Callable[..., Results] = run
        if packs is not None:
            call = run_packed
        elif self.recompute and may_run_again():
            call = run_again
        arguments = self._arguments(weights, layout, resets, rows.device)
        last: list[Tensor | Tensors] = []
        cells: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer > 0:
                rows = self._dropped(layout, batch, rows)
            wants_cells = return_cells and layer == top
            outputs = []
            directions = range(len(last), len(last) + 1 + self.bidirectional)
            firsts = [tuple(s[k] for s in states) for k in directions]
            ways = [arguments[k] for k in directions]
            if self.bidirectional and call is run and side_by_side(cell, rows, ways):
                every = run_both(cell, rows, firsts, ways, sizes, wants_cells)
            else:
                every = [
                    call(
                        cell,
                        rows,
                        first,
                        batch_sizes=sizes,
                        reverse=reverse,
                        return_cells=wants_cells,
                        **way,
                    )
                    for first, way, reverse in zip(firsts, ways, (False, True), strict=False)
                ]
            for output, state_n, c in every:
                outputs.append(output)
                last.append(state_n)
                if c is not None:
                    cells.append(c)
            rows = torch.cat(outputs, dim=-1) if self.bidirectional else outputs[0]
        c_n = torch.cat(cells, dim=-1) if cells else None
        return rows, by_state(last), c_n

    def _dropped(self, layout: Layout, batch: int, rows: Tensor) -> Tensor:
        """A layer's output as the next one reads it."""
        if self.variational and self.training and self.dropout > 0:
            return same_at_every_step(rows, layout, batch, self.dropout)
        return F.dropout(rows, self.dropout, self.training) if self.dropout > 0 else rows

    def _arguments(
        self,
        weights: list[list[Tensor]],
        layout: Layout,
        resets: Tensor | None,
        device: torch.device,
    ) -> list[dict[str, Any]]:
        """What each layer and direction passes to `run` besides its rows and states."""
        if self._frozen is not None:
            every: list[dict[str, Any]] = [{"packed": packed} for packed in self._frozen.packs]
        else:
            every = self._named(weights)
        if resets is not None:
            ways = [resets]
            if self.bidirectional:
                ways.append(resets_backwards(resets, layout))
            for k, named in enumerate(every):
                named["resets"] = ways[k % len(ways)]
        if self.zoneout:
            # Drawn here, not inside: a pass that is run again finds the same masks.
            seeds = (
                torch.randint(2**63 - 1, (len(every),), device=device) if self.training else None
            )
            for k, named in enumerate(every):
                named |= {"zoneout": self.zoneout, "sequences": layout.order}
                named["seed"] = None if seeds is None else seeds[k]
        return every
