"""Pictures of rows, as SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from benchmarks.cases import Row
from benchmarks.growth import slope

OURS, PEER, PALE, INK = "#1f6feb", "#8b949e", "#9cc4ff", "#24292f"
SETTINGS = {"default": PALE, "kept": OURS}
STYLE = {
    "svg.fonttype": "none",  # letters stay letters: small files
    "svg.hashsalt": "fastrnn",  # the same rows give the same bytes
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": PEER,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def svg(figure: Figure) -> str:
    """A figure as the text of an SVG file."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return file.getvalue()


def _bars(
    groups: Sequence[tuple[str, dict[str, float]]],
    colors: dict[str, str],
    axis_label: str,
    mark: float,
    form: str,
    names: str = "",
) -> Figure:
    """Horizontal bars, a group per name, its number at the end of each.

    Args:
        groups: name -> series -> value; from the top down.
        colors: series -> color, the legend.
        axis_label: of the values.
        mark: a value that a line marks.
        form: format of a number.
        names: what the groups' names are.
    """
    with matplotlib.rc_context(STYLE):
        count = len(colors)
        figure = Figure(figsize=(8, 0.7 + 0.2 * (count + 0.6) * len(groups)))
        axes = figure.subplots()
        highest = max((v for _, found in groups for v in found.values()), default=1.0)
        for place, (_, found) in enumerate(groups):
            for rank, (series, color) in enumerate(colors.items()):
                if series in found:
                    y = place * (count + 0.6) + rank
                    axes.barh(y, found[series], height=0.9, color=color)
                    text = form.format(found[series])
                    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
                    end = found[series] + 0.01 * highest
                    axes.text(end, y, text, va="center", fontsize=8, bbox=box)
        centers = [place * (count + 0.6) + (count - 1) / 2 for place in range(len(groups))]
        axes.set_yticks(centers, [name for name, _ in groups])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(groups) * (count + 0.6) - 0.9, -0.8)
        axes.set_xlim(0, highest * 1.1)
        axes.axvline(mark, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_xlabel(axis_label)
        axes.xaxis.set_major_formatter(lambda value, _: form.format(value))
        axes.set_title(names, loc="left", fontsize=9)
        handles = [matplotlib.patches.Patch(color=c, label=s) for s, c in colors.items()]
        axes.legend(
            handles=handles,
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=count,
            frameon=False,
        )
    return figure


NAMES = "cell, T x B x I x H x layers"


def by_setting(
    rows: Sequence[Row], label: str, value: str, mark: float, percent: bool = False
) -> Figure:
    """A number of each case, under both malloc settings.

    Args:
        rows: with columns cell and sizes.
        label: of the axis.
        value: "ratio" (to torch.nn) or "fraction" (of the floor).
        mark: a value that a line marks.
        percent: how numbers are written.
    """
    groups: dict[str, dict[str, float]] = {}
    for row in rows:
        sizes = "x".join(str(row[letter]) for letter in "TBIHL")
        name = f"{row['cell'].replace('rnn_tanh', 'rnn').upper()}  {sizes}"
        number = row["ratio"]["torch.nn"] if value == "ratio" else row["floor"]["fraction"]
        groups.setdefault(name, {})[f"malloc {row['malloc']}"] = number
    colors = {f"malloc {setting}": color for setting, color in SETTINGS.items()}
    form = "{:.0%}" if percent else "{:.2f}"
    return _bars(list(groups.items()), colors, label, mark, form, NAMES)


def tokens(rows: Sequence[Row]) -> Figure:
    """Tokens per second of the word model's training step."""
    names = {
        "ours": ("the trainer", OURS),
        "accelerated": ("torch loop, accelerate()", PALE),
        "torch.nn": ("torch loop", PEER),
    }
    groups = [
        (
            f"{row['cell'].upper()} 2x{row['H']}, malloc {row['malloc']}",
            {names[name][0]: float(value) for name, value in row["tokens_per_s"].items()},
        )
        for row in rows
    ]
    return _bars(groups, dict(names.values()), "tokens per second", 0.0, "{:,.0f}")


AXIS_LABELS = {
    "T": "steps T",
    "B": "batch B",
    "H": "hidden size H (and input size)",
    "L": "layers",
}


def growth(rows: Sequence[Row], axis: str) -> Figure:
    """Against one size, by threads: time, with the slope of each line, and fraction of the floor.

    Args:
        rows: of one axis.
        axis: its letter.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, color in (("ours", OURS), ("torch.nn", PEER)):
            for threads, dashes in ((1, "--"), (2, "-")):
                points = lines(rows, name, threads)
                if len(points) < 2:
                    continue
                sizes, times = zip(*points, strict=True)
                text = f"{name}, {threads} thread{'s' * (threads > 1)}"
                look = {"color": color, "linestyle": dashes, "marker": "o", "markersize": 3}
                left.plot(sizes, times, label=f"{text}: slope {slope(sizes, times):.2f}", **look)
                floors = dict(_floors(rows, threads))
                shares = [100 * floors[n] / t for n, t in points if n in floors]
                right.plot(sizes[: len(shares)], shares, label=text, **look)
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            ticks = sorted({row["value"] for row in rows})
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.set_xlabel(AXIS_LABELS[axis])
            axes.grid(axis="y", color="#d0d7de", linewidth=0.5)
        left.set_yscale("log")
        left.set_ylabel("milliseconds, forward and backward")
        left.legend(frameon=False, fontsize=9)
        right.set_ylim(0, 105)
        right.set_ylabel("floor / time, %")
    return figure


def _floors(rows: Sequence[Row], threads: int) -> list[tuple[int, float]]:
    chosen = [row for row in rows if row["threads"] == threads and "floor" in row]
    return [(row["value"], row["floor"]["ms"]) for row in chosen]


def lines(rows: Sequence[Row], name: str, threads: int) -> list[tuple[int, float]]:
    """Points (size, milliseconds) of one line, ascending."""
    chosen = [row for row in rows if row["threads"] == threads and name in row["times"]]
    return sorted((row["value"], row["times"][name]["p50"]) for row in chosen)
