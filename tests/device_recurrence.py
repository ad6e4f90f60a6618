"""A recurrence on the emulated device, by each schedule of csrc/*.cu."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.cells import CELLS
from tests import emulator
from tests.emulator import Emulator, pointer
from tests.recurrence_problems import Problem, Tensors, walk


class OnDevice:
    """A problem's tensors in the device's memory, in a dtype, and the structures that hold them.

    Args:
        device: the emulator.
        problem: what to run.
        dtype: of every tensor.
        misalign: elements that tensors are off a 16-byte boundary.
        save: keep what the backward pass needs.
    """

    def __init__(
        self,
        device: Emulator,
        problem: Problem,
        dtype: torch.dtype,
        misalign: int = 0,
        save: bool = True,
    ) -> None:
        self.device, self.problem, self.dtype, self.misalign = device, problem, dtype, misalign
        self.cell = CELLS[problem.cell]
        rows, H = sum(problem.sizes), problem.hidden
        self.output_size = problem.projected or H
        self.tensors = {n: self.put(t) for n, t in problem.tensors.items()}
        self.grads = {n: self.put(t) for n, t in problem.grads.items()}
        self.extras = {
            n: device.put(getattr(problem.extras, n)) for n in ("resets", "seed", "sequences")
        }
        self.results = {
            "state_n": self.put(problem.tensors["state"]),
            "output": self.empty(rows, self.output_size),
        }
        self.results["state_n"][0, :, self.output_size :] = 0
        if save:
            self.results["cells"] = self.empty(self.cell.states - 1, rows, H)
            slots = self.cell.reserve
            if problem.extras.zoneout is not None or problem.projected:
                slots += self.cell.states
            if "gains" in self.tensors:
                slots += 2 * self.cell.gates
            self.results["reserve"] = self.empty(rows, slots * H)
        if problem.projected:
            self.unprojected = self.empty(problem.batch, H)

    def put(self, tensor: Tensor) -> Tensor:
        found = self.device.put(tensor.to(self.dtype), self.misalign * self.dtype.itemsize)
        assert found is not None
        return found

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        return self.device.empty(shape, dtype, self.misalign * dtype.itemsize)

    def _sequence(self) -> tuple[object, ...]:
        zoneout = (*(self.problem.extras.zoneout or ()), 0.0, 0.0)[:2]
        extras = emulator.Extras(
            *(pointer(self.extras[n]) for n in ("resets", "seed", "sequences")),
            self.problem.extras.zoneout is not None,
            (ctypes.c_double * 2)(*zoneout),
        )
        named = (pointer(self.tensors.get(n)) for n in ("state", "bias_ih", "bias_hh", "gains"))
        p = self.problem
        return (sum(p.sizes), p.batch, p.hidden, p.projected, *named, extras)

    def forward(self) -> emulator.Forward:
        named = (pointer(self.results.get(n)) for n in ("state_n", "output", "cells", "reserve"))
        last = pointer(self.unprojected) if self.problem.projected else None
        return emulator.Forward(*self._sequence(), pointer(self.tensors["x_proj"]), *named, last)

    @property
    def sums(self) -> torch.dtype:
        """What the kernels add up in."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def backward(self) -> Any:
        """Makes the gradients' tensors, too: `sent`, by the structure's names."""
        rows, H = sum(self.problem.sizes), self.problem.hidden
        S, B, GH = self.cell.states, self.problem.batch, self.cell.gates * self.problem.hidden
        self.sent = {
            "carry": self.empty(S, B, H, dtype=self.sums),
            "grad_x": self.empty(rows, GH),
            "grad_state": self.empty(S, B, H),
            "previous": self.empty(rows, self.output_size),
        }
        if self.problem.projected:
            self.sent["grad_projected"] = self.empty(rows, self.output_size)
        shared = self.problem.cell != "gru"
        normed = "gains" in self.tensors
        self.sent["grad_h"] = self.sent["grad_x"] if shared and not normed else self.empty(rows, GH)
        if normed:
            self.sent["gates"] = self.empty(rows, GH)
            self.sent["gates_h"] = self.sent["gates"] if shared else self.empty(rows, GH)
            self.sent["grad_c"] = self.empty((S - 1) * rows, H)
            self.sent["moments"] = self.empty(1 + S, rows, 2, dtype=self.sums)
            for name in ("gains", "bias_ih", "bias_hh"):
                if name in self.tensors:
                    self.sent[f"grad_{name}"] = self.empty(*self.tensors[name].shape)
        if self.cell.operand_gates:
            self.sent["operand"] = self.empty(rows, H)
        by_name = self.results | self.sent
        by_name |= {f"grad_{n}": g for n, g in self.grads.items()}
        kind: Any = emulator.NormBackward if normed else emulator.Backward
        fields = (*emulator.BACKWARD, *(emulator.NORM_BACKWARD if normed else ()))
        return kind(*self._sequence(), *(pointer(by_name.get(n)) for n in fields))

    def found(self) -> Tensors:
        """By the reference's names: results and, after a backward pass, gradients."""
        every = dict(self.results)
        if hasattr(self, "sent"):
            grad_h, split = self.sent["grad_h"], self.cell.operand_gates * self.problem.hidden
            parts = [grad_h[:, :split] if split else grad_h]
            states = [self.sent["previous"]]
            if split:
                parts.append(grad_h[:, split:])
                states.append(self.sent["operand"])
            products = [g.double().T @ s.double() for g, s in zip(parts, states, strict=True)]
            every |= {
                "grad_x_proj": self.sent["grad_x"],
                "grad_state": self.sent["grad_state"],
                "grad_weight_hh": torch.cat(products),
            }
            if self.problem.projected:
                R, H = self.cell.reserve, self.problem.hidden
                made = self.results["reserve"][:, R * H : (R + 1) * H]
                every["grad_weight_hr"] = self.sent["grad_projected"].double().T @ made.double()
            for name in ("grad_gains", "grad_bias_ih", "grad_bias_hh"):
                if name in self.sent:
                    every[name] = self.sent[name]
        return {name: t for name, t in every.items() if t.numel()}


def run_steps(at: OnDevice, backward: bool = True) -> Tensors:
    """The step schedule, its products by torch."""
    p, device, H = at.problem, at.device, at.problem.hidden
    kernels, norm = device.step_kernels(p.cell, at.dtype), None
    if "gains" in at.tensors:
        norm = device.norm_kernels(p.cell, at.dtype)
    F, steps = kernels.operand_gates * H, walk(p.sizes, p.reverse)
    W, args = at.tensors["weight_hh"], at.forward()
    W_hr, P = at.tensors.get("weight_hr"), at.output_size
    has_operand = F > 0
    inner = at.empty(p.batch, kernels.reserve + 1, H, dtype=at.sums)
    operands = at.empty(p.batch, H) if has_operand else None
    stage = at.empty(p.batch, F) if has_operand and "reserve" not in at.results else None
    for step in steps:
        h = at.results["state_n"][0, : step.rows, :P]
        if operands is not None:
            product = at.put(h @ W[:F].T)
            device.run(kernels.operand, args, step, product, operands, stage)
            h = operands[: step.rows]
        if norm is not None:
            device.run(norm.forward, args, step, at.put(h @ W.T), inner)
        else:
            device.run(kernels.forward, args, step, at.put(h @ W[F:].T), stage)
        if W_hr is not None:
            device.run(kernels.project, args, step, at.put(at.unprojected[: step.rows] @ W_hr.T))
    if not backward:
        return at.found()
    args, product = at.backward(), at.empty(p.batch, P)
    launch = kernels.backward if norm is None else norm.backward
    for step in reversed(steps):
        rows = slice(step.row, step.row + step.rows)
        grad_h = at.sent["grad_h"][rows]
        arriving = product
        if W_hr is not None:
            device.run(kernels.project_backward, args, step, product)
            arriving = at.put(at.sent["grad_projected"][rows] @ W_hr)
        device.run(launch, args, step, arriving)
        if has_operand:
            device.run(kernels.operand_backward, args, step, at.put(grad_h[:, F:] @ W[F:]))
            product[: step.rows] = grad_h[:, :F] @ W[:F]
        else:
            product[: step.rows] = grad_h @ W
        if step.prev_rows < step.rows:
            device.run(kernels.begin, args, step, product)
    if norm is not None:
        device.run(norm.finish, args)
    return at.found()


def run_persistent(at: OnDevice, schedule: str, cluster: int, **options: Any) -> Tensors:
    """A persistent schedule; see `run_side_by_side`."""
    return run_side_by_side([at], schedule, cluster, **options)[0]


def run_side_by_side(
    ways: Sequence[OnDevice],
    schedule: str,
    cluster: int,
    *,
    share: int = 1,
    processors: int = 132,
    limit: int = 227 * 1024,
    table: bool | None = None,
    backward: bool = True,
    tf32: bool = False,
    stack: Sequence[Tensor] = (),
) -> list[Tensors]:
    """A persistent schedule's launches, each for one direction or both, or a stack's layers.

    Args:
        ways: of one device, cell, dtype, sizes and width.
        schedule: of emulator.SCHEDULES.
        cluster: blocks of one.
        share: of them that share k.
        processors: of the device, for each direction.
        limit: bytes of shared memory of a block.
        table: whether the steps are a table, by default if they differ.
        backward: run the backward pass, too.
        tf32: products may be TF32's.
        stack: W_ih of all layers but the first, on the device.
    """
    p, device = ways[0].problem, ways[0].device
    kernels = device.persistent_kernels(schedule, p.cell, ways[0].dtype, tf32)
    assert kernels is not None
    if table is None:
        table = len(set(p.sizes)) > 1
    walks = []
    for at in ways:
        steps = walk(at.problem.sizes, at.problem.reverse)
        raw = torch.frombuffer(bytearray(b"".join(map(bytes, steps))), dtype=torch.int64)
        on_device = device.put(raw) if table else None
        walks.append(emulator.Steps(len(steps), pointer(on_device), at.problem.reverse))
        at.results["state_n"] = at.empty(*at.results["state_n"].shape)  # only written
    for back in (False, True)[: 1 + backward]:
        layout = emulator.Layout()
        fits = kernels.layout(
            back, p.batch, p.hidden, cluster, share, processors, limit, ctypes.byref(layout)
        )
        assert fits, "the shape does not fit"
        kind: Any = emulator.WayBackward if back else emulator.WayForward
        # Backward a layer waits for the one above it.
        order = range(len(ways))[:: -1 if back and stack else 1]
        on = [*map(pointer, stack[:: -1 if back else 1]), *[None] * len(ways)]
        arguments = (kind * len(ways))(
            *(
                kind(
                    ways[k].backward() if back else ways[k].forward(),
                    *(walks[k], pointer(ways[k].tensors["weight_hh"]), weight_on),
                )
                for k, weight_on in zip(order, on, strict=False)
            )
        )
        size = layout.bytes * len(ways)
        space = device.put(torch.zeros(size, dtype=torch.uint8)) if size else None
        device.run(
            kernels.backward if back else kernels.forward, arguments, len(ways), layout, space
        )
    return [at.found() for at in ways]
