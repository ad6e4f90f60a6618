"""What can be done to the parameters, and to a module as an object."""

from __future__ import annotations

import copy
import io
import pickle

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader

import fastrnn
from fastrnn import modules
from tests.compatibility.table import IN, B, Case, H, T, gradients, row, same, values

SECTION = "Parameters and files"


def through_file(value: object, weights_only: bool) -> object:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


@row(SECTION, "`copy.deepcopy`")
def _(case: Case) -> None:
    layer, x = case.layer(), values(T, B, IN)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
    same(twin(x), case.exact()(x))


@row(SECTION, "`pickle`")
def _(case: Case) -> None:
    x = values(T, B, IN)
    same(pickle.loads(pickle.dumps(case.layer()))(x), case.exact()(x))


@row(SECTION, "`torch.save` of the module")
def _(case: Case) -> None:
    x = values(T, B, IN)
    same(through_file(case.layer(), False)(x), case.exact()(x))


@row(SECTION, "`state_dict` through a file with `weights_only=True`, and to torch.nn")
def _(case: Case) -> None:
    state = through_file(case.layer(num_layers=2).state_dict(), True)
    theirs, x = nn.__dict__[case.kind](IN, H, 2, dtype=torch.float64), values(T, B, IN)
    theirs.load_state_dict(state)
    same(theirs(x), case.exact(num_layers=2)(x))


@row(SECTION, "`load_state_dict(strict=False)` names what is missing and unexpected")
def _(case: Case) -> None:
    layer = case.layer()
    state = layer.state_dict()
    state["other"] = state.pop("bias_hh_l0")
    keys = layer.load_state_dict(state, strict=False)
    assert keys.missing_keys == ["bias_hh_l0"] and keys.unexpected_keys == ["other"]


@row(SECTION, "built on the meta device, then `to_empty`, or loaded with `assign=True`")
def _(case: Case) -> None:
    x, state = values(T, B, IN), case.exact().state_dict()
    empty = case.layer(device="meta").to_empty(device="cpu")
    empty.load_state_dict(state)
    assigned = case.layer(device="meta")
    assigned.load_state_dict(state, assign=True)
    for layer in (empty, assigned):
        same(layer(x), case.exact()(x))


@row(SECTION, "`.half()`, `.bfloat16()`, `.double()` on the same parameters")
def _(case: Case) -> None:
    layer = case.layer()
    weight = layer.weight_hh_l0
    for move, dtype in (("half", torch.float16), ("bfloat16", torch.bfloat16)):
        output = getattr(layer, move)()(values(T, B, IN, dtype=dtype))[0]
        assert output.dtype == dtype
    assert layer.double()(values(T, B, IN))[0].dtype == torch.float64
    assert layer.weight_hh_l0 is weight


@row(SECTION, "`share_memory`: another process's update is seen")
def _(case: Case) -> None:
    layer = case.layer().share_memory()
    context = torch.multiprocessing.get_context("fork")
    child = context.Process(target=layer.weight_hh_l0.data.zero_)
    child.start()
    child.join(300)
    with torch.no_grad():
        theirs, x = case.exact(), values(T, B, IN)
        theirs.weight_hh_l0.zero_()
        same(layer(x), theirs(x))


class _Forward(torch.utils.data.Dataset):
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            return self.layer(values(3, 8, IN))[0]


@row(SECTION, "forward in a forked `DataLoader` worker, after threads ran in the parent")
def _(case: Case) -> None:
    # Large enough for both libraries to start threads.
    layer = getattr(case.library, case.kind)(IN, 160, dtype=torch.float64)
    data, threads = _Forward(layer), torch.get_num_threads()
    torch.set_num_threads(2)
    expected = data[0]
    torch.set_num_threads(threads)
    loader = DataLoader(data, num_workers=1, multiprocessing_context="fork", timeout=300)
    (found,) = loader
    same(found[0], expected)


@row(SECTION, "`parametrizations.orthogonal` on `weight_hh`: gradients reach the original")
def _(case: Case) -> None:
    layer, x = case.layer(), values(T, B, IN)
    parametrizations.orthogonal(layer, "weight_hh_l0", orthogonal_map="householder")
    parametrized = layer.parametrizations.weight_hh_l0
    gradient = torch.autograd.grad(layer(x)[0].square().sum(), parametrized.original)[0]
    # Through a plain layer, given the parametrization's result.
    result = parametrized()
    output = torch.func.functional_call(case.exact(), {"weight_hh_l0": result}, (x,))[0]
    expected = torch.autograd.grad(output.square().sum(), parametrized.original)[0]
    assert expected.abs().max() > 1e-6
    same(gradient, expected)


@row(SECTION, "`parametrizations.weight_norm` on `weight_hh`: trained by an optimizer")
def _(case: Case) -> None:
    found = []
    for layer in (case.layer(), case.exact()):
        parametrizations.weight_norm(layer, "weight_hh_l0")
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        before = layer.parametrizations.weight_hh_l0.original1.detach().clone()
        for _ in range(2):
            optimizer.zero_grad()
            layer(values(T, B, IN))[0].square().sum().backward()
            optimizer.step()
        found.append(layer.parametrizations.weight_hh_l0.original1)
        assert (found[-1] - before).abs().max() > 1e-3
    same(*found)


@row(SECTION, "`prune`, and the older hooks `weight_norm` and `spectral_norm`")
def _(case: Case) -> None:
    for change in (
        lambda layer: prune.l1_unstructured(layer, "weight_hh_l0", amount=0.5),
        lambda layer: nn.utils.weight_norm(layer, "weight_hh_l0"),
        lambda layer: nn.utils.spectral_norm(layer, "weight_hh_l0"),
    ):
        layer, theirs, x = case.layer(), case.exact(), values(T, B, IN)
        torch.manual_seed(2)
        change(layer)
        torch.manual_seed(2)
        change(theirs)
        same(gradients(layer, x), gradients(theirs, x))


@row(
    SECTION,
    "a weight replaced by a computed tensor (AWD-LSTM's weight drop)",
)
def _(case: Case) -> None:
    layer, x = case.layer(), values(T, B, IN)
    raw = layer._parameters.pop("weight_hh_l0")
    layer.register_parameter("raw", raw)
    layer.weight_hh_l0 = raw * 0.5
    gradient = torch.autograd.grad(layer(x)[0].square().sum(), raw)[0]
    weight = {"weight_hh_l0": (half := raw * 0.5)}
    output = torch.func.functional_call(case.exact(), weight, (x,))[0]
    same(gradient, torch.autograd.grad(output.square().sum(), half)[0] * 0.5)


@row(SECTION, "one parameter shared by two layers, and one that is frozen")
def _(case: Case) -> None:
    found = []
    for build in (case.layer, case.exact):
        pair = nn.ModuleList([build(), build()])
        pair[1].weight_hh_l0 = pair[0].weight_hh_l0
        pair[1].weight_ih_l0.requires_grad_(False)
        sum(layer(values(T, B, IN))[0].square().sum() for layer in pair).backward()
        assert pair[1].weight_ih_l0.grad is None
        found.append(pair[0].weight_hh_l0.grad)
    same(*found)


@row(SECTION, "put into a trained model by `accelerate`: Adam goes on from its state")
def _(case: Case) -> None:
    found = []
    for swap in (case.library is modules, False):
        model = nn.Sequential(case.exact())
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for step in range(4):
            if swap and step == 2:
                fastrnn.accelerate(model)
                assert type(model[0]) is getattr(modules, case.kind)
            optimizer.zero_grad()
            model(values(T, B, IN))[0].square().sum().backward()
            optimizer.step()
        found.append(list(model.parameters()))
    same(*found, atol=1e-8)


@row(
    SECTION,
    "`isinstance(module, torch.nn.RNNBase)`",
    ours="Dynamo refuses `torch.nn.RNNBase` by its type, so fastrnn does not derive from it.",
)
def _(case: Case) -> None:
    assert isinstance(case.layer(), nn.RNNBase)


@row(
    SECTION,
    "`RNNBase`'s helpers (`check_forward_args`, `get_expected_hidden_size`, ...)",
    ours="Methods that torch.nn does not document; attributes, `all_weights`, `_flat_weights` and "
    "`flatten_parameters()` are there.",
)
def _(case: Case) -> None:
    case.layer().get_expected_hidden_size(values(T, B, IN), None)
