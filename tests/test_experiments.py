"""The page of experiments, from the folders of runs."""

import json
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("tyro")

from benchmarks import experiments  # noqa: E402
from fastrnn.lm.command_line import parse  # noqa: E402
from fastrnn.lm.datasets import DATASETS  # noqa: E402
from fastrnn.lm.settings import to_toml  # noqa: E402

EVERY = [each for _, some in experiments.SECTIONS.values() for each in some]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A finished run, one under way, and one that is no experiment."""
    for name in ("s3-gru", "s3-lstm", "mine"):
        folder = tmp_path / "runs" / name
        (folder / "last").mkdir(parents=True)
        (folder / "config.toml").write_text(to_toml(parse(["--preset", "s3-gru"])))
        lines = [
            {"step": 5 * e, "epoch": e, "split": "valid", "loss": 5.0 - e / 10, "ppl": 0, "lr": 1}
            | {"tokens_per_s": 1, "seconds": 30.0 * e}
            for e in (1, 2)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "log.txt").write_text("writing /somewhere/of/mine")
        (folder / "curves.svg").write_text("<svg/>")
        if name != "s3-lstm":
            (folder / "result.json").write_text(
                json.dumps({"test_perplexity": 117.25, "sample": ""})
            )
    return tmp_path / "runs"


def test_finished_runs_are_taken_and_shown(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "docs"
    assert experiments.main([str(tmp_path), str(runs), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "report.html", "s3-gru"]
    assert sorted(path.name for path in (out / "s3-gru").iterdir()) == sorted(experiments.FILES)
    page = (out / "README.md").read_text()
    row = next(line for line in page.splitlines() if "[s3-gru](s3-gru/curves.svg)" in line)
    assert row.endswith("| `--preset s3-gru` | 14 | 30.0, 60 | 121.51 (122.1) | 117.25 (118.6) |")
    assert "| s3-lstm | `--preset s3-lstm` | - | - | - (126.3) | - (122.2) |" in page
    assert "/somewhere" not in page + (out / "report.html").read_text()
    row = {"preset": "s3-gru", "ours": {"p20": 1, "p50": 2, "p80": 3}, "ratio": 2.5, "cpu": "C"}
    row |= {"torch.nn": {"p20": 4, "p50": 5, "p80": 6}, "torch": "2", "commit": "abc"}
    (out / "epochs.jsonl").write_text(
        json.dumps(row | {"ratio": 1}) + "\n" + json.dumps(row) + "\n"
    )
    assert experiments.main(["--out", str(out)]) == 0
    again = (out / "README.md").read_text()
    assert "| s3-gru | 2.0 [1.0, 3.0] | 5.0 [4.0, 6.0] | 2.5 |" in again and again.startswith(
        page[:99]
    )


def test_options_are_those_of_the_trainer() -> None:
    assert len({each.name for each in EVERY}) == len(EVERY)
    for each in EVERY:
        assert parse(each.options.split()).run.preset is not None


def test_the_page_in_docs_is_of_the_files_beside_it() -> None:
    page = (experiments.FOLDER / experiments.PAGE).read_text()
    assert page == experiments.page(experiments.FOLDER)


def test_what_is_kept_names_no_place_of_a_machine() -> None:
    configs = list(experiments.FOLDER.glob("*/config.toml"))
    data = {tomllib.loads(path.read_text())["data"] for path in configs}
    assert data and data <= set(DATASETS)


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert experiments.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no finished run of an experiment" in capsys.readouterr().err
