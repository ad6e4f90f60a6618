"""Random calls of recurrent modules, and the comparison of torch.nn's answer with ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import rnn

from fastrnn import modules
from tests.layers import assert_as_close_as_torch

LAYERS = ("RNN", "GRU", "LSTM")
CELLS = ("RNNCell", "GRUCell", "LSTMCell")
FORMS = ("padded", "unbatched", "sorted", "unsorted")
LAYOUTS = ("contiguous", "transposed", "strided", "expanded", "offset")
VALUES = ("normal", "normal", "large", "zero", "nan", "inf")
DTYPES = (torch.float64, torch.float64, torch.float32, torch.float32, torch.bfloat16, torch.float16)
# A few roundings, relative to the largest value of all results (or of all gradients).
FLOORS = {torch.float32: 2e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@dataclass
class Call:
    """How a module is built and called; everything else follows from the seed."""

    name: str
    sizes: tuple[int, int]  # I, H
    options: dict[str, Any]
    form: str
    lengths: list[int]  # of every sequence; all equal unless packed
    dtype: torch.dtype
    seed: int
    hx: bool = False
    layout: str = "contiguous"
    weight_layout: str = "contiguous"
    values: str = "normal"
    training: bool = True
    gradients: bool = True
    leaves: list[Tensor] = field(default_factory=list, repr=False)

    def build(self, library: Any) -> nn.Module:
        """The module, with the seed's weights."""
        torch.manual_seed(self.seed)
        dtype = torch.float64
        module = getattr(library, self.name)(*self.sizes, dtype=dtype, **self.options)
        module.to(self.dtype).train(self.training)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.set_(laid_out(parameter.detach(), self.weight_layout))
        return module

    @property
    def batch_first(self) -> bool:
        """Whether a padded input is [B, T, I]."""
        return self.form == "padded" and self.options.get("batch_first", False)

    def arguments(self, dtype: torch.dtype) -> tuple[Any, ...]:
        """Input and state in a dtype; their leaves are kept for gradients."""
        generator = torch.Generator().manual_seed(self.seed)
        self.leaves = []

        def draw(*shape: int, spoilt: bool = True) -> Tensor:
            tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
            tensor = tensor * {"large": 300.0, "zero": 0.0}.get(self.values, 1.0)
            if spoilt and self.values in ("nan", "inf") and tensor.numel():
                place = int(torch.randint(tensor.numel(), (), generator=generator))
                tensor.view(-1)[place] = float(self.values)
            leaf = laid_out(tensor.to(self.dtype).to(dtype), self.layout)
            self.leaves.append(leaf.requires_grad_())
            return leaf

        width = self.sizes[0]
        batch = () if self.form == "unbatched" else (len(self.lengths),)
        if self.name in CELLS:
            return (draw(*batch, width), *self._states(draw, batch))
        steps = max(self.lengths, default=0)
        if self.form in ("padded", "unbatched"):
            x = draw(*batch, steps, width) if self.batch_first else draw(steps, *batch, width)
        else:
            parts = [draw(length, width) for length in self.lengths]
            x = rnn.pack_sequence(parts, enforce_sorted=self.form == "sorted")
        stack = self.options["num_layers"] * (1 + self.options["bidirectional"])
        return (x, *self._states(draw, (stack, *batch)))

    def _states(self, draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
        if not self.hx:
            return ()
        # No infinite states: in 0 * inf it matters how small a closed gate is.
        h = draw(*shape, self.options.get("proj_size", 0) or self.sizes[1], spoilt=False)
        if "LSTM" not in self.name:
            return (h,)
        return ((h, draw(*shape, self.sizes[1], spoilt=False)),)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """A tensor with the same values in other strides ("expanded": the first one's values)."""
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided" and tensor.dim():
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]
    if layout == "expanded" and tensor.dim() and tensor.size(0):
        return tensor[:1].clone().expand(tensor.shape)
    if layout == "offset":
        whole = torch.cat([tensor.new_zeros(1), tensor.flatten()])
        return whole[1:].view(tensor.shape)
    return tensor


@st.composite
def calls(draw: Any, names: tuple[str, ...] = (*LAYERS, *LAYERS, *CELLS)) -> Call:
    """Calls that torch.nn takes, and some with a size that it refuses."""
    name, form = draw(st.sampled_from(names)), draw(st.sampled_from(FORMS))
    dtype = draw(st.sampled_from(DTYPES))
    options: dict[str, Any] = {"bias": draw(st.booleans())}
    if name.startswith("RNN"):
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    # Units enough for threads, now and then.
    units = st.one_of(*[st.integers(0, 20)] * 9, st.just(170))
    sizes = (draw(st.integers(0, 20)), draw(units))
    cell = name in CELLS
    if cell:
        form = draw(st.sampled_from(["padded", "unbatched"]))
    else:
        options |= {
            "num_layers": draw(st.sampled_from([0, 1, 1, 2, 3])),
            "bidirectional": draw(st.booleans()),
            "batch_first": draw(st.booleans()),
            "dropout": draw(st.sampled_from([0.0, 0.0, 0.5, 1.0])) if dtype == DTYPES[0] else 0.0,
        }
        if name == "LSTM" and draw(st.booleans()):
            options["proj_size"] = draw(st.integers(0, max(sizes[1], 1)))
    if form in ("sorted", "unsorted"):
        lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))
        lengths = sorted(lengths, reverse=True) if form == "sorted" else lengths
    else:
        batch = 1 if form == "unbatched" else draw(st.integers(0, 5))
        lengths = [draw(st.integers(0, 7))] * batch
    low = dtype in (torch.bfloat16, torch.float16)
    return Call(
        name,
        sizes,
        options,
        form,
        lengths,
        dtype,
        seed=draw(st.integers(0, 2**31)),
        hx=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        weight_layout=draw(st.sampled_from(LAYOUTS[:3] + LAYOUTS[4:])),
        values="normal" if low else draw(st.sampled_from(VALUES)),
        training=draw(st.booleans()),
        gradients=draw(st.booleans()),
    )


def attempt(function: Any) -> tuple[Any, Exception | None]:
    """What a function returns, or what it raises."""
    try:
        return function(), None
    except Exception as error:
        return None, error


def assert_same_refusal(theirs: Exception | None, ours: Exception | None) -> None:
    """Both raised the same type, ours with one line to read, or neither raised."""
    assert (theirs is None) == (ours is None), f"torch.nn: {theirs!r}, fastrnn: {ours!r}"
    if ours is not None:
        assert isinstance(ours, TypeError | ValueError | RuntimeError), repr(ours)
        assert str(ours) and "\n" not in str(ours) and "INTERNAL" not in str(ours)
        # What torch.nn raises by accident, deep inside, has other types.
        if type(theirs) in (TypeError, ValueError, RuntimeError):
            assert type(ours) is type(theirs), f"torch.nn: {theirs!r}, fastrnn: {ours!r}"


def tensors(nested: Any) -> list[Tensor]:
    """The floating-point tensors of nested tuples; a PackedSequence is one too."""
    if isinstance(nested, Tensor):
        return [nested] if nested.is_floating_point() else []
    return [] if nested is None else [leaf for item in nested for leaf in tensors(item)]


def run(call: Call, module: nn.Module, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Results, and gradients of a weighted sum of them if the call wants gradients."""
    args = call.arguments(dtype)
    torch.manual_seed(call.seed)
    with torch.set_grad_enabled(call.gradients):
        results = tensors(module(*args))
    if not call.gradients or call.values in ("nan", "inf"):
        return [r.detach() for r in results], []
    generator = torch.Generator().manual_seed(call.seed)
    weights = [torch.rand(r.shape, generator=generator, dtype=torch.float64) for r in results]
    loss = sum((r * w.to(r.dtype)).sum() for r, w in zip(results, weights, strict=True))
    targets = [*call.leaves, *module.parameters()]
    return [r.detach() for r in results], list(torch.autograd.grad(loss, targets))


def compare(call: Call) -> None:
    """Both libraries refuse a call alike, or give the same results and gradients."""
    theirs, refused = attempt(lambda: call.build(nn))
    ours, we_refused = attempt(lambda: call.build(modules))
    assert_same_refusal(refused, we_refused)
    if theirs is None:
        return
    expected, refused = attempt(lambda: run(call, theirs, call.dtype))
    got, we_refused = attempt(lambda: run(call, ours, call.dtype))
    assert_same_refusal(refused, we_refused)
    if expected is None:
        return
    exact = run(call, theirs.double(), torch.float64)
    for what, *parts in zip(("result", "gradient"), got, expected, exact, strict=True):
        largest = max((e.abs().max().item() for e in parts[2] if e.numel()), default=0.0)
        for number, (mine, his, true) in enumerate(zip(*parts, strict=True)):
            name = f"{what} {number}"
            assert mine.shape == his.shape and mine.dtype == his.dtype == call.dtype, name
            if call.values in ("nan", "inf"):
                assert torch.equal(mine.isnan(), true.isnan()), f"{name}: NaN elsewhere"
                atol = 1e-4 if call.dtype == torch.float32 else 1e-10
                torch.testing.assert_close(mine.double(), true, rtol=0, atol=atol, equal_nan=True)
            elif call.dtype == torch.float64:
                bound = 1e-11 * max(largest, 1.0)
                torch.testing.assert_close(mine, his, rtol=0, atol=bound, msg=name)
            elif true.numel():
                floor = FLOORS[call.dtype] * largest / max(true.abs().max().item(), 1e-300)
                # Large states are summed before they saturate a gate: coarse pre-activations.
                floor *= 10 if call.values == "large" else 1
                assert_as_close_as_torch(name, mine, his, true, floor)
