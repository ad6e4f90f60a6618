"""What each feature costs: one training step with it, and without it (the plain path)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from benchmarks.cases import Case, Work
from benchmarks.layers import (
    WORDS,
    Shape,
    assert_close,
    forward_multiply_adds,
    forward_numbers,
    pair,
)

# Name -> options of the module, arguments of the call; made for each shape.
OPTIONS: dict[str, dict[str, Any]] = {
    "zoneout": {"zoneout": 0.1},
    "weight_dropout": {"weight_dropout": 0.3},
    "variational": {"dropout": 0.3, "variational": True},
    "layer_norm": {"layer_norm": True},
    "recompute": {"recompute": True},
}
STEP = Shape(1, 1, 512, 512, 1)
FEATURES = ("lengths", "packed", "resets", "return_cells", "proj_size", *OPTIONS)


def cases() -> Iterator[Case]:
    """Every row of this suite."""
    for name, shape in (*((name, WORDS) for name in FEATURES), ("proj_size", STEP)):
        columns = {"feature": name, "cell": "lstm", "mode": "train", **shape._asdict()}
        build = partial(feature, name, shape)
        yield Case("features", f"{name}/{shape}", build, columns, quick=name == "lengths")


def half_lengths(shape: Shape) -> Tensor:
    """Lengths from 1 to T whose mean is T / 2, or a half more."""
    lengths = torch.linspace(1, shape.T, shape.B).round().long()
    surplus = int(lengths.sum() - shape.T * shape.B / 2)
    lengths[1 : 1 + surplus] -= 1
    return lengths


def feature(name: str, shape: Shape) -> Work:
    """An LSTM with the feature; compared with itself without, and with torch's."""
    options = {"proj_size": shape.H // 2} if name == "proj_size" else OPTIONS.get(name, {})
    plain, torch_nn = pair("lstm", shape)
    ours = fastrnn.LSTM(shape.I, shape.H, shape.L, **options)
    if name == "proj_size":
        torch_nn = nn.LSTM(shape.I, shape.H, shape.L, **options)
        ours.load_state_dict(torch_nn.state_dict())
    else:
        ours.load_state_dict(plain.state_dict(), strict=False)  # gains are its own
    x = torch.randn(shape.T, shape.B, shape.I, requires_grad=True)
    grads = torch.randn(shape.T, shape.B, shape.H)
    given: Any = x
    call: dict[str, Any] = {}
    share = 1.0
    peer, peer_name = partial(torch_nn, x), "torch.nn"
    if name == "lengths":
        lengths = half_lengths(shape)
        call["lengths"] = lengths
        share = float(lengths.sum()) / (shape.T * shape.B)
        peer_name = "torch.nn packed"

        def peer() -> tuple[Any, ...]:
            output, state = torch_nn(pack_padded_sequence(x, lengths, enforce_sorted=False))
            return nn.utils.rnn.pad_packed_sequence(output, total_length=shape.T)[0], state
    elif name == "packed":
        given = pack_padded_sequence(x, half_lengths(shape), enforce_sorted=False)
        given = given._replace(data=given.data.detach().requires_grad_())
        share = given.data.size(0) / (shape.T * shape.B)
        peer, peer_name = partial(torch_nn, given), "torch.nn packed"
    elif name == "resets":
        call["resets"] = torch.rand(shape.T, shape.B) < 0.1
    elif name == "return_cells":
        call["return_cells"] = True

    multiply_adds = forward_multiply_adds("lstm", shape)
    if name == "proj_size":
        units = shape.I + (2 * shape.L - 1) * options["proj_size"]
        projections = shape.L * options["proj_size"]
        multiply_adds = shape.T * shape.B * shape.H * (4 * units + projections)

    leaf = given.data if name == "packed" else x

    def step(module: nn.Module, forward: Any) -> None:
        module.zero_grad()
        x.grad = leaf.grad = None
        output = forward()[0]
        if isinstance(output, PackedSequence):
            output = output.data
        # As many of the gradient's numbers as there are, in one shape or another.
        output.backward(grads.flatten()[: output.numel()].view_as(output))

    with_it = partial(ours, given, **call)

    def check() -> None:
        """Against the definition, the reference backend; the same masks by the same seed."""
        found = []
        for backend in ("auto", "reference"):
            torch.manual_seed(1)
            with fastrnn.use_backend(backend):
                step(ours, with_it)
            assert leaf.grad is not None
            found.append([leaf.grad, *(p.grad for p in ours.parameters())])
        assert_close(*found)

    return Work(
        {
            "ours": partial(step, ours, with_it),
            "plain": partial(step, plain, partial(plain, x)),
            peer_name: partial(step, torch_nn, peer),
        },
        check,
        int(3 * share * multiply_adds),
        bytes=12 * forward_numbers("lstm", shape),
        barriers=2 * shape.T * shape.L,
    )
