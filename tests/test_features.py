"""weight_dropout, variational, recompute; and what all options have in common."""

import copy
import pickle

import pytest
import torch
from module_pairs import IN, B, H, T, tensor, tensors
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import rnn

import fastrnn
from fastrnn import _library
from fastrnn._dropout import dropout

OPTIONS = [
    {"zoneout": 0.3},
    {"weight_dropout": 0.3},
    {"dropout": 0.3, "variational": True},
    {"layer_norm": True},
    {"recompute": True},
    {"recompute": True, "zoneout": 0.3, "dropout": 0.3, "weight_dropout": 0.2},
]


def lstm(**options):
    torch.manual_seed(0)
    return fastrnn.LSTM(IN, H, 2, bidirectional=True, dtype=torch.float64, **options)


def seeded(function, *args, **options):
    torch.manual_seed(1)
    return function(*args, **options)


def test_weight_dropout_drops_recurrent_weights_once_per_pass():
    torch.manual_seed(0)
    p, hidden = 0.25, 200
    module = fastrnn.RNN(1, hidden, bias=False, weight_dropout=p, dtype=torch.float64)
    with torch.no_grad():
        module.weight_hh_l0.fill_(1e-6)  # tanh is linear here: a row's sum counts what is left
        module.weight_ih_l0.zero_()
    h = torch.ones(1, 2, hidden, dtype=torch.float64)
    sums = [module(torch.zeros(1, 2, 1, dtype=torch.float64), h)[0][0] for _ in range(3)]
    for first, second in zip(sums, sums[1:], strict=False):
        assert not torch.equal(first, second)
    for found in sums:
        assert torch.equal(found[0], found[1])  # the mask is the same for every sequence
        kept = found[0] / 1e-6 * (1 - p)
        torch.testing.assert_close(kept, kept.round())
        spread = (p * (1 - p) / hidden**2) ** 0.5
        assert abs(kept.sum() / hidden**2 - (1 - p)) < 5 * spread
    module.eval()
    found = module(torch.zeros(1, 2, 1, dtype=torch.float64), h)[0]
    torch.testing.assert_close(found, torch.full_like(found, hidden * 1e-6))


def test_weight_dropout_is_one_mask_for_all_steps_and_reaches_the_parameter():
    module, x = lstm(weight_dropout=0.5), tensor(T, B, IN)
    found = seeded(module, x)[0]
    torch.manual_seed(1)
    names = [name for name in module.state_dict() if "weight_hh" in name]
    masks = {name: dropout(torch.ones(4 * H, H).double(), 0.5) for name in names}
    weights = {name: getattr(module, name) * mask for name, mask in masks.items()}
    expected = functional_call(lstm(), {**dict(module.named_parameters()), **weights}, (x,))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    found.sum().backward()
    for name, mask in masks.items():
        gradient = getattr(module, name).grad
        assert gradient[mask == 0].abs().max() == 0 < gradient[mask > 0].abs().min()
    assert list(module.state_dict()) == list(lstm().state_dict())


@pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")
@pytest.mark.parametrize("options", [OPTIONS[1], OPTIONS[2], OPTIONS[4]])
def test_options_outside_the_recurrence_run_natively(options):
    with fastrnn.use_backend("native"):
        lstm(**options)(tensor(T, B, IN), lengths=[2, 5, 3])


@pytest.mark.parametrize("form", ["padded", "packed", "unsorted", "lengths"])
def test_variational_dropout_is_one_mask_per_sequence(form):
    # The second layer passes on what reaches it: the first layer's output, with its mask.
    p, lengths = 0.5, [T] * B if form == "padded" else [5, 4, 2]
    module = fastrnn.RNN(IN, H, 2, nonlinearity="relu", bias=False, dropout=p, variational=True)
    with torch.no_grad():
        module.weight_ih_l1.copy_(torch.eye(H))
        module.weight_hh_l1.zero_()
        module.weight_ih_l0.abs_()
        module.weight_hh_l0.abs_()
    if form in ("unsorted", "lengths"):
        lengths = [2, 5, 4]
    x = torch.rand(T, B, IN)
    lower = fastrnn.RNN(IN, H, nonlinearity="relu", bias=False)
    lower.load_state_dict({k: v for k, v in module.state_dict().items() if "_l0" in k})
    ratios = {}
    for chosen in (form, "lengths"):
        if chosen in ("padded", "lengths"):
            found = seeded(module, x, lengths=None if chosen == "padded" else lengths)[0]
        else:
            packed = rnn.pack_padded_sequence(x, lengths, enforce_sorted=chosen == "packed")
            found = rnn.pad_packed_sequence(seeded(module, packed)[0])[0]
        ratios[chosen] = found / lower(x)[0]
    ratio = ratios[form]
    masks = set()
    for b, n in enumerate(lengths):
        mask = ratio[0, b].round()
        assert set(mask.tolist()) <= {0.0, 1 / (1 - p)}
        torch.testing.assert_close(ratio[:n, b], mask.expand(n, H))
        masks.add(tuple(mask.tolist()))
    assert len(masks) > 1
    torch.testing.assert_close(ratio, ratios["lengths"])  # whichever way it is packed
    module.eval()
    torch.testing.assert_close(module(x)[0], lower(x)[0])


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
def test_recompute_gives_the_same_bits_and_saves_less(kind, backend):
    options = {"zoneout": 0.3, "weight_dropout": 0.2, "dropout": 0.2} if backend != "auto" else {}
    torch.manual_seed(0)
    module = kind(IN, 32, 2, bidirectional=True, **options)
    x, results, saved = torch.randn(20, B, IN, requires_grad=True), {}, {}
    for recompute in (False, True):
        module.recompute, sizes = recompute, {}

        def note(t, sizes=sizes):
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with (
            fastrnn.use_backend(backend),
            torch.autograd.graph.saved_tensors_hooks(note, lambda t: t),
        ):
            output, last = seeded(module, x, lengths=[20, 13, 7])
            held = sum(sizes.values())
            total = output.square().sum() + sum(s.sum() for s in tensors(last))
            gradients = torch.autograd.grad(total, [x, *module.parameters()])
        results[recompute], saved[recompute] = [output, *tensors(last), *gradients], held
    assert all(map(torch.equal, results[False], results[True]))
    assert saved[True] < 0.7 * saved[False]


def test_recompute_twice_differentiable():
    module, x = fastrnn.GRU(2, 3, recompute=True, dtype=torch.float64), tensor(3, 2, 2)

    def run(x, *weights):
        names = [name for name, _ in module.named_parameters()]
        return functional_call(module, dict(zip(names, weights, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(run, (x, *module.parameters()))
    assert torch.autograd.gradgradcheck(run, (x, *module.parameters()))


@pytest.mark.parametrize("options", OPTIONS)
def test_compiles_into_one_graph(options):
    layers = 2 if "variational" in options or "recompute" in options else 1
    module, x = fastrnn.LSTM(IN, H, layers, dtype=torch.float64, **options), tensor(3, B, IN)
    torch._dynamo.reset()  # what other tests compiled counts as recompilation
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for call in (compiled, module):
        output, last, cells = seeded(call, x, return_cells=True)
        total = output.sum() + cells.square().sum() + last[1].sum()
        gradients = torch.autograd.grad(total, [x, *module.parameters()])
        results.append((output, last, cells, gradients))
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS)
def test_per_sample_gradients(options):
    module, x = lstm(**options), tensor(T, B, IN).detach()
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters, sequence):
        return functional_call(module, parameters, (sequence,))[0].square().sum()

    module.eval()
    found = vmap(grad(loss), (None, 1))(parameters, x)
    for b in range(B):
        expected = grad(loss)(parameters, x[:, b])
        for name, value in expected.items():
            torch.testing.assert_close(found[name][b], value, rtol=1e-9, atol=1e-12)
    module.train()
    vmap(grad(loss), (None, 1), randomness="different")(parameters, x)


@pytest.mark.parametrize("options", OPTIONS)
def test_copies_pickles_and_state_dicts(options):
    module, x = lstm(**options), tensor(T, B, IN)
    expected = seeded(module, x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(other) == repr(module)
        torch.testing.assert_close(seeded(other, x), expected, rtol=0, atol=0)
    other = lstm(**options)
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(seeded(other, x), expected, rtol=0, atol=0)
    if "layer_norm" not in options:
        theirs = nn.LSTM(IN, H, 2, bidirectional=True, dtype=torch.float64)
        theirs.load_state_dict(module.state_dict())
        module.load_state_dict(theirs.state_dict())


def test_repr_shows_what_is_not_torchs():
    theirs = nn.GRU(IN, H, 2, bias=False, batch_first=True, dropout=0.1, bidirectional=True)
    ours = fastrnn.GRU(IN, H, 2, bias=False, batch_first=True, dropout=0.1, bidirectional=True)
    assert repr(ours) == repr(theirs)
    module = fastrnn.LSTM(IN, H, zoneout=(0.1, 0.2), weight_dropout=0.3, recompute=True)
    text = "LSTM(4, 6, zoneout=(0.1, 0.2), weight_dropout=0.3, recompute=True)"
    assert repr(module) == text


def test_accelerated_modules_have_the_options_off():
    module = fastrnn.accelerate(nn.LSTM(IN, H, 2, dtype=torch.float64))
    x = tensor(T, B, IN)
    output, _, cells = module(x, lengths=[2, 5, 3], return_cells=True)
    expected = module(x[:2, 0], return_cells=True)
    torch.testing.assert_close(output[:2, 0], expected[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(cells[:2, 0], expected[2], rtol=0, atol=1e-12)
    assert not {"zoneout", "layer_norm"} & set(vars(module))
    module.zoneout = 0.5  # and may be given one
    assert not torch.equal(module(x)[0], output)
    copy.deepcopy(module)(x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight_dropout": 1.5}, ValueError, r"weight_dropout should be a number in range \[0, 1"),
        ({"weight_dropout": None}, TypeError, "weight_dropout should be a number, got: NoneType"),
        ({"variational": 1}, TypeError, "variational should be of type bool, got: int"),
        ({"layer_norm": "yes"}, TypeError, "layer_norm should be of type bool, got: str"),
        ({"recompute": None}, TypeError, "recompute should be of type bool, got: NoneType"),
        ({"bidirectional": "no"}, TypeError, "bidirectional should be of type bool, got: str"),
        ({"zonout": 0.1}, TypeError, r"{}\(\) .* argument 'zonout', did you mean 'zoneout'\?$"),
        ({"bidirect": 1}, TypeError, r"{}\(\) .*'bidirect', did you mean 'bidirectional'\?$"),
        ({"mode": "GRU"}, TypeError, r"{}\(\) got an unexpected keyword argument 'mode'"),
    ],
)
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_bad_options(name, options, error, message):
    with pytest.raises(error, match=message.format(name)) as raised:
        getattr(fastrnn, name)(IN, H, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [fastrnn.GRU, fastrnn.GRUCell])
def test_reset_after_is_a_bool(kind):
    with pytest.raises(TypeError, match="reset_after should be of type bool, got: str"):
        kind(IN, H, reset_after="no")


def test_bidirectional_may_be_one_as_in_torch():
    assert len(fastrnn.LSTM(IN, H, bidirectional=1).all_weights) == 2
