"""torch.func, and forward-mode differentiation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, func
from torch.autograd import forward_ad
from torch.nn.utils import stateless

from tests.compatibility.table import IN, B, Case, H, T, row, same, values

SECTION = "Transforms"
NO_VMAP = "No batching rule for torch.nn's recurrent operators."


def weights(layer: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in layer.named_parameters()}


def loss_of(layer: torch.nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """(weights, x [T, B, IN]) -> a number."""
    return lambda given, x: func.functional_call(layer, given, (x,))[0].square().sum()


@row(SECTION, "`torch.func.functional_call` and `torch.nn.utils.stateless`")
def _(case: Case) -> None:
    layer, theirs, x = case.layer(), case.exact(), values(T, B, IN)
    doubled = {name: 2 * p for name, p in weights(layer).items()}
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(2)
    same(func.functional_call(layer, doubled, (x,)), theirs(x))
    same(stateless.functional_call(layer, doubled, (x,)), theirs(x))


@row(SECTION, "`vmap` over the input", theirs=NO_VMAP)
def _(case: Case) -> None:
    layer, many = case.layer(num_layers=2), values(4, T, B, IN)
    expected = torch.stack([case.exact(num_layers=2)(x)[0] for x in many])
    same(func.vmap(lambda x: layer(x)[0])(many), expected)


@row(SECTION, "`vmap` over the weights of an ensemble", theirs=NO_VMAP)
def _(case: Case) -> None:
    layers, x = [case.layer() for _ in range(3)], values(T, B, IN)
    with torch.no_grad():
        for factor, layer in enumerate(layers):
            layer.weight_hh_l0.mul_(factor)
    stacked, _ = func.stack_module_state(layers)
    found = func.vmap(lambda w: func.functional_call(layers[0], w, (x,))[0])(stacked)
    same(found, torch.stack([layer(x)[0] for layer in layers]))


@row(SECTION, "gradients of every sample: `vmap(grad(...))`", theirs=NO_VMAP)
def _(case: Case) -> None:
    layer, theirs, x = case.layer(), case.exact(), values(T, B, IN)
    loss = loss_of(layer)
    found = func.vmap(func.grad(lambda w, s: loss(w, s.unsqueeze(1))), (None, 1))(weights(layer), x)
    for sample in range(B):
        one = theirs(x[:, sample : sample + 1])[0].square().sum()
        expected = torch.autograd.grad(one, list(theirs.parameters()))
        same([g[sample] for g in found.values()], expected)


@row(SECTION, "`grad` and nested `jacrev`, over weights")
def _(case: Case) -> None:
    layer, x = case.layer(), values(2, 1, IN)
    loss = loss_of(layer)

    def of_bias(bias: Tensor, once: Callable[..., Tensor]) -> Tensor:
        return once(weights(layer) | {"bias_hh_l0": bias}, x)

    bias = layer.bias_hh_l0.detach()
    exact = loss_of(case.exact())
    found = func.jacrev(func.jacrev(lambda b: of_bias(b, loss)))(bias)
    same(found, torch.autograd.functional.hessian(lambda b: of_bias(b, exact), bias))


@row(SECTION, "`functionalize`, with gradients around it")
def _(case: Case) -> None:
    layer, theirs, x = case.layer(num_layers=2), case.exact(num_layers=2), values(T, B, IN)
    found, expected = func.functionalize(lambda x: layer(x)[0])(x), theirs(x)[0]
    same(found, expected)
    grads = torch.autograd.grad(found.square().sum(), list(layer.parameters()))
    same(grads, torch.autograd.grad(expected.square().sum(), list(theirs.parameters())))


@row(SECTION, "forward mode: `jvp`, `jacfwd`, `hessian` (float64)")
def _(case: Case) -> None:
    layer, theirs = case.layer(), case.exact()
    x, direction = values(2, 1, IN), values(2, 1, IN, seed=2)
    found = func.jvp(lambda x: layer(x)[0], (x,), (direction,))[1]
    same(found, torch.autograd.functional.jvp(lambda x: theirs(x)[0], x, direction)[1])
    same(func.jacfwd(lambda x: layer(x)[0])(x), func.jacrev(lambda x: theirs(x)[0])(x))
    expected = torch.autograd.functional.hessian(lambda x: theirs(x)[0].square().sum(), x)
    same(func.hessian(lambda x: layer(x)[0].square().sum())(x), expected)


@row(SECTION, "forward mode under `no_grad`, and nested in itself (float64)")
def _(case: Case) -> None:
    layer, theirs = case.layer(), case.exact()
    x, direction = values(2, 1, IN), values(2, 1, IN, seed=2)
    with torch.no_grad(), forward_ad.dual_level():
        dual = layer(forward_ad.make_dual(x, direction))[0]
        tangent = forward_ad.unpack_dual(dual).tangent
    same(tangent, torch.autograd.functional.jvp(lambda x: theirs(x)[0], x, direction)[1])
    found = func.jacfwd(func.jacfwd(lambda x: layer(x)[0].square().sum()))(x)
    same(found, torch.autograd.functional.hessian(lambda x: theirs(x)[0].square().sum(), x))


@row(
    SECTION,
    "forward mode (float32)",
    theirs="oneDNN's layer has no forward-mode derivative.",
)
def _(case: Case) -> None:
    x = values(T, B, IN, dtype=torch.float32)
    layer = case.layer(dtype=torch.float32)
    found = func.jvp(lambda x: layer(x)[0], (x,), (torch.ones_like(x),))[1]
    theirs, x = case.exact(dtype=torch.float32).double(), x.double()
    expected = torch.autograd.functional.jvp(lambda x: theirs(x)[0], x, torch.ones_like(x))[1]
    same(found.double(), expected, 1e-5)


@row(SECTION, "single steps: `vmap`, gradients of every sample, `jacrev`, `jvp`", theirs=NO_VMAP)
def _(case: Case) -> None:
    cell, x = case.cell(), values(B, IN)

    def first(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        result = func.functional_call(cell, weights, (x,))
        return result[0] if isinstance(result, tuple) else result

    given = weights(cell)
    batch = first(given, x)
    same(func.vmap(first, (None, 0))(given, x), batch)
    found = func.vmap(func.grad(lambda w, s: first(w, s).sum()), (None, 0))(given, x)
    expected = torch.autograd.grad(
        first(dict(cell.named_parameters()), x).sum(), list(cell.parameters())
    )
    same([g.sum(0) for g in found.values()], expected)
    jacobian = func.jacrev(lambda x: first(given, x))(x)
    tangent = func.jvp(lambda x: first(given, x), (x,), (torch.ones_like(x),))[1]
    same(jacobian.sum((2, 3)), tangent)
    assert tangent.shape == (B, H)
