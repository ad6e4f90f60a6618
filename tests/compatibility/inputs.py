"""What can be put in."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import rnn

from tests.compatibility.table import IN, B, Case, H, T, gradients, row, same, values

SECTION = "Input and state"
STACK = {"num_layers": 2, "bidirectional": True}


def equal(case: Case, *args: object, **options: object) -> None:
    """Same results and gradients as torch.nn, for the parameters and for every argument."""
    ours, theirs = case.layer(**options), case.exact(**options)
    same(ours(*args), theirs(*args))
    same(gradients(ours, *args), gradients(theirs, *args))


@row(SECTION, "stacked, bidirectional, `batch_first`")
def _(case: Case) -> None:
    equal(case, values(B, T, IN), batch_first=True, **STACK)


@row(SECTION, "`proj_size`", kinds=("LSTM",))
def _(case: Case) -> None:
    equal(case, values(T, B, IN), proj_size=3, **STACK)


@row(SECTION, "unbatched")
def _(case: Case) -> None:
    equal(case, values(T, IN), case.hx(4, H), **STACK)


@row(SECTION, "`hx` for each layer and direction, with gradients")
def _(case: Case) -> None:
    x, hx = values(T, B, IN).requires_grad_(), case.hx(4, B, H)
    states = hx if isinstance(hx, tuple) else (hx,)
    for state in states:
        state.requires_grad_()
    ours, theirs = case.layer(**STACK), case.exact(**STACK)
    same(gradients(ours, x, hx, inputs=(x, *states)), gradients(theirs, x, hx, inputs=(x, *states)))


@row(SECTION, "non-contiguous input and weights")
def _(case: Case) -> None:
    layer, theirs = case.layer(), case.exact()
    with torch.no_grad():
        for weight in (layer.weight_ih_l0, layer.weight_hh_l0):
            weight.set_(weight.T.contiguous().T)
    for x in (values(IN, B, T).permute(2, 1, 0), values(2 * T, B, 2 * IN)[::2, :, ::2]):
        same(layer(x), theirs(x))
        same(gradients(layer, x), gradients(theirs, x))


@row(SECTION, "expanded input and `hx`")
def _(case: Case) -> None:
    hx = case.hx(1, 1, H)
    hx = tuple(h.expand(1, B, H) for h in hx) if isinstance(hx, tuple) else hx.expand(1, B, H)
    equal(case, values(T, 1, IN).expand(T, B, IN), hx)


@row(SECTION, "`PackedSequence`, sorted")
def _(case: Case) -> None:
    equal(case, rnn.pack_sequence([values(n, IN) for n in (5, 3, 3)]), **STACK)


@row(SECTION, "`PackedSequence`, unsorted, with `hx`")
def _(case: Case) -> None:
    parts = [values(n, IN, seed=n) for n in (3, 5, 2)]
    packed = rnn.pack_sequence(parts, enforce_sorted=False)
    equal(case, packed, case.hx(4, B, H), **STACK)


@row(SECTION, "batch of zero sequences")
def _(case: Case) -> None:
    equal(case, values(T, 0, IN))


@row(SECTION, "arguments by keyword")
def _(case: Case) -> None:
    x, hx = values(T, B, IN), case.hx(1, B, H)
    same(case.layer()(input=x, hx=hx), case.exact()(x, hx))


@row(SECTION, "NaN in one sequence stays in it")
def _(case: Case) -> None:
    x = values(T, B, IN)
    clean = case.layer()(x)[0]
    x[2, 1, 0] = float("nan")
    dirty = case.layer()(x)[0]
    assert dirty[2:, 1].isnan().all()
    dirty[2:, 1] = clean[2:, 1]
    same(dirty, clean)


@row(SECTION, "float16, bfloat16 and complex modules")
def _(case: Case) -> None:
    exact = case.exact()(values(T, B, IN))[0]
    for dtype, atol in ((torch.float16, 4e-3), (torch.bfloat16, 3e-2), (torch.complex64, 1e-5)):
        output = case.layer().to(dtype)(values(T, B, IN, dtype=dtype))[0]
        assert output.dtype == dtype
        same(output.to(torch.complex128).real, exact, atol)


@row(SECTION, "meta and fake tensors")
def _(case: Case) -> None:
    meta = case.layer(device="meta")(torch.empty(T, B, IN, dtype=torch.float64, device="meta"))
    with FakeTensorMode():
        fake = case.layer()(torch.empty(T, B, IN, dtype=torch.float64))
    shapes = [t.shape for t in (meta[0], fake[0])]
    assert shapes == [(T, B, H)] * 2


@row(SECTION, "inference mode, then training")
def _(case: Case) -> None:
    layer, x = case.layer(), values(T, B, IN)
    with torch.inference_mode():
        assert layer(x)[0].is_inference()
    same(gradients(layer, x), gradients(case.exact(), x))


@row(
    SECTION,
    "changing the output in place before backward",
    theirs="oneDNN's layer keeps the output for its backward pass.",
    ours="The output of layers of one direction is kept for the backward pass, as under cuDNN and "
    "oneDNN; the error says so. Nor can it be detached in place. Both go with the states.",
)
def _(case: Case) -> None:
    output, _ = case.layer(dtype=torch.float32)(values(T, B, IN, dtype=torch.float32))
    output.add_(1)
    output.sum().backward()


@row(SECTION, "changing the last state in place")
def _(case: Case) -> None:
    output, state = case.layer()(values(T, B, IN))
    for part in state if isinstance(state, tuple) else (state,):
        part.add_(1)
    output.sum().backward()
