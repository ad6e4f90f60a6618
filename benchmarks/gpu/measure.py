"""One case: our schedules beside torch.nn's, checked against float64 first, then timed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import fastrnn
from benchmarks.gpu.cases import AttentionCase, Case
from benchmarks.gpu.clock import Clock, Contender, Run, captured
from benchmarks.gpu.protocol import say
from benchmarks.timing import percentiles
from fastrnn import _cuda

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
# A few roundings; TF32 keeps 10 bits of a factor.
ROUNDING = {"float32": 1e-5, "tf32": 4e-3, "float16": 4e-3, "bfloat16": 3e-2}
KINDS = {"lstm": nn.LSTM, "gru": nn.GRU}
PEER = "torch.nn"
OURS = ("auto", *_cuda.SCHEDULES, "triton")  # auto: the choice of plan()


@contextmanager
def precision(name: str) -> Iterator[None]:
    """With or without TF32 in every product."""
    modules: Any = (torch.backends.cuda.matmul, torch.backends.cudnn.rnn)
    # Once one of these has been set, torch refuses to read the older allow_tf32.
    before = [module.fp32_precision for module in modules]
    for module in modules:
        module.fp32_precision = "tf32" if name == "tf32" else "ieee"
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.fp32_precision = value


@contextmanager
def _ours(name: str) -> Iterator[None]:
    if name == "triton":
        with fastrnn.use_backend("triton"):
            yield
    else:
        with fastrnn.use_backend("native"), _cuda.use_schedule(name):
            yield


@contextmanager
def within(name: str) -> Iterator[None]:
    """The setting in which a contender runs, announced: should it hang, it is to blame."""
    # Triton compiles and times some candidates first.
    patience = {"seconds": 45} if name == "triton" else {}
    say({"trying": None if name == PEER else name} | patience)
    with nullcontext() if name == PEER else _ours(name):
        yield


def refusal(name: str, case: Case, device: str) -> str | None:
    """Why a contender's backend does not take part, or None."""
    if name == PEER:
        return None
    probe = torch.empty(0, dtype=DTYPES[case.precision], device=device)
    try:
        with within(name):
            fastrnn.backends.choose(probe)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def work(module: nn.Module, x: Tensor, grad: Tensor, mode: str) -> Run:
    """The timed work: a pass, or a pass and its gradients into fresh tensors."""

    def forward() -> object:
        with torch.no_grad():
            return module(x)[0]

    def train() -> object:
        module.zero_grad(set_to_none=True)
        x.grad = None
        output = module(x)[0]
        output.backward(grad)
        return output

    return forward if mode == "forward" else train


def results(module: nn.Module, x: Tensor, run: Run) -> list[Tensor]:
    """The output, and in training every gradient."""
    output: Any = run()
    grads = [p.grad for p in module.parameters()]
    return [t.detach().double() for t in (output, x.grad, *grads) if t is not None]


def error_of(found: list[Tensor], exact: list[Tensor], peers: list[Tensor], floor: float) -> float:
    """The largest error in units of what is allowed: twice the peer's own, and a few roundings."""
    worst = 0.0
    for ours, right, theirs in zip(found, exact, peers, strict=True):
        if not bool(ours.isfinite().all()):
            return float("inf")
        allowed = 2 * (theirs - right).abs().max() + floor * right.abs().max()
        worst = max(worst, float((ours - right).abs().max() / allowed.clamp_min(1e-30)))
    return worst


class Measurement:
    """One case on one device.

    Args:
        case: what to measure.
        device: "cuda", or "cpu" (in tests).
        without: contenders that were lost in this case -> why.
        refused: contenders that stay out of all such cases -> why.
    """

    ours: tuple[str, ...] = OURS

    def __init__(
        self,
        case: Case | AttentionCase,
        device: str,
        without: Mapping[str, str] = {},
        refused: Mapping[str, str] = {},
    ) -> None:
        self.case, self.device = case, device
        self.clock = Clock(device)
        out = {"refused": dict(refused), "errors": dict(without)}
        self.row: dict[str, Any] = {"case": case.name, **case.columns, **out}
        torch.manual_seed(0)
        self._draw()

    def _draw(self) -> None:
        """The inputs, and what every contender's module is made from."""
        T, B, I, H, L = self.case.shape  # noqa: E741, N806
        kind, both = KINDS[self.case.cell], self.case.directions == 2
        exact = kind(I, H, L, bidirectional=both, dtype=torch.float64).to(self.device)
        sizes = (I, self.case.directions * H)
        x, grad = (torch.randn(T, B, n, dtype=torch.float64, device=self.device) for n in sizes)
        self.inputs, self.exact = (x, grad), exact

    def _made(self, name: str) -> tuple[nn.Module, Tensor, Run]:
        module = copy.deepcopy(self.exact)
        dtype = torch.float64 if name == "exact" else DTYPES[self.case.precision]
        if name in OURS:
            module = fastrnn.accelerate(module)
        x, grad = (t.to(dtype, copy=True) for t in self.inputs)
        module = module.to(dtype)
        x.requires_grad_(self.case.mode == "train")
        return module, x, work(module, x, grad, self.case.mode)

    def _checked(self, name: str, right: list[Tensor], theirs: list[Tensor]) -> Contender:
        module, x, run = self._made(name)
        with within(name):
            found = results(module, x, run)
            self.clock.wait()
            floor = ROUNDING[self.case.precision]
            error = error_of(found, right, theirs, floor)
            self.row.setdefault("error", {})[name] = float(f"{error:.3g}")
            if error > 1:
                raise RuntimeError(f"wrong: {error:.3g} times the error that is allowed")
            del found
            if self.case.how == "graph":
                run = captured(run)
                run()
                self.clock.wait()
        return Contender(run, lambda: within(name))

    def run(self, rounds: int, seconds: float) -> dict[str, Any]:
        """The row; what a contender raises is in it, unless that broke the device."""
        with precision(self.case.precision):
            module, x, run = self._made("exact")
            right = results(module, x, run)
            module, x, run = self._made(PEER)
            theirs = results(module, x, run)
            contenders: dict[str, Contender] = {}
            for name in (PEER, *self.ours):
                if name in self.row["errors"] or name in self.row["refused"]:
                    continue
                if why := refusal(name, self.case, self.device):
                    self.row["refused"][name] = why
                    continue
                try:
                    contenders[name] = self._checked(name, right, theirs)
                except Exception as error:  # whatever a contender does, the others go on
                    why = f"{type(error).__name__}: {error}".splitlines()[0]
                    if f"the {name} schedule was asked for: it " in why:
                        self.row["refused"][name] = why
                        continue
                    if not self.clock.alive():
                        raise
                    self.row["errors"][name] = why
            del right, theirs
            times = self.clock.interleaved(contenders, rounds, seconds)
        for name, milliseconds in times.items():
            self.row[name] = percentiles(milliseconds)
        ours = [name for name in times if name in OURS]
        if ours and PEER in times:
            best = min(ours, key=lambda name: self.row[name]["p50"])
            ratio = self.row[PEER]["p50"] / self.row[best]["p50"]
            self.row |= {"best": best, "ratio": {PEER: round(ratio, 3)}}
        return self.row
