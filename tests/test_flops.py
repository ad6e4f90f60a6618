"""`FlopCounterMode` counts of our operators what it counts of Linear layers in their place."""

import subprocess
import sys
from math import prod

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import fastrnn
from fastrnn import _library

pytestmark = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")
T, B, IN, H, P = 5, 3, 4, 6, 2
CASES = [
    ("LSTM", {}),
    ("GRU", {}),
    ("GRU", {"reset_after": False, "num_layers": 2}),
    ("RNN", {"bias": False, "num_layers": 2}),
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
    ("RNN", {"num_layers": 3, "dropout": 0.5}),
    ("LSTM", {"proj_size": P}),
    ("GRU", {"layer_norm": True, "num_layers": 2}),
    ("LSTM", {"zoneout": 0.1, "bidirectional": True}),
]
# These operators always have the gradient of the first state, too.
ALWAYS = ("proj_size", "layer_norm", "zoneout")


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


class Linears(nn.Module):
    """A layer's products, step by step; what lies between them costs nothing."""

    def __init__(self, name, input_size, proj_size=0):
        super().__init__()
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[name]
        self.of_input = nn.Linear(input_size, gates * H)
        self.of_state = nn.Linear(proj_size or H, gates * H)
        self.projection = nn.Linear(H, proj_size) if proj_size else nn.Identity()

    def forward(self, rows, h):
        outputs = []
        for x in self.of_input(rows):
            h = self.projection((x + self.of_state(h))[:, :H])
            outputs.append(h)
        return torch.stack(outputs)


def in_linears(name, x, first, options):
    """The loss of the same layers, whose first states are `first`."""
    ways, proj_size = 1 + options.get("bidirectional", False), options.get("proj_size", 0)
    for _ in range(options.get("num_layers", 1)):
        each = [Linears(name, x.size(-1), proj_size)(x, first) for _ in range(ways)]
        x = torch.cat(each, -1)
    return x.sum()


@pytest.mark.parametrize(
    ("name", "options", "input_grad", "state_grad"),
    [
        (*case, input_grad, state_grad)
        for case in CASES
        for input_grad, state_grad in [(True, True), (False, True), (True, False)]
        if state_grad or not any(option in case[1] for option in ALWAYS)
    ],
)
def test_layers(name, options, input_grad, state_grad):
    module = getattr(fastrnn, name)(IN, H, **options)
    x = torch.randn(T, B, IN, requires_grad=input_grad)
    count = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    h = torch.randn(count, B, options.get("proj_size", H), requires_grad=state_grad)
    hx = (h, torch.randn(count, B, H)) if name == "LSTM" else h
    expected = counted(lambda: in_linears(name, x, h[0], options).backward())
    assert counted(lambda: module(x, hx)[0].sum().backward()) == expected
    x, h = x.detach(), h.detach()
    hx = (h, torch.randn(count, B, H)) if name == "LSTM" else h
    with torch.no_grad():
        alone = counted(lambda: in_linears(name, x, h[0], options))
        assert counted(lambda: module(x, hx)) == alone
        module.eval().freeze()
        assert counted(lambda: module(x, hx)) == alone


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": P}])
def test_packed_rows(options):
    """Of lengths 5, 2 and 1: as many as of 8 steps of one sequence."""
    module = fastrnn.LSTM(IN, H, **options)
    ways = 1 + options.get("bidirectional", False)
    h, c = (torch.randn(ways, 1, n, requires_grad=True) for n in (options.get("proj_size", H), H))
    x = torch.randn(8, 1, IN, requires_grad=True)
    expected = counted(lambda: module(x, (h, c))[0].sum().backward())
    hx = tuple(s.detach().expand(-1, 3, -1).clone().requires_grad_() for s in (h, c))
    padded = torch.randn(5, 3, IN, requires_grad=True)
    found = counted(lambda: module(padded, hx, lengths=[5, 2, 1])[0].sum().backward())
    assert found == expected
    frozen = module.eval().freeze()
    with torch.no_grad():
        rows = counted(lambda: frozen(x))
        assert counted(lambda: frozen(padded.detach(), lengths=[5, 2, 1])) == rows > 0


def test_cells_and_compiled_layers():
    cell, x = fastrnn.GRUCell(IN, H), torch.randn(B, IN)
    h = torch.randn(B, H, requires_grad=True)
    expected = counted(lambda: in_linears("GRU", x[None], h, {}).backward())
    assert counted(lambda: cell(x, h).sum().backward()) == expected
    module = fastrnn.GRU(IN, H, 2)
    run, x = torch.compile(lambda x: module(x), backend="aot_eager"), torch.randn(T, B, IN)
    counts = [counted(lambda f=f: f(x)[0].sum().backward()) for f in (module, run, run)]
    assert len(set(counts)) == 1


def test_projected_rows_alone():
    x, state = torch.randn(T, B, 4 * H), torch.randn(2, B, H)
    weight_hh = torch.randn(4 * H, H)
    found = counted(lambda: fastrnn.recurrence("lstm", x, state, None, weight_hh))
    assert found == 2 * T * B * weight_hh.numel()


def test_attention():
    """As torch counts its fused attention."""
    shapes = (2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)
    q, k, v = (torch.randn(shape, requires_grad=True) for shape in shapes)
    forward = sdpa_flop_count(*shapes)
    with torch.no_grad():
        assert counted(lambda: fastrnn.masked_attention(q, k, v)) == forward
    both = forward + sdpa_backward_flop_count((2, 3, 5, 6), *shapes)
    assert counted(lambda: fastrnn.masked_attention(q, k, v).sum().backward()) == both


def test_loss():
    hidden, weight = (torch.randn(n, 8, requires_grad=True) for n in (6, 9))
    bias, target = torch.randn(9), torch.randint(9, (6,))
    expected = counted(lambda: F.cross_entropy(F.linear(hidden, weight, bias), target).backward())
    loss = fastrnn.linear_cross_entropy
    assert counted(lambda: loss(hidden, weight, bias, target).backward()) == expected
    with torch.no_grad():
        assert counted(lambda: loss(hidden, weight, bias, target)) == expected // 3


@pytest.mark.parametrize("first", ["torch.utils.flop_counter", "fastrnn"])
def test_whichever_is_imported_first(first):
    last = "torch.utils.flop_counter" if first == "fastrnn" else "fastrnn"
    code = (
        f"import sys, torch, {first}\n"
        "print('torch.utils.flop_counter' in sys.modules)\n"
        f"import {last}\n"
        "counter = torch.utils.flop_counter.FlopCounterMode(display=False)\n"
        "with counter: fastrnn.GRU(4, 6)(torch.randn(5, 3, 4))\n"
        "print(counter.get_total_flops())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    imported, flops = done.stdout.split()
    assert imported == str(first != "fastrnn")
    assert int(flops) == 2 * T * B * prod((3, H, IN + H))
