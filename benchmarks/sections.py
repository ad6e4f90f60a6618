"""What the report says, as sections of text, tables and pictures; how it looks is report.py's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks import growth, layers, plots, results, targets
from benchmarks.cases import Row
from benchmarks.tables import Rows, Table, table


@dataclass
class Section:
    """A part of the report.

    Args:
        title: its heading.
        text: what stands under it; markdown's `code` is understood.
        table: lines of cells, the first the heads; the first column is text.
        pictures: name -> SVG.
    """

    title: str
    text: str = ""
    table: Table = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)


def sections(rows: Rows, elsewhere: Mapping[str, Rows]) -> Iterator[Section]:
    """The whole report.

    Args:
        rows: one of each case and malloc setting, of one machine.
        elsewhere: some of other machines, by their names in results.OTHERS.
    """
    yield _machine(rows)
    sound = [row for row in rows if "error" not in row]
    if any(targets.asked(row) for row in sound):
        text = "Ratios were set for two Zen 5 cores, fractions of the floor hold anywhere."
        yield _targets("Targets", text, sound)
    yield from _layers(rows)
    for suite, title, text in SUITES:
        chosen = [row for row in rows if row["suite"] == suite]
        if chosen:
            section = Section(title, f"{text} {_command(suite)}", table(chosen))
            spoken = [row for row in chosen if "tokens_per_s" in row]
            if spoken:
                section.pictures["tokens"] = plots.svg(plots.tokens(spoken))
            yield section
    grown = [row for row in sound if row["suite"] == "growth"]
    if grown:
        yield from _growth(grown)
    for processor, there in elsewhere.items():
        yield from _elsewhere(processor, there)


def _elsewhere(processor: str, rows: Rows) -> Iterator[Section]:
    file = results.OTHERS[processor].name
    sound = [row for row in rows if "error" not in row]
    if any(target.what == "floor" for row in sound for target in targets.asked(row)):
        yield _targets(f"{processor}: fractions of the floor", "", sound, only="floor")
    for suite in dict.fromkeys(row["suite"] for row in rows):
        chosen = [row for row in rows if row["suite"] == suite]
        text = f"{_origin(chosen)} By `python -m benchmarks CASES --out benchmarks/results/{file}`."
        yield Section(f"{processor}: {suite.replace('_', ' ')}", text, table(chosen))


SUITES = (
    (
        "directions",
        "Both directions",
        "Bidirectional layers beside torch.nn's; with two threads each direction has one.",
    ),
    (
        "callers",
        "Several callers",
        "Layers without gradients, called at once by 1, 2 or 4 threads of the process, five times "
        "by each, beside torch.nn's. Each caller has layers of its own; several wait for one "
        "another's processors, which counts as disturbed.",
    ),
    (
        "single_steps",
        "Cells, a step a call",
        "`LSTMCell`, `GRUCell` and `RNNCell` beside torch.nn's, from given states: without "
        "gradients, and in training. Most of a small one's time is Python's and autograd's.",
    ),
    (
        "features",
        "What features cost",
        "A training step of an LSTM with the feature, beside the same layers without it "
        "(plain; ratio: plain / with it) and torch.nn's. Lengths have a mean of half the maximum: "
        "`lengths` of padded input, `packed` of a PackedSequence. `recompute` trades time for "
        "memory held.",
    ),
    (
        "loss",
        "Output layer and cross entropy",
        "Forward and backward: `linear_cross_entropy` beside torch's `linear` and `cross_entropy`, "
        "and torch's own chunked operator.",
    ),
    (
        "attention",
        "Masked attention",
        "`masked_attention` of [B, heads, L, E] beside torch's `scaled_dot_product_attention` "
        "(sdpa) and two products with a softmax between (plain); train: forward and backward; "
        "keys: how many, where L counts the queries alone.",
    ),
    (
        "language_model",
        "A word model's whole training step",
        "Embedding, two layers, output layer of 10,000 words, loss, clipping, SGD: the trainer's "
        "step, and a torch.nn loop (as pytorch's word_language_model) with and without "
        "`accelerate()` on its model; each in a process of its own.",
    ),
)


def _command(pattern: str) -> str:
    return f"All of it: `python -m benchmarks '{pattern}'`."


def _origin(rows: Rows) -> str:
    """Where rows come from."""
    last = rows[-1]
    commits = sorted({row["commit"] + "+" * row["dirty"] for row in rows})
    timed = [row for row in rows if "error" not in row]
    count = sum(row["times"]["ours"].get("rounds", 0) for row in timed)
    rejected = sum(row["rejected"] or 0 for row in timed)
    disturbed = sum(row["disturbed"] for row in timed)
    return (
        f"{last['cpu'] or 'processor not recorded'}, {last['instruction_set']}; fastrnn "
        f"{last['fastrnn']}, torch {last['torch']}, Python {last['python']}; {last['date'][:10]}, "
        f"commit {', '.join(commits)} (+: with changes). {len(rows)} rows, "
        f"{len(rows) - len(timed)} errors; {count} rounds count, {rejected} were left out, "
        f"{disturbed} rows had too few undisturbed ones and are marked."
    )


def _machine(rows: Rows) -> Section:
    text = f"{_origin(rows)} Rates, measured with every row; least, median and greatest of them:"
    found = [row for row in rows if "gflops" in row.get("floor", {})]
    lines = [["threads", "products, float32", "reading what a case reads", "one barrier"]]
    for threads in sorted({row["threads"] for row in found}):
        here = [row for row in found if row["threads"] == threads]
        float32 = [row for row in here if _dtype(row) == "float32"]
        lines.append(
            [
                str(threads),
                _range([row["floor"]["gflops"] for row in float32], "GFLOP/s"),
                _range([row["floor"]["gbytes"] for row in here], "GB/s"),
                _range([row["floor"]["barrier_us"] for row in here], "us"),
            ]
        )
    return Section("Machine", text, lines if len(lines) > 1 else [])


def _dtype(row: Row) -> str:
    """Of a row's products; a word model's parameters are float32 whatever its precision."""
    return str(row.get("precision", row.get("dtype", "float32")))


def _range(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    middle = sorted(values)[len(values) // 2]
    return f"{min(values):.3g}, {middle:.3g}, {max(values):.3g} {unit}"


def _targets(title: str, text: str, rows: Rows, only: str | None = None) -> Section:
    lines = [["case", "malloc", "target", "measured", ""]]
    met = count = 0
    for row in rows:
        for target in targets.asked(row):
            value = target.measured(row)
            if value is None or only not in (None, target.what):
                continue
            count += 1
            if target.met(value):
                met += 1
                verdict = "met"
            else:
                verdict = _shortfall(target, row, rows)
            bound = "at most " if target.what in ("memory", "ms") else "at least "
            asked = bound + target.text(target.number)
            lines.append([f"`{row['case']}`", row["malloc"], asked, target.text(value), verdict])
    return Section(title, f"{met} of {count} are met. {text}".strip(), lines)


def _shortfall(target: targets.Target, row: Row, rows: Rows) -> str:
    """Below target, and why."""
    reasons = []
    needs = target.needs(row)
    if needs is not None:
        at = row["floor"]["fraction"]
        beyond = ", which no kernel can reach" if needs > 1 else ""
        reasons.append(f"it needs {needs:.0%} of the floor{beyond}; this is {at:.0%}")
    reasons += [text for text in (_phases(row, rows), targets.why(target, row)) if text]
    return ": ".join(["below", "; ".join(reasons)]) if reasons else "below"


def _phases(row: Row, rows: Rows) -> str:
    """Where a training step's time goes, from the rows of inference at its shape and setting."""
    if row["suite"] != "layers" or row["mode"] != "train":
        return ""
    same = {
        other["mode"]: other
        for other in rows
        if other["suite"] == "layers"
        and all(
            other.get(k) == row.get(k) for k in ("cell", *"TBIHL", "dtype", "backend", "malloc")
        )
    }
    if "infer" not in same or "floor" not in row:
        return ""
    forward, step = (r["times"]["ours"]["p50"] for r in (same["infer"], row))
    floor = row["floor"]["ms"]
    text = f"forward is at {floor / 3 / forward:.0%}, backward at "
    text += f"{floor * 2 / 3 / max(step - forward, 1e-9):.0%}"
    if "frozen" in same:
        packing = forward - same["frozen"]["times"]["ours"]["p50"]
        text += f"; packing weights takes {max(packing, 0.0) / step:.0%} of the time"
    return text


def _layers(rows: Rows) -> Iterator[Section]:
    titles = {
        "train": "Layers: forward and backward",
        "infer": "Layers: forward without gradients",
        "frozen": "Layers: frozen, forward without gradients",
        "stream": "Layers: one step of a stream",
    }
    for mode, title in titles.items():
        chosen = [r for r in rows if r["suite"] == "layers" and r.get("mode") == mode]
        if not chosen:
            continue
        section = Section(title, _command(f"layers/*/{mode}/*"), table(chosen))
        drawn = [row for row in chosen if _main(row)]
        if drawn:
            section.pictures = {
                f"ratio-{mode}": plots.svg(
                    plots.by_setting(drawn, "torch.nn's time / ours", "ratio", 1.0)
                ),
                f"floor-{mode}": plots.svg(
                    plots.by_setting(drawn, "floor / our time", "fraction", 1.0, percent=True)
                ),
            }
        yield section


def _main(row: Row) -> bool:
    """Whether a row is in the pictures: float32, our kernels, beside torch.nn."""
    return (
        "error" not in row
        and row["dtype"] == "float32"
        and row["backend"] == "native"
        and row["cell"] in layers.CELLS_OF_TORCH
        and "floor" in row
    )


def _growth(rows: Rows) -> Iterator[Section]:
    start = layers.Shape(*(growth.START))
    for axis in growth.AXES:
        chosen = [row for row in rows if row["axis"] == axis]
        if len({row["value"] for row in chosen}) < 2:
            continue
        found = []
        for threads in sorted({row["threads"] for row in chosen}):
            for name in ("ours", "torch.nn"):
                points = plots.lines(chosen, name, threads)
                power = growth.slope(*zip(*points, strict=True))
                found.append(f"{name} {power:.2f} on {threads} thread{'s' * (threads > 1)}")
        text = (
            f"An LSTM's training step from {start} (T x B x I x H x layers), malloc kept. Over the "
            f"upper half of the sizes time grows with the power: {'; '.join(found)}. "
            f"{_command(f'growth/lstm/{axis}=*')}"
        )
        section = Section(f"Growth with {plots.AXIS_LABELS[axis]}", text, table(chosen))
        section.pictures[f"growth-{axis}"] = plots.svg(plots.growth(chosen, axis))
        yield section
