"""Models as ONNX files in which each layer of ours is one LSTM, GRU or RNN node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib.util import find_spec
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _onnx_nodes
from fastrnn._layers import Layers, Recurrent
from fastrnn.single_step import SingleStep

__all__ = ["export"]

_FIRST_OPSET = 18  # torch writes this or later; to anything older it only tries to convert


@contextmanager
def _traced(
    kind: type[Recurrent], run: Callable[..., Any], titles: dict[nn.Module, str]
) -> Iterator[None]:
    """Let modules of a kind go through `run`; those not in `titles` are called as ever."""
    original = kind.forward

    @wraps(original)  # its signature, too: the inputs' names come from there
    def forward(module: Recurrent, input: Any, hx: Any = None, **options: Any) -> Any:
        if module not in titles:
            return original(module, input, hx, **options)
        if isinstance(input, PackedSequence):
            raise _onnx_nodes.refusal(
                titles[module], "is called with a PackedSequence (pad it first)"
            )
        lengths = options.pop("lengths", None)
        for name, value in options.items():
            if value is not None and value is not False:
                raise _onnx_nodes.refusal(titles[module], f"is called with {name}")
        return run(module, input, hx, *([] if lengths is None else [lengths]))

    kind.forward = forward
    try:
        yield
    finally:
        kind.forward = original


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without the effects that `train()` may have on a module."""
    training = {module: module.training for module in model.modules()}
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


def _fold_weights(model: Any) -> None:
    """Compute what only rearranges weights, so that the file holds them in ONNX's order.

    Args:
        model: an onnx_ir.Model, changed in place.
    """
    from onnxscript import optimizer

    kinds = {node.kind for node in _onnx_nodes.NODES.values()}
    pending = [
        value
        for node in model.graph
        if node.op_type in kinds
        for value in node.inputs[1:4]  # W, R, B
    ]
    wanted = set()
    while pending:
        value = pending.pop()
        node = None if value is None else value.producer()
        if node is not None and node not in wanted:
            wanted.add(node)
            pending += node.inputs
    optimizer.fold_constants(
        model, should_fold=lambda node: True if node in wanted else None, output_size_limit=2**40
    )
    optimizer.remove_unused_nodes(model)


def _finish(program: torch.onnx.ONNXProgram) -> None:
    """What torch leaves undone: weights as nodes want them, fixed sizes, names."""
    graph = program.model.graph
    _fold_weights(program.model)
    assert program.exported_program is not None
    fixed = {
        str(symbol): int(limits.lower)
        for symbol, limits in program.exported_program.range_constraints.items()
        if limits.lower == limits.upper
    }
    for node in graph:
        for k, value in enumerate(node.outputs):
            if not value.name:  # unused; onnx's reference would pass it as absent inputs, also ""
                value.name = f"{node.name}_{k}"
    for value in [*graph.inputs, *(value for node in graph for value in node.outputs)]:
        shape: Any = value.shape or []
        for axis, size in enumerate(shape):
            if str(size) in fixed:
                shape[axis] = fixed[str(size)]


def _free(value: Any) -> Any:
    """Dynamic shapes for an argument: each size of each tensor may vary where the model allows."""
    if isinstance(value, Tensor):
        return dict.fromkeys(range(value.dim()), torch.export.Dim.AUTO)
    if type(value) in (tuple, list):
        return type(value)(map(_free, value))
    if isinstance(value, dict):
        return {key: _free(item) for key, item in value.items()}
    return None


def export(
    model: nn.Module,
    args: Tensor | tuple[Any, ...],
    path: str | PathLike[str],
    *,
    dynamic_shapes: Any = None,
    opset_version: int = 20,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> torch.onnx.ONNXProgram:
    """Write a model as an ONNX file, each layer of ours as one LSTM, GRU or RNN node.

    The file computes what the model does in evaluation. A layer's `lengths` become the node's
    `sequence_lens`. Everything that is not ours is translated by `torch.onnx.export`, so recurrent
    layers of torch.nn had better go through `accelerate` first.

    Args:
        model: any module; it is left as it was.
        args: example inputs, a tuple or one tensor; a dict at the tuple's end: those by name.
        path: of the file; weights above 2 GB go to a second one beside it.
        dynamic_shapes: sizes that vary between calls, as for `torch.export.export`; default None:
            each one that the model does not fix. {}: none.
        opset_version: of ONNX, 18 or later; default 20.
        input_names: of the file's inputs; default None: the parameters' names in `forward`.
        output_names: of the file's outputs; default None: chosen by torch.

    Returns:
        What `torch.onnx.export` returns, for a closer look at the graph.

    Raises:
        ImportError: onnx or onnxscript is missing.
        TypeError: `model` is not a module, or `args` do not fit its `forward`.
        ValueError: ONNX cannot express one of our modules or what it is called with, or there is
            no such opset.
        FileNotFoundError: the folder of `path` does not exist.
        torch.onnx.OnnxExporterError: torch cannot translate something else in the model (calls of
            `fastrnn.recurrence` included).

    Source: https://onnx.ai/onnx/operators (LSTM, GRU, RNN).
    """
    if any(find_spec(package) is None for package in ("onnx", "onnxscript")):
        raise ImportError("onnx.export needs onnx and onnxscript: pip install 'fastrnn[onnx]'")
    if not isinstance(model, nn.Module):
        raise TypeError(f"onnx.export: model must be a module, got {type(model).__name__}")
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"onnx.export: no folder {str(Path(path).parent)!r} to write to")
    if opset_version < _FIRST_OPSET:
        raise ValueError(
            f"onnx.export: opset_version must be {_FIRST_OPSET} or later, got {opset_version}"
        )
    titles: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, Recurrent):
            titles[module] = f"{type(module).__name__} {name!r}" if name else type(module).__name__
            _onnx_nodes.refuse(module, titles[module])
    inputs: list[Any] = list(args) if isinstance(args, tuple) else [args]
    named: dict[str, Any] = inputs.pop() if inputs and isinstance(inputs[-1], dict) else {}
    try:
        arguments = signature(model.forward).bind(*inputs, **named).arguments
    except TypeError as error:
        raise TypeError(f"onnx.export: args do not fit the model's forward: {error}") from None
    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        stack.enter_context(_traced(Layers, _onnx_nodes.run_layers, titles))
        stack.enter_context(_traced(SingleStep, _onnx_nodes.run_step, titles))
        failure = None
        try:
            program = torch.onnx.export(
                model,
                tuple(inputs),
                kwargs=named,
                dynamic_shapes=_free(arguments) if dynamic_shapes is None else dynamic_shapes,
                opset_version=opset_version,
                input_names=input_names,
                output_names=output_names,
                verbose=False,
                dynamo=True,
            )
        except torch.onnx.OnnxExporterError as error:
            failure = error
        if failure is not None:
            with torch.no_grad():
                model(*inputs, **named)  # a call that does not fit fails in plain words here
            raise failure
    assert program is not None
    if program.model.opset_imports[""] != opset_version:
        raise ValueError(f"onnx.export: torch and onnx know no opset_version {opset_version}")
    _finish(program)
    program.save(path)
    return program
