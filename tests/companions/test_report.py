"""The page of all runs: what it counts, what it shows, that it needs nothing else."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fastrnn.lm import reporting
from fastrnn.lm.config import ModelOptions
from fastrnn.lm.counts import Counts, count
from fastrnn.lm.fragments import short
from fastrnn.lm.model import LanguageModel
from fastrnn.lm.reporting import page, short_names
from fastrnn.lm.run import CONFIG
from fastrnn.lm.summary import Summary, find_runs, read_summary
from fastrnn.report import main

CHROMIUM, NODE = shutil.which("chromium"), shutil.which("node")
SCRIPT = Path(reporting.__file__).parent / "page" / "page.js"
LINE = '{"split": "valid", "step": 3, "epoch": 1, "loss": 2.5, "seconds": 1.0}'
EVALUATION = "evaluation-test/evaluation.json"


def counts(cell: str, hidden: int, layers: int = 1, width: int = 0, tied: bool = False) -> Counts:
    options = ModelOptions(cell, width, hidden, num_layers=layers, tied=tied)  # type: ignore[arg-type]
    model = LanguageModel(28, options)
    return count({name: list(p.shape) for name, p in model.named_parameters()}, {})


# ---- what is counted


@pytest.mark.parametrize(
    ("cell", "hidden", "layers", "expected"),
    [
        *(("gru", n, 1, e) for n, e in ((8, "912"), (16, "2.21k"), (32, "5.95k"))),
        *(("gru", n, 1, e) for n, e in ((64, "18.05k"), (128, "60.67k"))),
        *(("lstm", n, 1, e) for n, e in ((8, "1.22k"), (16, "2.94k"), (32, "7.94k"))),
        *(("lstm", n, 1, e) for n, e in ((64, "24.06k"), (128, "80.9k"))),
        ("rnn-tanh", 64, 1, "6.02k"),
        *(("gru", 32, n, e) for n, e in ((3, "18.62k"), (5, "31.3k"))),
        *(("lstm", 32, n, e) for n, e in ((3, "24.83k"), (5, "41.73k"))),
    ],
)
def test_recurrent_parameters_are_those_published_for_the_time_machine(
    cell: str, hidden: int, layers: int, expected: str
) -> None:
    assert short(counts(cell, hidden, layers).recurrent) == expected


def test_products_and_the_other_parameters() -> None:
    assert counts("gru", 8) == Counts(912, 0, 28 * 9, 3 * 8 * (28 + 8), 28 * 8)
    lstm = Counts(4 * 8 * (5 + 8 + 8 + 8 + 4), 28 * 5, 28 * 9, 4 * 8 * (5 + 8 + 8 + 8), 28 * 8)
    assert counts("lstm", 8, 2, 5) == lstm
    tied = counts("rnn-relu", 8, 1, 8, tied=True)
    assert tied == Counts(8 * 18, 28 * 8, 28, 8 * 16, 28 * 8)
    shapes = {"rnn.bias_ih_l0": [24], "rnn.bias_hh_l0": [24], "decoder.weight": [28, 8]}
    assert count(shapes, {"init": "course"}).recurrent == 24


def test_counts_in_short() -> None:
    written = [short(n) for n in (0, 999, 1000, 4_653_200, 66_000_000, 2.5e9)]
    assert written == ["0", "999", "1k", "4.65M", "66M", "2.5G"]


def summary(metrics: list[dict[str, object]]) -> Summary:
    return Summary(Path("x"), {}, metrics, {}, {}, {})


def test_epochs_are_told_from_the_validations() -> None:
    def line(split: str, epoch: int, step: int) -> dict[str, object]:
        return {"split": split, "epoch": epoch, "step": step, "loss": 1.0, "seconds": step / 2}

    metrics = [line("train", 1, 5), line("valid", 1, 20), line("train", 2, 25)]
    metrics += [line("valid", 2, 30), line("train", 3, 36)]  # a second epoch of half the steps
    curve = summary(metrics).curve("train")
    assert curve["epoch"] == [0.25, 1.5, 2.4]
    assert curve["seconds"] == [2.5, 12.5, 18]
    assert curve["ppl"] == pytest.approx([math.e] * 3, rel=1e-5)


def test_losses_that_are_not_finite() -> None:
    lines = [
        {"split": "valid", "epoch": e, "step": e, "loss": loss, "seconds": 1.0}
        for e, loss in enumerate((2.0, None, 2000.0), 1)
    ]
    found = summary(lines)
    assert (found.best, found.last) == (math.exp(2), math.inf)
    assert found.seconds_an_epoch == 1 / 3
    assert found.curve("valid")["ppl"] == [pytest.approx(math.exp(2), rel=1e-5), 1e300]


def test_names_without_what_is_common() -> None:
    assert short_names([Path("/a/b/c"), Path("/a/d")]) == ["b/c", "d"]
    assert short_names([Path("/a/b/c")]) == ["c"]


# ---- the page


class Reader(HTMLParser):
    """Collects a page's elements, its table and its data; fails where tags do not pair."""

    VOID = ("meta", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.data = ""
        self.texts: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        if self.open and self.open[-1] == "script":
            self.data = self.data or data
        if self.open and self.open[-1] in ("pre", "h1", "h3"):
            self.texts.append(data)


def test_the_page_says_what_the_runs_say(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert main([str(runs), "-o", str(path), "--title", "A < B"]) == 0
    found = Reader(path.read_text())
    assert found.texts[0] == "A < B"
    heads, characters, words = found.rows[1:]
    assert heads[:4] == ["run", "test", "valid, best", "valid, last"]
    assert {"cell", "level", "optimizer", "lr", "hidden size"} <= set(heads)
    for name, row in (("words", words), ("characters", characters)):
        cells = dict(zip(heads, row, strict=False))
        metrics = [json.loads(m) for m in (runs / name / "metrics.jsonl").open()]
        result = json.loads((runs / name / "result.json").read_text())
        assert cells["run"] == name
        assert cells["test"] == f"{result['test_perplexity']:.2f}"
        valid = [m["ppl"] for m in metrics if m["split"] == "valid"]
        assert cells["valid, best"] == f"{min(valid):.2f}"
        assert cells["valid, last"] == f"{valid[-1]:.2f}"
        assert result["sample"] in found.texts
        drawn = next(r for r in json.loads(found.data)["runs"] if r["name"] == name)
        assert drawn["valid"]["ppl"] == pytest.approx(valid, rel=1e-5)
        assert drawn["valid"]["epoch"] == list(range(1, len(valid) + 1))
        assert len(drawn["train"]["ppl"]) == sum(m["split"] == "train" for m in metrics)
    # One-hot GRU of 8 on 7 characters; LSTM 2 x 16, tied, on 6 words.
    assert characters[-7:-2] == ["408", "0", "63", "360", "56"]
    assert words[-7:-2] == ["4.35k", "96", "6", "4.1k", "96"]


def test_the_page_needs_nothing_else(runs: Path) -> None:
    text = page([read_summary(folder) for folder in find_runs((str(runs),))], "Runs")
    for tag, attributes in Reader(text).elements:
        assert tag not in ("link", "img", "iframe", "object", "base")
        assert not {"src", "href", "srcset", "action"} & set(attributes)
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttp|import\(", text)
    addresses = set(re.findall(r"https?://[^\s\"']+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG's elements


def test_text_of_runs_cannot_become_markup(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<b>bold"
    shutil.copytree(runs / "words", folder)
    evil = '</script></pre><img src=x> <!--DATA--> "quoted"'
    (folder / "result.json").write_text(json.dumps({"sample": evil, "test_perplexity": 3.0}))
    config = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(config.replace('cell = "lstm"', "cell = '</script><i>'"))
    other = read_summary(runs / "characters")
    found = Reader(page([read_summary(folder), other], "</title>"))
    assert {"img", "i", "b"}.isdisjoint(tag for tag, _ in found.elements)
    assert evil in found.texts and "</title>" in found.texts
    assert json.loads(found.data)["runs"][0]["settings"]["cell"] == "</script><i>"


def test_runs_under_way_are_shown_as_far_as_they_are(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "young"
    run.mkdir()
    shutil.copy(runs / "words" / CONFIG, run / CONFIG)
    found = Reader(page([read_summary(run)], "x")).rows[2]
    assert found[:4] == ["young unfinished", "–", "–", "–"] and found[-1] == "–"
    lines = (runs / "words" / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines[: lines.index("valid") + 9])  # cut within a line
    assert read_summary(run).curve("train")["ppl"] and not read_summary(run).curve("valid")["ppl"]


def test_names_that_are_no_text_are_shown_with_a_mark(runs: Path, tmp_path: Path) -> None:
    folder, path = tmp_path / "run\udcff", tmp_path / "page.html"
    shutil.copytree(runs / "words", folder)
    assert main([str(folder), "-o", str(path), "--title", "runs of \udcff"]) == 0
    found = Reader(path.read_text())
    assert found.texts[0] == "runs of ?" and found.rows[2][0] == "run?"


def test_what_is_not_finite_is_shown_and_not_drawn(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs / "words", folder)
    steps = {"loss_per_step": [1.0, None], "gradient_norm_per_step": [0.5, 1.0]}
    own = {"perplexity": None, "dynamic": {"perplexity": None}} | steps
    (folder / EVALUATION).parent.mkdir(exist_ok=True)
    (folder / EVALUATION).write_text(json.dumps({"runs": [own]}))
    (folder / "result.json").write_text('{"test_perplexity": Infinity}')  # as it was once written
    found = Reader(page([read_summary(folder)], "x"))
    assert found.rows[2][1] == "inf"
    drawn = json.loads(found.data)["runs"][0]["steps"]
    assert drawn == {"test": {"loss": [], "gradient": [0.5, 1.0]}}


def test_folders_are_searched_and_found_once(runs: Path) -> None:
    names = [str(runs / "words"), str(runs)]
    assert [folder.name for folder in find_runs(tuple(names))] == ["words", "characters"]


def test_checkpoints_are_not_searched_nor_missed_while_they_are_replaced(
    runs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "last" / "run"  # the name alone makes no checkpoint
    shutil.copytree(runs / "words", run)
    whole = read_summary(run)
    for name in ("last", "last.new", "best.old"):
        (run / name).mkdir(exist_ok=True)
        (run / name / CONFIG).touch()
    assert find_runs((str(tmp_path),)) == [run]
    shutil.rmtree(run / "last")
    shutil.rmtree(run / "best.old")
    (run / "best").rename(run / "best.old")  # as between the two renamings of a save
    assert whole.shapes and read_summary(run).shapes == whole.shapes


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "name one folder of runs or more"),
        ("nowhere", "nowhere: no such folder"),
        ("{empty}", "holds no run: there is no config.toml in it"),
        ("{runs} -o {empty}/none/x.html", "{empty}/none/x.html: No such file or directory"),
        ("{runs} --titel x", "unknown option '--titel', did you mean '--title'?"),
        ("{runs} -o .", "--out '.': expected a file to write, got a folder"),
        ("{runs} --out=", "--out '': expected a file to write, got a folder"),
        ("{runs} -o {empty}", "expected a file to write, got a folder"),
    ],
)
def test_mistakes(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str, expected: str
) -> None:
    assert main(given.format(runs=runs, empty=tmp_path).split()) == 2
    told, expected = capsys.readouterr().err, expected.replace("{empty}", str(tmp_path))
    assert told.startswith("fastrnn.report: ") and expected in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("metrics.jsonl", "{}\n", "metrics.jsonl: damaged"),
        ("metrics.jsonl", "[\n", "metrics.jsonl: damaged"),
        ("metrics.jsonl", f"{LINE}\n5\n", "damaged: line 2 is not a JSON object of metrics"),
        ("metrics.jsonl", LINE.replace('h": 1', 'h": 0') + "\n", "metrics.jsonl: damaged: line 1"),
        ("metrics.jsonl", LINE.replace("2.5", '"2.5"') + "\n", "metrics.jsonl: damaged: line 1"),
        ("metrics.jsonl", LINE.replace("2.5", "NaN") + "\n", "metrics.jsonl: damaged: line 1"),
        ("result.json", "[]", "result.json: damaged: not a JSON object"),
        ("result.json", '{"test_perplexity": "x"}', "result.json: damaged: not what"),
        ("result.json", '{"sample": 3}', "result.json: damaged: not what"),
        (EVALUATION, "[]", "evaluation.json: damaged: not a JSON object"),
        (EVALUATION, '{"runs": [{}]}', "evaluation.json: damaged: not what"),
        (EVALUATION, '{"runs": 5, "split": "x"}', "evaluation.json: damaged: not what"),
        (EVALUATION, '{"runs": [{"perplexity": 1, "dynamic": {}}]}', "evaluation.json: damaged"),
        (EVALUATION, '{"runs": [{"perplexity": 1, "loss_per_step": [1]}]}', "json: damaged"),
        ("config.toml", "a = ", "config.toml: not valid TOML"),
        ("best/model.safetensors", "x", "the checkpoint is truncated or damaged"),
    ],
)
def test_damaged_files(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str,
    expected: str,
) -> None:
    shutil.copytree(runs / "words", tmp_path / "run")
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / name).write_text(content)
    assert main([str(tmp_path / "run"), "-o", str(tmp_path / "page.html")]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_a_damaged_run_is_left_out_and_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "bad <i>"):
        shutil.copytree(runs / "words", tmp_path / name)
    (tmp_path / "bad <i>" / CONFIG).write_text("a = ")
    assert main([str(tmp_path), "-o", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'page.html'}: 1 run\n"
    told = f"a run is left out: {tmp_path / 'bad <i>' / CONFIG}: not valid TOML: "
    assert printed.err.startswith(told) and printed.err.count("\n") == 1
    text = (tmp_path / "page.html").read_text()
    assert [row[0] for row in Reader(text).rows[2:]] == ["good"]
    assert f"bad &lt;i&gt;/{CONFIG}: not valid TOML" in text


def drawn(path: Path, folder: Path) -> list[str]:
    """The validation curves of a page, as a browser draws them."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--disable-background-networking", f"--user-data-dir={folder / 'browser'}"]
    command += ["--virtual-time-budget=3000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return re.findall(r'<path class="line valid" d="(M[^"]*)"', done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_draws_the_curves(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert main([str(runs), "-o", str(path)]) == 0
    # Two runs, each by epoch and by wall-clock.
    paths = drawn(path, tmp_path)
    assert len(paths) == 4
    assert "NaN" not in "".join(paths) and "Infinity" not in "".join(paths)
    words = len([p for p in paths if p.count("L") == 11])
    assert words == 2  # 12 epochs


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_has_a_scale_for_each_text(runs: Path, tmp_path: Path) -> None:
    first = find_runs([str(runs)])[0]
    for name, factor in (("low", 1.0), ("high", 100.0)):
        copy = tmp_path / "runs" / name
        shutil.copytree(first, copy)
        config = (copy / CONFIG).read_text()
        (copy / CONFIG).write_text(re.sub('data = ".*"', f'data = "{name}"', config))
        lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            line["ppl"] *= factor
            line["loss"] += math.log(factor)
        (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = tmp_path / "page.html"
    html = page([read_summary(each) for each in find_runs([str(tmp_path / "runs")])], "two")
    path.write_text(html.replace('"group": ""', '"group": "data"'))
    paths = drawn(path, tmp_path)
    assert len(paths) == 4
    for each in paths:
        last = float(each.rsplit(",", 1)[1])
        assert 0 <= last <= 270  # the height of a chart


@pytest.mark.skipif(NODE is None, reason="no node")
@pytest.mark.parametrize("values", [[6.2233], [0.0], [2.5, 2.5, 2.5]])
def test_a_chart_of_equal_values_has_a_scale(values: list[float]) -> None:
    """As of the time-steps of a run with --bptt 1, of which there is one."""
    source = SCRIPT.read_text(encoding="utf-8")
    functions = [
        re.search(rf"function {name}\(.*?\n}}\n", source, re.DOTALL)
        for name in ("ticks", "bounds", "chart")
    ]
    program = "".join(found[0] for found in functions if found)
    program += """
      const drawn = [], stroke = () => "";
      const element = (name, attributes, parent, text) => {
        drawn.push({ name, text, ...attributes });
        return { addEventListener() {} };
      };
      const y = JSON.parse(process.argv[1]), x = y.map((_, i) => i + 1);
      const [low, high] = bounds(y, false);
      const series = [{ name: "run", kind: "step", x, y }];
      chart({ clientWidth: 400 }, series, { x: "time-step", y: "loss", left: 1, low, high });
      console.log(JSON.stringify(drawn));
    """
    command = [str(NODE), "-e", program, "--", json.dumps(values)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    drawn = json.loads(done.stdout)
    (line,) = (each["d"] for each in drawn if each.get("class") == "line step")
    heights = [float(point.split(",")[1]) for point in line[1:].split("L")]
    assert heights == [129] * len(values)  # in the middle: 26 above, 38 below, of 270
    labels = [each["text"] for each in drawn if each.get("text-anchor") == "middle"]
    assert len(labels) == len(set(labels)) > 3  # no two places are called the same
