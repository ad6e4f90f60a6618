"""`accelerate`: our modules in a model's place of torch.nn's, everything they hold kept."""

import copy
import gc
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from fastrnn import modules
from fastrnn.modules import accelerate

ALL = ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"]
IN, H, T, B = 4, 6, 5, 3


def call(module):
    """A module's first result on a fixed input."""
    generator = torch.Generator().manual_seed(3)
    shape = (B, IN) if "Cell" in type(module).__name__ else (T, B, IN)
    result = module(torch.randn(shape, generator=generator, dtype=module_dtype(module)))
    return result if isinstance(result, torch.Tensor) else result[0]


def module_dtype(module):
    return next(module.parameters()).dtype


@pytest.mark.parametrize("name", ALL)
def test_a_root_is_replaced_and_holds_the_same_parameters(name):
    root = getattr(nn, name)(IN, H, dtype=torch.float64)
    root.bias_extra = nn.Parameter(torch.ones(1))
    root.register_buffer("steps", torch.zeros(2))
    root.note = ["kept"]
    next(root.parameters()).requires_grad_(False)
    root.eval()
    parameters, buffers = dict(root.named_parameters()), dict(root.named_buffers())
    expected, text, state = call(root), repr(root), torch.get_rng_state()
    ours = accelerate(root)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was initialised again
    assert type(ours) is getattr(modules, name)
    assert list(dict(ours.named_parameters())) == list(parameters)
    assert all(p is parameters[key] for key, p in ours.named_parameters())
    assert all(b is buffers[key] for key, b in ours.named_buffers()) and "steps" in buffers
    assert not next(ours.parameters()).requires_grad
    assert ours.training is False and ours.note is root.note
    assert repr(ours) == text
    torch.testing.assert_close(call(ours), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(call(copy.deepcopy(ours)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RNN", {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True}),
        ("GRU", {"num_layers": 2, "bias": False, "dropout": 0.5}),
        ("LSTM", {"proj_size": 3, "num_layers": 2}),
        ("LSTM", {"batch_first": True, "bidirectional": True}),
        ("RNNCell", {"nonlinearity": "relu", "bias": False}),
    ],
)
def test_options_are_kept(name, options):
    root = getattr(nn, name)(IN, H, dtype=torch.float64, **options)
    torch.manual_seed(0)
    expected = call(root)
    ours = accelerate(root)
    torch.manual_seed(0)
    torch.testing.assert_close(call(ours), expected, rtol=0, atol=1e-10)
    assert [len(w) for w in ours.state_dict().values()] == [
        len(w) for w in root.state_dict().values()
    ]


class Tagger(nn.Module):
    """Recurrent modules in every kind of container, one of them twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, IN)
        self.shared = nn.GRU(IN, IN)
        self.stack = nn.ModuleList([nn.LSTM(IN, IN), self.shared])
        self.table = nn.ModuleDict({"cell": nn.GRUCell(IN, IN), "again": self.shared})
        self.tail = nn.Sequential(nn.Linear(IN, IN), nn.Sequential(nn.RNN(IN, IN)))
        self.none = None
        self.register_module("absent", None)

    def forward(self, tokens):
        x = self.shared(self.stack[0](self.embed(tokens))[0])[0]
        x = torch.stack([self.table["cell"](step) for step in x])
        return self.tail(self.table["again"](x)[0])[0]


def test_containers_and_aliases():
    model = Tagger().double()
    tokens = torch.arange(6).view(3, 2)
    keys, parameters = list(model.state_dict()), list(model.parameters())
    expected = model(tokens)
    gradients = torch.autograd.grad(expected.sum(), parameters)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert accelerate(model) is model
    assert type(model.stack[0]) is modules.LSTM and type(model.shared) is modules.GRU
    assert model.stack[1] is model.shared and model.table["again"] is model.shared
    assert type(model.table["cell"]) is modules.GRUCell
    assert type(model.tail[1][0]) is modules.RNN and type(model.tail[0]) is nn.Linear
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    result = model(tokens)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)
    result.sum().backward()
    torch.testing.assert_close([p.grad for p in parameters], list(gradients), rtol=0, atol=1e-10)
    optimizer.step()  # an optimizer made before still trains the model
    assert not torch.allclose(model(tokens), expected)
    before = [type(m) for m in model.modules()]
    accelerate(model)  # once more changes nothing
    assert [type(m) for m in model.modules()] == before


def test_hooks_are_kept_and_removable():
    root, calls = nn.LSTM(IN, H), []

    def note(word):
        return lambda *_: calls.append(word)

    handles = [
        root.register_forward_pre_hook(note("pre")),
        root.register_forward_hook(note("forward")),
        root.register_full_backward_pre_hook(note("backward pre")),
        root.register_full_backward_hook(note("backward")),
        root.register_state_dict_pre_hook(note("state pre")),
        root.register_state_dict_post_hook(note("state post")),
        root.register_load_state_dict_pre_hook(note("load pre")),
        root.register_load_state_dict_post_hook(note("load post")),
    ]
    model = nn.Sequential(root)
    del root
    accelerate(model)
    gc.collect()  # the module that the load hook was bound to is gone
    words = ["pre", "forward", "backward pre", "backward"]
    words += ["state pre", "state post", "load pre", "load post"]
    for expected in (words, []):
        x = torch.randn(T, B, IN, requires_grad=True)
        model(x)[0].sum().backward()
        model.load_state_dict(model.state_dict())
        assert calls == expected
        for handle in handles:
            handle.remove()
        calls.clear()


def test_a_hook_sees_the_replacement():
    root, seen = nn.GRU(IN, H), []
    root.register_forward_hook(lambda module, *_: seen.append(module))
    root.register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    ours = accelerate(root)
    call(ours)
    ours.load_state_dict(ours.state_dict())
    assert len(seen) == 2 and seen[0] is ours and seen[1] is ours


def test_weights_rewritten_by_hooks_still_are():
    for change in (
        lambda m: prune.random_unstructured(m, "weight_hh_l0", amount=0.5),
        lambda m: nn.utils.weight_norm(m, "weight_hh_l0"),
    ):
        root = nn.LSTM(IN, H, dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            change(root)
        names, expected = [name for name, _ in root.named_parameters()], call(root)
        ours = accelerate(root)
        torch.testing.assert_close(call(ours), expected, rtol=0, atol=1e-10)
        assert [name for name, _ in ours.named_parameters()] == names
        grads = torch.autograd.grad(call(ours).sum(), list(ours.parameters()))
        assert all(g.abs().max() > 0 for g in grads)


class Custom(nn.LSTM):
    """A subclass, whose behaviour only its author knows."""


def test_what_is_not_exactly_torchs_is_left_alone_and_named():
    model = nn.ModuleDict({name: nn.GRU(IN, H) for name in ("plain", "normed", "patched", "fast")})
    model["custom"] = Custom(IN, H)
    parametrizations.weight_norm(model["normed"], "weight_hh_l0")
    model["patched"].forward = lambda *_: None
    model["fast"].compile(backend="eager")
    model["wrapped"] = torch.compile(nn.GRU(IN, H), backend="eager")
    before = dict(model.items())
    with pytest.warns(UserWarning, match="accelerate left alone") as caught:
        accelerate(model)
    assert len(caught) == 1 and caught[0].filename == __file__
    text = str(caught[0].message)
    assert type(model["plain"]) is modules.GRU and "plain" not in text
    assert "normed (a subclass, ParametrizedGRU)" in text
    assert "patched (its forward is patched)" in text and "fast (it is compiled already)" in text
    assert "custom (a subclass, Custom)" in text
    assert "wrapped._orig_mod (it is compiled already)" in text
    assert all(model[name] is before[name] for name in before if name != "plain")
    assert isinstance(model["wrapped"]._orig_mod, nn.GRU)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_torchscript_has_compiled_is_left_alone_and_named():
    x = torch.randn(T, B, IN)
    scripted = torch.jit.script(nn.Sequential(nn.GRU(IN, H)))
    traced = torch.jit.trace(nn.Sequential(nn.Linear(IN, IN), nn.LSTM(IN, H)), (x,))
    model = nn.ModuleDict({"plain": nn.RNN(IN, H), "scripted": scripted, "traced": traced})
    with pytest.warns(UserWarning, match="accelerate left alone") as caught:
        accelerate(model)
    text = str(caught.pop(UserWarning).message)
    assert text.count("(it is part of a TorchScript program)") == 2
    assert "scripted.0 (" in text and "traced.1 (" in text
    assert type(model["plain"]) is modules.RNN and model["scripted"] is scripted


def test_a_root_subclass_is_returned_with_a_warning():
    root = Custom(IN, H)
    with pytest.warns(UserWarning, match=r"the model \(a subclass, Custom\)"):
        assert accelerate(root) is root


def test_not_a_module():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got list"):
        accelerate([nn.LSTM(IN, H)])
