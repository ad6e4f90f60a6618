"""Compilers, exporters and tracers."""

from __future__ import annotations

import io

import torch
from torch import func, nn
from torch.ao.quantization import quantize_dynamic
from torch.export import Dim, export, load, save
from torch.nn.utils import rnn

from tests.compatibility.table import IN, B, Case, H, T, gradients, row, same, values

SECTION = "Graphs"
DYNAMO = "Dynamo refuses torch.nn's recurrent modules (without `fullgraph=True`: a graph break)."


@row(SECTION, "`torch.compile(fullgraph=True)`, forward and backward", theirs=DYNAMO)
def _(case: Case) -> None:
    layer, x = case.layer(), values(T, B, IN)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    same(compiled(x), case.exact()(x))
    same(gradients(compiled, x), gradients(case.exact(), x))


@row(SECTION, "compiled once for every length and batch size", theirs=DYNAMO)
def _(case: Case) -> None:
    recompilations(case.layer(), case.exact())


def recompilations(layer: nn.Module, theirs: nn.Module) -> None:
    """Fail if one graph does not serve several lengths and batch sizes."""
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled(values(2, 3, IN))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((3, 3, IN), (2, 5, IN)):
            x = values(*shape)
            same(compiled(x), theirs(x))


@row(SECTION, "the same with `proj_size`", kinds=("LSTM",), theirs=DYNAMO)
def _(case: Case) -> None:
    recompilations(case.layer(proj_size=3), case.exact(proj_size=3))


@row(SECTION, "compiled with a `PackedSequence`", theirs=DYNAMO)
def _(case: Case) -> None:
    compiled = torch.compile(case.layer(), fullgraph=True, backend="aot_eager")
    packed = rnn.pack_sequence([values(n, IN) for n in (3, 2)])
    same(compiled(packed), case.exact()(packed))


@row(SECTION, "compiled single step")
def _(case: Case) -> None:
    cell, x = case.cell(), values(B, IN)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    same(compiled(x), cell(x))
    same(gradients(compiled, x), gradients(cell, x))


@row(SECTION, "compiled under autocast", theirs=DYNAMO)
def _(case: Case) -> None:
    layer, x = case.layer(dtype=torch.float32), values(T, B, IN, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(compiled(x), layer(x), 1e-2)


@row(
    SECTION,
    "`torch.func.grad` and `vmap` inside `torch.compile`",
    theirs=DYNAMO,
    ours="Dynamo cannot trace an `autograd.Function` inside a `torch.func` transform; leave the "
    "transform uncompiled.",
)
def _(case: Case) -> None:
    layer, x = case.layer(), values(T, B, IN)
    wanted = func.vmap(func.grad(lambda s: layer(s.unsqueeze(1))[0].sum()), 1)
    same(torch.compile(wanted, fullgraph=True, backend="aot_eager")(x), wanted(x))


@row(SECTION, "`torch.export`, saved and loaded, and trained")
def _(case: Case) -> None:
    file, x = io.BytesIO(), values(T, B, IN)
    save(export(case.layer(), (x,)), file)
    file.seek(0)
    program = load(file).module()
    same(program(x), case.exact()(x))
    same(gradients(program, x), gradients(case.exact(), x))


@row(
    SECTION,
    "`torch.export` with free length and batch size",
    theirs="The length is unrolled into the graph.",
)
def _(case: Case) -> None:
    free = {"input": {0: Dim("steps"), 1: Dim("batch")}}
    program = export(case.layer(), (values(T, B, IN),), dynamic_shapes=free)
    x = values(T + 4, B + 2, IN)
    same(program.module()(x), case.exact()(x))


@row(
    SECTION,
    "`torch.fx.symbolic_trace` of a model",
    ours="torch.fx takes only modules of torch.nn for leaves: give a `Tracer` whose "
    "`is_leaf_module` names ours, or use `torch.export`.",
)
def _(case: Case) -> None:
    x = values(T, B, IN)
    same(torch.fx.symbolic_trace(nn.Sequential(case.layer()))(x), case.exact()(x))


@row(
    SECTION,
    "`torch.jit.script`",
    ours="Its compiler does not take the modules' Python: use `torch.jit.trace`, or, as the error "
    "says, `torch.compile` or `torch.export`.",
)
def _(case: Case) -> None:
    x = values(T, B, IN)
    same(torch.jit.script(nn.Sequential(case.layer()))(x), case.exact()(x))


@row(SECTION, "`torch.jit.trace` under `no_grad`, called with another length")
def _(case: Case) -> None:
    x = values(T + 2, B, IN)
    with torch.no_grad():
        traced = torch.jit.trace(case.layer(), (values(T, B, IN),))
        same(traced(x), case.exact()(x))


@row(SECTION, "`torch.jit.trace` with gradients, saved and loaded, and trained")
def _(case: Case) -> None:
    file, x = io.BytesIO(), values(T, B, IN)
    torch.jit.save(torch.jit.trace(case.layer(num_layers=2), (x,)), file)
    file.seek(0)
    same(gradients(torch.jit.load(file), x), gradients(case.exact(num_layers=2), x))


@row(
    SECTION,
    "`quantize_dynamic`",
    kinds=("GRU", "LSTM"),
    ours="Left as they are, in floating point: the quantiser looks for torch.nn's types.",
)
def _(case: Case) -> None:
    model = nn.Sequential(case.layer(dtype=torch.float32))
    quantised = quantize_dynamic(model, {nn.LSTM, nn.GRU}, dtype=torch.qint8)
    assert "quantized" in type(quantised[0]).__module__
    assert quantised(values(T, B, IN, dtype=torch.float32))[0].shape == (T, B, H)
