"""What is asked of rows, to stand beside what is measured."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from benchmarks.cases import Row

# Beginning of cases' names, kind of target ("" for all), why: printed where they fall short, after
# what the rows themselves say. Measured or read in the code, never guessed.
WHY = (
    (
        "loss/",
        "memory",
        "the weight's gradient is made with the loss, and copied when backward scales it",
    ),
    (
        "layers/rnn_tanh/train/1x20",
        "",
        "one step does not pay for packing the weights, and half of the time is Python and "
        "autograd around the kernels",
    ),
)


class Target(NamedTuple):
    """One thing asked of a row.

    Args:
        what: "floor" (fraction of it, at least), "memory" (share of torch.nn's, at most), "ms" (at
            most), or a peer (times as fast as it, at least).
        number: how much.
        malloc: the setting it is asked under; default None: each.
    """

    what: str
    number: float
    malloc: str | None = None

    def measured(self, row: Row) -> float | None:
        """What a row shows of it; None if nothing."""
        if self.what == "floor":
            return row.get("floor", {}).get("fraction")
        if self.what == "ms":
            return row["times"]["ours"]["p50"]
        if self.what == "memory":
            held = row.get("memory", {})
            return held["ours"] / held["torch.nn"] if held.get("torch.nn") else None
        return row["ratio"].get(self.what)

    def met(self, value: float) -> bool:
        """Whether a measured value is enough, at the two digits that are printed."""
        if self.what in ("memory", "ms"):
            return round(value, 2) <= self.number
        return round(value, 2) >= self.number

    def needs(self, row: Row) -> float | None:
        """The fraction of the floor at which a row would meet it; None if that says nothing."""
        value, floor = self.measured(row), row.get("floor")
        if value is None or floor is None or self.what in ("floor", "memory"):
            return None
        factor = value / self.number if self.what == "ms" else self.number / value
        return float(floor["fraction"] * factor)

    def text(self, value: float) -> str:
        """A value of this kind, as a person reads it."""
        if self.what in ("floor", "memory"):
            return f"{value:.0%} of {'the floor' if self.what == 'floor' else 'its memory'}"
        return f"{value:.1f} ms" if self.what == "ms" else f"{value:.2f}x {self.what}"


def asked(row: Row) -> list[Target]:
    """The targets of a row."""
    return [t for t in TARGETS.get(row["case"], []) if t.malloc in (None, row["malloc"])]


def why(target: Target, row: Row) -> str:
    """What WHY says of a row that falls short of a target, or nothing."""
    for start, what, text in WHY:
        if row["case"].startswith(start) and what in ("", target.what):
            return text
    return ""


def _targets() -> dict[str, list[Target]]:
    found: dict[str, list[Target]] = defaultdict(list)
    peer = "torch.nn"
    small, middle, large = (f"35x20x{h}x{h}x2" for h in (200, 650, 1500))

    def layers(cell: str, mode: str, shape: str) -> list[Target]:
        return found[f"layers/{cell}/{mode}/{shape}/float32/native"]

    for cell in ("lstm", "gru"):
        for shape in (small, middle, large):
            layers(cell, "train", shape).append(Target("floor", 0.85))
        for shape in ("32x128x128x128x1", "20x20x200x200x2"):
            layers(cell, "train", shape).append(Target("floor", 0.75))
    layers("lstm", "train", small).append(Target(peer, 2.0, "default"))
    layers("lstm", "train", small).append(Target(peer, 1.23, "kept"))
    layers("lstm", "train", middle).append(Target(peer, 1.15))
    layers("lstm", "train", large).append(Target(peer, 1.5))
    for shape in (small, middle, large):
        layers("gru", "train", shape).append(Target(peer, 3.1))
        layers("rnn_tanh", "train", shape).append(Target(peer, 3.0))
    for cell, ratio in (("lstm", 1.7), ("gru", 3.6), ("rnn_tanh", 3.0)):
        layers(cell, "train", "1x20x200x200x2").append(Target(peer, 1.0))
        layers(cell, "frozen", small).append(Target(peer, ratio))
        for shape in (middle, large):
            layers(cell, "frozen", shape).append(Target("floor", 0.9))
    for cell, ratio in (("lstm", 12.0), ("gru", 4.5)):
        layers(cell, "stream", "1x1x256x256x1").append(Target(peer, ratio))
    for shape in (middle, large):
        for cell in ("lstm", "gru"):
            found[f"layers/{cell}/train/{shape}/bfloat16/native"].append(Target("float32", 1.6))
    for size, ratio in ((200, 2.5), (650, 2.2)):
        found[f"loss/train/700x{size}x10000"] += [Target(peer, ratio), Target("memory", 0.15)]
    for name in ("lengths", "packed"):
        found[f"features/{name}/{small}"].append(Target("plain", 1.67))
    found[f"language_model/lstm/{small}"] += [
        Target("ms", 30.0),
        Target(peer, 2.6, "default"),
        Target(peer, 1.9, "kept"),
    ]
    found[f"language_model/lstm/{small}/bfloat16"] += [
        Target(peer, 4.0, "default"),
        Target(peer, 3.0, "kept"),
    ]
    return found


TARGETS = dict(_targets())
