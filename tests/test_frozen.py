"""freeze(): the same values from packed weights, dropped whenever the weights may change."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune, rnn

import fastrnn
from fastrnn import _library

pytestmark = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")

IN, H, T, B = 5, 7, 6, 4
KINDS = [
    (fastrnn.LSTM, {}),
    (fastrnn.LSTM, {"num_layers": 3}),
    (fastrnn.GRU, {}),
    (fastrnn.GRU, {"num_layers": 2, "bias": False}),
    (fastrnn.GRU, {"reset_after": False}),
    (fastrnn.RNN, {"nonlinearity": "relu", "bias": False}),
    (fastrnn.LSTM, {"num_layers": 2, "bidirectional": True, "dropout": 0.5, "zoneout": 0.3}),
    (fastrnn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 3, "zoneout": 0.3}),
    (fastrnn.LSTM, {"num_layers": 2, "layer_norm": True}),
    (fastrnn.GRU, {"layer_norm": True, "bias": False}),
]


def made(kind, options, dtype=torch.float64):
    torch.manual_seed(0)
    return kind(IN, H, dtype=dtype, **options)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_same_bits_as_in_evaluation(kind, options):
    module = made(kind, options).eval()
    x = torch.randn(T, B, IN, dtype=torch.float64)
    resets = torch.rand(T, B) < 0.3
    inputs = [
        (x, {}),
        (x[:, 0], {}),
        (x, {"resets": resets}),
        (x, {"lengths": torch.tensor([3, 6, 1, 4])}),
        (rnn.pack_sequence([x[:2, 0], x[:4, 1]], enforce_sorted=False), {}),
        (x[:, :0], {}),
    ]
    if kind is fastrnn.LSTM:
        inputs.append((x, {"return_cells": True}))
    with torch.no_grad():
        expected = [module(given, **keywords) for given, keywords in inputs]
        assert module.freeze() is module
        for (given, keywords), result in zip(inputs, expected, strict=True):
            torch.testing.assert_close(module(given, **keywords), result, rtol=0, atol=0)


def test_vmap():
    """By a rule, not by torch's fallback, which tells everybody of a performance drop."""
    module, x = made(fastrnn.LSTM, {"num_layers": 2}).eval(), torch.randn(3, T, B, IN).double()
    with torch.no_grad():
        expected = torch.stack([module(each)[0] for each in x])
        module.freeze()
        torch._C._functorch._set_vmap_fallback_enabled(False)
        try:
            found = torch.vmap(lambda x: module(x)[0])(x)
        finally:
            torch._C._functorch._set_vmap_fallback_enabled(True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_packs_keep_their_dtype_under_autocast():
    x = torch.randn(T, B, IN)
    for dtype in (torch.float32, torch.bfloat16):
        module = made(fastrnn.GRU, {"num_layers": 2}, dtype).eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            expected, _ = module(x)
            output, _ = module.freeze()(x)
        assert output.dtype == expected.dtype
        torch.testing.assert_close(output.float(), expected.float(), rtol=0, atol=0.02)


@pytest.mark.parametrize("layers", [1, 2])
def test_wrong_batch_sizes_say_so(layers):
    module = made(fastrnn.LSTM, {"num_layers": layers})
    rows = rnn.PackedSequence(torch.randn(5, IN, dtype=torch.float64), torch.tensor([2, 3]))
    with torch.no_grad(), pytest.raises(RuntimeError, match="batch_sizes must not increase"):
        module(rows)
    with torch.no_grad(), pytest.raises(ValueError, match="batch_sizes must be non-increasing"):
        module.freeze()(rows)


def test_compiles_frozen():
    module = made(fastrnn.LSTM, {"num_layers": 2}).freeze()
    x = torch.randn(T, B, IN, dtype=torch.float64)
    with torch.no_grad():
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), module(x))
        for bias in (True, False):
            weights = []
            for packed in module._frozen.packs:
                weights += [packed.weights, *([packed.bias_ih, packed.bias_hh] if bias else [])]
            args = (x, [], weights, H, "lstm", False, bias, True, False)
            torch.library.opcheck(torch.ops.fastrnn.recurrence_layers.default, args)


def test_gradients_are_an_error():
    module = made(fastrnn.GRU, {}).freeze()
    x = torch.ones(T, B, IN, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="GRU: a frozen module has no gradients.*unfreeze"):
        module(x)
    module.unfreeze()(x)[0].sum().backward()
    assert module.weight_ih_l0.grad.abs().sum() > 0


def doubled(module):
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(2)


def reloaded(module):
    module.load_state_dict({k: 2 * v for k, v in module.state_dict().items()})


@pytest.mark.parametrize(
    "change",
    [
        lambda m: (doubled(m), m.unfreeze()),
        lambda m: (doubled(m), m.train()),
        lambda m: (doubled(m), m.eval()),
        lambda m: (doubled(m), m.freeze()),
        reloaded,
        lambda m: (doubled(m), m.double()),
        lambda m: m.reset_parameters(),
        lambda m: fastrnn.init.forget_bias_(m, 5.0),
        lambda m: fastrnn.init.orthogonal_(m),
        lambda m: fastrnn.init.uniform_(nn.Sequential(m), 2.0),
    ],
    ids=[
        *("unfreeze", "train", "eval", "freeze", "load", "cast"),
        *("reset", "forget_bias", "orthogonal", "uniform"),
    ],
)
def test_what_may_change_the_weights_drops_the_packs(change):
    module = made(fastrnn.LSTM, {}, torch.float32).freeze()
    model = nn.Sequential(module)  # through a parent, too
    change(model[0])
    x = torch.randn(T, B, IN, dtype=module.weight_ih_l0.dtype)
    with torch.no_grad():
        expected = nn.LSTM(IN, H, dtype=x.dtype)
        expected.load_state_dict(module.state_dict())
        torch.testing.assert_close(module(x), expected(x))


def test_a_parents_mode_drops_the_packs():
    model = nn.Sequential(made(fastrnn.GRU, {}).freeze())
    model.train()
    model(torch.zeros(T, B, IN, dtype=torch.float64))[0].sum().backward()


def test_a_change_in_place_is_seen_after_the_next_freeze():
    module = made(fastrnn.GRU, {}).freeze()
    x = torch.randn(T, B, IN, dtype=torch.float64)
    with torch.no_grad():
        before = module(x)[0]
        doubled(module)
        assert torch.equal(module(x)[0], before)
        assert not torch.equal(module.freeze()(x)[0], before)


def test_another_parameter_in_the_place_of_a_packed_one_is_an_error():
    module = made(fastrnn.GRU, {}).freeze()
    x = torch.zeros(T, B, IN, dtype=torch.float64)
    other = {name: 2 * p for name, p in module.named_parameters()}
    with torch.no_grad(), pytest.raises(RuntimeError, match="weight_ih_l0 is not what freeze"):
        functional_call(module, other, x)


def renewed(module):
    original = module.parametrizations.weight_hh_l0
    original.original0 = nn.Parameter(2 * original.original0)


def replaced(module):
    module.weight_hh_l0 = nn.Parameter(2 * module.weight_hh_l0)


@pytest.mark.parametrize(
    ("before", "change", "name"),
    [
        (None, replaced, "weight_hh_l0"),
        (None, lambda m: prune.random_unstructured(m, "weight_hh_l0", 0.9), "weight_hh_l0"),
        (None, lambda m: parametrizations.spectral_norm(m, "weight_hh_l0"), "weight_hh_l0"),
        (parametrizations.weight_norm, renewed, "parametrizations.weight_hh_l0.original0"),
        (
            parametrizations.weight_norm,
            lambda m: parametrizations.spectral_norm(m, "weight_hh_l0"),
            "parametrizations.weight_hh_l0.1",
        ),
        (
            parametrizations.weight_norm,
            lambda m: parametrize.remove_parametrizations(m, "weight_hh_l0"),
            "weight_hh_l0",
        ),
        (
            lambda m, name: prune.l1_unstructured(m, name, 0.1),
            lambda m: prune.random_unstructured(m, "weight_hh_l0", 0.5),
            "weight_hh_l0_mask",
        ),
    ],
    ids=["replaced", "prune", "spectral", "original", "another", "removed", "mask"],
)
def test_weights_made_of_something_else_are_an_error(before, change, name):
    module = made(fastrnn.GRU, {})
    if before is not None:
        before(module, "weight_hh_l0")
    module.freeze()
    x = torch.randn(T, B, IN, dtype=torch.float64)
    with torch.no_grad():
        module(x)
        change(module)
        with pytest.raises(RuntimeError, match=rf"GRU: {name} is not what freeze\(\) packed: call"):
            module(x)
        expected = module.unfreeze()(x)[0]
        assert torch.equal(module.freeze()(x)[0], expected)


def test_copies_and_pickles_are_not_frozen():
    module = made(fastrnn.GRU, {}).freeze()
    x = torch.randn(T, B, IN, dtype=torch.float64)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert other._frozen is None
        other(x)[0].sum().backward()  # would raise
    with torch.no_grad():
        assert torch.equal(other(x)[0], module(x)[0])


def test_parametrized_weights_are_computed_once():
    module = parametrizations.weight_norm(made(fastrnn.GRU, {}), "weight_hh_l0").eval()
    x = torch.randn(T, B, IN, dtype=torch.float64)
    calls = []
    module.parametrizations.weight_hh_l0[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        expected = module(x)
        module.freeze()
        calls.clear()
        torch.testing.assert_close(module(x), expected, rtol=0, atol=0)
    assert not calls


def test_refuses_what_the_kernels_cannot_run():
    with pytest.raises(RuntimeError, match=r"GRU.freeze: the native backend.*float16"):
        fastrnn.GRU(IN, H, dtype=torch.float16).freeze()
    module = made(fastrnn.LSTM, {}).freeze()
    assert "weights packed" in fastrnn.explain(module)
    with fastrnn.use_backend("reference"), torch.no_grad():
        with pytest.raises(RuntimeError, match="need the native backend: reference was asked for"):
            module(torch.zeros(T, B, IN, dtype=torch.float64))
        with pytest.raises(RuntimeError, match="LSTM.freeze: .*reference was asked for"):
            module.freeze()


@pytest.mark.parametrize("write", [torch.export.export, torch.jit.trace])
def test_cannot_be_exported_frozen(write):
    """Another instruction set's packs may be as large: a saved trace was silently wrong there."""
    module = made(fastrnn.GRU, {}).freeze()
    with torch.no_grad(), pytest.raises(Exception, match="packed weights are for this process"):
        write(module, (torch.zeros(T, B, IN, dtype=torch.float64),))
