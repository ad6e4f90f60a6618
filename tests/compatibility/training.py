"""Autograd, hooks, mixed precision, several processes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import rnn
from torch.utils.checkpoint import checkpoint

from tests.compatibility.distributed import ranks
from tests.compatibility.table import IN, B, Case, H, T, gradients, row, same, tensors, values

SECTION = "Training"
AUTOCAST = "`torch.autocast` to {}: dtypes of the results as in torch.nn, values close to float32"


@row(SECTION, "backward in eval mode, twice with `retain_graph`")
def _(case: Case) -> None:
    layer, theirs, x = case.layer().eval(), case.exact(), values(T, B, IN).requires_grad_()
    loss = layer(x)[0].square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    expected = torch.autograd.grad(theirs(x)[0].square().sum(), [x, *theirs.parameters()])
    same([t.grad / 2 for t in (x, *layer.parameters())], expected)


@row(SECTION, "double backward (a penalty on the input's gradient)")
def _(case: Case) -> None:
    found = []
    for layer in (case.layer(num_layers=2), case.exact(num_layers=2)):
        x = values(T, B, IN).requires_grad_()
        (gradient,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        penalty = (gradient.norm() - 1) ** 2
        targets = [x, layer.weight_ih_l0, layer.weight_hh_l1, layer.bias_hh_l1]
        found.append(torch.autograd.grad(penalty, targets))
    same(*found)


@row(SECTION, "anomaly mode, deterministic algorithms")
def _(case: Case) -> None:
    x = values(T, B, IN)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autograd.detect_anomaly():
            same(gradients(case.layer(), x), gradients(case.exact(), x))
    finally:
        torch.use_deterministic_algorithms(False)


@row(SECTION, "forward hooks, with keywords, that change input and output")
def _(case: Case) -> None:
    layer, x = case.layer(), values(T, B, IN)
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {"input": 2 * kwargs["input"]}), with_kwargs=True
    )
    layer.register_forward_hook(lambda _, args, result: (3 * result[0], result[1]))
    output, state = case.exact()(2 * x)
    same(layer(input=x), (3 * output, state))


@row(SECTION, "full backward hooks")
def _(case: Case) -> None:
    layer, x, seen = case.layer(), values(T, B, IN).requires_grad_(), []
    layer.register_full_backward_hook(lambda _, grad_input, grad_output: seen.extend(grad_input))
    (layer(x)[0] * 2).sum().backward()
    same(seen, [x.grad])
    expected = torch.autograd.grad((case.exact()(x)[0] * 2).sum(), x)
    same(seen, expected)


@row(SECTION, "`clip_grad_norm_`, `clip_grad_value_`, `parameters_to_vector`")
def _(case: Case) -> None:
    found = []
    for layer in (case.layer(), case.exact()):
        layer(values(T, B, IN))[0].square().sum().backward()
        total = nn.utils.clip_grad_norm_(layer.parameters(), 0.1)
        nn.utils.clip_grad_value_(layer.parameters(), 0.01)
        flat = nn.utils.parameters_to_vector(layer.parameters())
        found.append([total, flat, *(p.grad for p in layer.parameters())])
    same(*found)


@row(SECTION, "`torch.utils.checkpoint`, both kinds")
def _(case: Case) -> None:
    for reentrant in (True, False):
        found = []
        for layer in (case.layer(), case.exact()):
            x = values(T, B, IN).requires_grad_()
            output = checkpoint(lambda x, f=layer: f(x)[0], x, use_reentrant=reentrant)
            output.square().sum().backward()
            found.append([x.grad, *(p.grad for p in layer.parameters())])
        same(*found)


@row(SECTION, "hooks on saved tensors (`save_on_cpu`)")
def _(case: Case) -> None:
    layer, theirs, x = case.layer(), case.exact(), values(T, B, IN)
    with torch.autograd.graph.save_on_cpu():
        output = layer(x)[0]
    output.square().sum().backward()
    expected = torch.autograd.grad(theirs(x)[0].square().sum(), list(theirs.parameters()))
    same([p.grad for p in layer.parameters()], expected)


@row(SECTION, "state carried from window to window and detached")
def _(case: Case) -> None:
    found = []
    for layer in (case.layer(), case.exact()):
        state, parts = None, []
        for window in values(3, T, B, IN):
            output, state = layer(window, state)
            parts += torch.autograd.grad(output.square().sum(), list(layer.parameters()))
            state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        found.append(parts)
    same(*found)


def autocast(case: Case, dtype: torch.dtype, atol: float) -> None:
    """Results and gradients under autocast, alone and between two products."""
    exact = case.exact(dtype=torch.float32)
    parameters = list(exact.parameters())
    x = values(T, B, IN, dtype=torch.float32)
    for given in (x, x.to(dtype)):
        layer, model = case.layer(dtype=torch.float32), nn.Linear(H, 2)
        with torch.autocast("cpu", dtype=dtype):
            results = tensors(layer(given))
            last = model(results[0])
        last.sum().backward()
        # torch.nn's LSTM and RNN give autocast's dtype, its GRU what the state is promoted to.
        wanted = torch.promote_types(dtype, given.dtype) if case.kind == "GRU" else dtype
        assert [r.dtype for r in results] == [wanted] * len(results), [r.dtype for r in results]
        same([r.float() for r in results], tensors(exact(given.float())), atol)
        loss = (exact(given.float())[0] * model.weight.sum(0)).sum()
        expected = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(layer.parameters(), expected, strict=True):
            assert parameter.grad.dtype == torch.float32
            same(parameter.grad, gradient, atol * gradient.abs().max().clamp_min(1).item())


# Not LSTM: torch.nn's has 16-bit dtypes on some processors only.
@row(SECTION, AUTOCAST.format("bfloat16"), kinds=("RNN", "GRU"))
def _(case: Case) -> None:
    autocast(case, torch.bfloat16, 4e-2)


@row(SECTION, AUTOCAST.format("float16"), kinds=("RNN", "GRU"))
def _(case: Case) -> None:
    autocast(case, torch.float16, 6e-3)


def autocast_dtypes(case: Case) -> list[torch.dtype]:
    """Dtypes of results under autocast to bfloat16 where not all is float32."""
    packed = rnn.pack_sequence([values(n, IN, dtype=torch.float32) for n in (3, 2)])
    layer, cell = case.layer(dtype=torch.float32), case.cell(dtype=torch.float32)
    options = {"proj_size": 3} if case.kind == "LSTM" else {}
    projected = case.layer(dtype=torch.float32, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = [
            *tensors(layer(packed)[1]),
            *tensors(
                layer(values(T, B, IN, dtype=torch.float32), case.hx(1, B, H, dtype=torch.bfloat16))
            ),
            *tensors(projected(values(T, B, IN, dtype=torch.float32))),
            *tensors(case.layer()(values(T, B, IN))),
            *tensors(cell(values(B, IN, dtype=torch.float32))),
            *tensors(cell(values(B, IN, dtype=torch.bfloat16))),
        ]
    return [r.dtype for r in results]


@row(
    SECTION,
    "autocast: `PackedSequence`, `hx` of another dtype, float64 modules, single steps",
    kinds=("RNN", "GRU"),
)
def _(case: Case) -> None:
    dtypes = [autocast_dtypes(c) for c in (case, Case(nn, case.kind))]
    assert dtypes[0] == dtypes[1], dtypes


@row(SECTION, "`DistributedDataParallel`, two gloo processes")
def _(case: Case) -> None:
    for rank in ranks():
        problem = rank[f"{case.library.__name__}.{case.kind}"]
        assert not problem, problem
