"""The page of trainings that published figures are compared with: docs/experiments/README.md.

    python -m benchmarks.experiments RUNS...

takes the small files of the runs in those folders, each run named as below, into docs/experiments,
writes the page and, with `fastrnn.report`, one of their curves. Without folders it writes the page
anew from what is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from fastrnn.lm.errors import UserError
from fastrnn.lm.reporting import ReportingOptions, write_report
from fastrnn.lm.run import CONFIG, METRICS, RESULT
from fastrnn.lm.summary import Summary, read_summary

FOLDER = ROOT / "docs" / "experiments"
PAGE, REPORT, EPOCHS = "README.md", "report.html", "epochs.jsonl"
FILES = (CONFIG, METRICS, RESULT, "curves.svg")  # a run's; nothing in them tells of the machine
S3 = "CS5787 exercises 2"


@dataclass(frozen=True)
class Experiment:
    """A training, and what was published of it.

    Args:
        name: of the run's folder.
        options: of fastrnn.train.
        valid: published validation perplexity, or None.
        test: published test perplexity, or None.
        source: where they were published.
    """

    name: str
    options: str
    valid: float | None = None
    test: float | None = None
    source: str = ""


def _deep(cell: str) -> list[Experiment]:
    return [
        Experiment(f"deep-{cell}-{n}", f"--preset deep-{cell} --num-layers {n}") for n in (2, 4, 6)
    ]


_SMALL = "--preset time-machine-gru128 --hidden-size 32 --epochs 15"
SECTIONS: dict[str, tuple[str, list[Experiment]]] = {
    "Penn Treebank, 2 x 200 units": (
        "The four models of CS5787 exercises 2 (github.com/mitkrieg/dl-assignment-2) with its "
        "sizes, epochs, rates and decays. It says nothing of clipping; each preset does, "
        "s3-lstm-dropout, whose rate is 6, at 1. At 5 it depends on the first hundred steps how "
        "far a seed of it comes: 1 is there as s3-lstm-dropout-clip5, 2 and 3 were stopped after "
        "11 epochs, at 120.8 and 118.8 where that one had 115.8. It counts epochs "
        "from 0 and lets the rate fall after one, so how many are whole is not certain: the "
        "presets take its numbers as they stand, and s3-lstm-dropout-13 two epochs more. "
        "s3-gru-dropout-faster has a higher rate. s3-lstm-dropout-clip5 and s3-gru-dropout had "
        "torch's masks, not ours. s3-gru-dropout is there with four more seeds; 2 and 3 were "
        "stopped in epochs 21 and 20.",
        [
            Experiment("s3-lstm", "--preset s3-lstm", 126.3, 122.2, S3),
            Experiment("s3-lstm-dropout", "--preset s3-lstm-dropout", 99.2, 95.8, S3),
            Experiment("s3-gru", "--preset s3-gru", 122.1, 118.6, S3),
            Experiment("s3-gru-dropout", "--preset s3-gru-dropout", 107.7, 104.5, S3),
            *(
                Experiment(
                    f"s3-lstm-dropout-{name}", f"--preset s3-lstm-dropout {more}", 99.2, 95.8, S3
                )
                for name, more in (
                    ("2", "--seed 2"),
                    ("clip5", "--clip 5"),
                    ("13", "--clip 5 --decay-from 13"),
                )
            ),
            *(
                Experiment(
                    f"s3-gru-dropout-{n}", f"--preset s3-gru-dropout --seed {n}", 107.7, 104.5, S3
                )
                for n in (4, 5, 6, 7)
            ),
            Experiment(
                "s3-gru-dropout-faster", "--preset s3-gru-dropout --lr 1.5", 107.7, 104.5, S3
            ),
        ],
    ),
    "Deep stacks": (
        "Three epochs on Penn Treebank. In the published sweep of word_language_model on "
        "WikiText-2 (200 units, 3 epochs) an LSTM went from 176.86 with 2 layers to 200.63 with 4 "
        "and 1040.2 with 6, a GRU from 203.47 to no convergence; here a deeper stack is to be no "
        "worse.",
        [*_deep("lstm"), *_deep("gru")],
    ),
    "The Time Machine, letters": (
        "Perplexity a letter. The published 5 x 32 stacks stalled at 16.7 (GRU) and 17.5 (LSTM).",
        [
            Experiment("time-machine-gru128", "--preset time-machine-gru128"),
            Experiment("time-machine-gru32", _SMALL),
            Experiment("time-machine-gru32-deep", f"{_SMALL} --num-layers 5 --residual"),
        ],
    ),
}


def take(places: list[Path], folder: Path) -> list[Path]:
    """Copy the small files of finished runs.

    Args:
        places: folders that hold the experiments' runs.
        folder: where to.

    Returns:
        The folders of the copies.

    Raises:
        UserError: there is none.
    """
    taken = []
    for name in (each.name for _, some in SECTIONS.values() for each in some):
        runs = [place / name for place in places if (place / name / RESULT).is_file()]
        if not runs:
            continue
        there = folder / name
        there.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            shutil.copyfile(runs[0] / file, there / file)
        taken.append(there)
    if not taken:
        where = ", ".join(map(str, places))
        raise UserError(f"{where}: no finished run of an experiment, such as s3-lstm, is there")
    return taken


def page(folder: Path) -> str:
    """The page of what is in a folder, as Markdown."""
    parts = [
        "# Experiments",
        "Written by `python -m benchmarks.experiments RUNS...` from the folders of runs. Beside "
        f"this page lie each run's {', '.join(f'`{file}`' for file in FILES)}; "
        f"[{REPORT}]({REPORT}) shows all of them with curves and samples (download it: it is one "
        "file). A run is made again by `fastrnn.train` with its options and `--out RUNS/NAME`. "
        "Perplexities: ours, and in parentheses the published one. Seconds are by the clock, of an "
        "epoch and of all, beside other work and with pauses; Time of an epoch, at "
        "the end, is measured with nothing else running. A dash: not trained to the end yet.",
    ]
    for title, (text, experiments) in SECTIONS.items():
        rows = [_row(each, folder / each.name) for each in experiments]
        head = "| run | options of fastrnn.train | epochs | seconds | validation | test |"
        parts += [f"## {title}", text, "\n".join([head, "|---|---|---|---|---|---|", *rows])]
    if (folder / EPOCHS).is_file():
        lines = (folder / EPOCHS).read_text().splitlines()
        parts += _epochs([json.loads(line) for line in lines])
    return "\n\n".join(parts) + "\n"


def _row(experiment: Experiment, folder: Path) -> str:
    name, options = experiment.name, f"`{experiment.options}`"
    if not (folder / RESULT).is_file():
        wanted = (_beside("-", value) for value in (experiment.valid, experiment.test))
        return f"| {name} | {options} | - | - | {' | '.join(wanted)} |"
    run = read_summary(folder)
    valid, test = _figures(run)
    seconds = f"{run.seconds_an_epoch or 0:.1f}, {run.seconds or 0:.0f}"
    return (
        f"| [{name}]({name}/curves.svg) | {options} | {run.settings['epochs']} | {seconds} | "
        f"{_beside(valid, experiment.valid)} | {_beside(test, experiment.test)} |"
    )


def _figures(run: Summary) -> tuple[str, str]:
    return tuple("-" if value is None else f"{value:.2f}" for value in (run.best, run.test))


def _beside(ours: str, published: float | None) -> str:
    return ours if published is None else f"{ours} ({published})"


def _epochs(rows: list[dict[str, Any]]) -> list[str]:
    """What `benchmarks.epochs` found, the newest row of each preset."""
    newest = {row["preset"]: row for row in rows}
    table = [
        "| preset | fastrnn.train | word_language_model | times as fast |",
        "|---|---|---|---|",
    ]
    for preset, row in newest.items():
        ours, peer = (_spread(row[name]) for name in ("ours", "torch.nn"))
        table.append(f"| {preset} | {ours} | {peer} | {row['ratio']} |")
    last = rows[-1]
    return [
        "## Time of an epoch",
        "Seconds of an epoch's steps, [20th, 80th percentile], of the trainer and of the loop of "
        "pytorch's word_language_model in torch.nn, with the same settings on the same text, step "
        "by step in turns, on all processors and without validation: `python -m benchmarks.epochs "
        f"--out docs/experiments/{EPOCHS}`. {last['cpu']}, torch {last['torch']}, commit "
        f"{last['commit']}.",
        "\n".join(table),
    ]


def _spread(seconds: dict[str, float]) -> str:
    return f"{seconds['p50']:.1f} [{seconds['p20']:.1f}, {seconds['p80']:.1f}]"


def main(arguments: list[str] | None = None) -> int:
    """Take what is there and write the page; exit code 0, or 2 after a mistake."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of runs")
    parser.add_argument("--out", type=Path, default=FOLDER, help="(default: docs/experiments)")
    options = parser.parse_args(arguments)
    try:
        if options.runs:
            taken = tuple(map(str, take(options.runs, options.out)))
            title = "Experiments"
            write_report(ReportingOptions(taken, str(options.out / REPORT), title))
        (options.out / PAGE).write_text(page(options.out))
    except (UserError, OSError) as error:
        print(f"benchmarks.experiments: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
