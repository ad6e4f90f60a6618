"""Stacked layers one step at a time."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from fastrnn import _arguments, _checks, _library
from fastrnn._frozen import Freezable
from fastrnn._recurrent import Tensors, unwrap
from fastrnn.cells import narrowed
from fastrnn.packed import pack

_tracing = torch._C._get_tracing_state  # of torch.jit.trace


class Stream:
    """What `module.stream(batch_size)` returns: packed weights, and states that move on.

    It holds a copy of the weights as they were, and no gradient flows through it. Dropout is off,
    as in evaluation.
    """

    def __init__(self, module: Freezable, batch_size: int) -> None:
        _checks.positive("batch_size", batch_size)
        if module.bidirectional:
            raise ValueError(
                "stream: module must run in one direction, got bidirectional=True, "
                "which needs the whole sequence"
            )
        weights = module.all_weights
        like, layers = weights[0][0].detach(), module.num_layers
        self._cell = module.cell_name
        self._like = (torch.Size((batch_size, module.input_size)), like.dtype, like.device)
        # Without compiled kernels the module itself steps: a copy, in evaluation.
        self._module: Freezable | None = None
        self._hx: Tensors
        if module.packing_refusal() is None:
            self._packed_for = _library.instruction_set
            packs = [pack(self._cell, **named) for named in module._named(weights)]
            self._packed = torch.cat([packed.weights for packed in packs])
            self._biases = _stacked([b for p in packs for b in (p.bias_ih, p.bias_hh)])
            if self._biases is not None:
                self._biases = self._biases.view(layers, 2, -1)
            self._gains = _stacked([packed.gains for packed in packs])
            self._proj_size = module.proj_size
            states = module._states
            self._zoneout = _arguments.rates("stream", module.zoneout, states) or ()
            self._states = like.new_zeros(layers, states, batch_size, module.hidden_size)
            self._point()
        else:
            self._module = copy.deepcopy(module).eval()
            hidden = module.hidden_size
            widths = (module.proj_size or hidden, *(hidden,) * (module._states - 1))
            self._hx = tuple(like.new_zeros(layers, batch_size, width) for width in widths)

    def _point(self) -> None:
        """Make what points into the tensors' memory."""
        (batch_size, input_size), _, _ = self._like
        self._hx = self._states.unbind(1)
        if self._proj_size:
            self._hx = narrowed(self._states.transpose(0, 1), self._proj_size)
        self._output_shape = (batch_size, self._hx[0].size(-1))
        self._stepper = torch.ops.fastrnn.stepper.default(
            *(self._states, self._packed, self._biases, self._gains),
            *(self._zoneout, self._cell, input_size, self._proj_size),
        )
        self._address = self._stepper.data_ptr()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy's tensors lie elsewhere, and perhaps on another processor."""
        self.__dict__.update(state)
        if self._module is None:
            if self._packed_for != (here := _library.instruction_set):
                raise RuntimeError(
                    f"stream: its weights are packed for {self._packed_for}, got a processor that "
                    f"takes {here or 'none'}: make the stream there, from the module"
                )
            self._point()

    def step(self, x_t: Tensor) -> Tensor:
        """Take one step.

        Args:
            x_t: [B, I], in the weights' dtype.

        Returns:
            The last layer's output, [B, H] (with `proj_size` [B, P]).

        Raises:
            TypeError: `x_t` is no tensor.
            ValueError: it has another shape, dtype or device, or nothing in memory.
        """
        if not isinstance(x_t, Tensor) or (x_t.shape, x_t.dtype, x_t.device) != self._like:
            _arguments.is_tensor("step: x_t", x_t)
            shape, dtype, device = self._like
            raise ValueError(
                f"step: x_t must be {dtype} [B, I] = {list(shape)} on {device}, "
                f"got {x_t.dtype} {list(x_t.shape)} on {x_t.device}"
            )
        if self._module is None:
            try:
                if not x_t.is_contiguous() or x_t.is_neg():
                    x_t = x_t.contiguous().resolve_neg()
                read = x_t.data_ptr()
            except RuntimeError:
                _expect_storage(x_t)  # not before: it takes a twentieth of a small layer's step
                raise
            output: Tensor = x_t.new_empty(self._output_shape)
            at = (self._address, read, output.data_ptr())
            traced = _tracing() is not None
            if traced or not _library.take_step(*at):
                if traced or 0 in at:
                    raise ValueError("step: x_t must hold values, got a traced or a fake tensor")
                raise MemoryError("step: no memory is left")
            return output
        _expect_storage(x_t)
        with torch.no_grad():
            sequence = x_t.unsqueeze(1 if self._module.batch_first else 0)
            output, self.state = self._module(sequence, unwrap(self._hx))
        return output.flatten(0, 1)

    @property
    def state(self) -> Tensor | Tensors:
        """The states as the module takes them: [L, B, H], or an LSTM's pair; a copy.

        Assign such a tensor, or pair, to go on from there.
        """
        return unwrap(tuple(part.clone() for part in self._hx))

    @state.setter
    def state(self, hx: Tensor | Tensors) -> None:
        given = tuple(hx) if isinstance(hx, tuple | list) else (hx,)
        for part in given:
            _arguments.is_tensor("stream: state", part)
        shapes = [list(part.shape) for part in self._hx]
        if [list(part.shape) for part in given] != shapes:
            raise ValueError(
                f"stream: state must have shapes {shapes}, got {[list(p.shape) for p in given]}"
            )
        with torch.inference_mode():
            for part, value in zip(self._hx, given, strict=True):
                part.copy_(value)

    @torch.inference_mode()  # which states that were made under it can only be changed under
    def reset(self, sequences: Tensor | None = None) -> None:
        """Begin anew from states of zero.

        Args:
            sequences: bool [B], which of them; default None: all.

        Raises:
            TypeError, ValueError: `sequences` is no bool [B].
        """
        if sequences is None:
            for part in self._hx:
                part.zero_()
            return
        _arguments.is_tensor("reset: sequences", sequences)
        batch = self._like[0][0]
        if sequences.dtype != torch.bool or sequences.shape != (batch,):
            raise ValueError(
                f"reset: sequences must be torch.bool [B] = [{batch}], "
                f"got {sequences.dtype} {list(sequences.shape)}"
            )
        for part in self._hx:
            part.masked_fill_(sequences[:, None], 0)


def _expect_storage(x_t: Tensor) -> None:
    if not torch._C._has_storage(x_t):
        raise ValueError(
            "step: x_t must hold values, got a sparse or mkldnn tensor, or one inside torch.func"
        )


def _stacked(tensors: list[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None
