"""The report of a few made-up rows."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from benchmark_rows import made_up, scaled

from benchmarks import report, results, sections, suites
from benchmarks.machine import ROOT


def rows():
    yield made_up()
    yield made_up(malloc="kept", ratio={"torch.nn": 1.23})
    forward = made_up("layers/lstm/infer/35x20x200x200x2/float32/native", mode="infer")
    yield scaled(forward, 0.4)
    yield made_up("layers/gru/train/35x20x650x650x2/float32/native", error="it broke")
    for value, axis in ((1, "T"), (16, "T"), (256, "T"), (1, "B"), (8, "B")):
        for threads in (1, 2):
            name = f"growth/lstm/{axis}={value}/threads={threads}"
            row = scaled(made_up(name, "kept", threads=threads), value / threads)
            yield row | {"axis": axis, "value": value}
    speeds = {"ours": 20_000, "accelerated": 15_000, "torch.nn": 10_000}
    name = "language_model/lstm/35x20x200x200x2"
    times = {n: made_up()["times"]["ours"] for n in speeds}
    ratio = {n: 1.0 for n in speeds if n != "ours"}
    word_model = {"tokens_per_s": speeds, "times": times, "ratio": ratio}
    yield made_up(name, **word_model)
    faster = made_up()["floor"] | {"gflops": 1000.0}
    yield made_up(f"{name}/bfloat16", precision="bfloat16", floor=faster, **word_model)
    yield made_up("attention/train/4x8x512x64/boolean")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a report, and its page in one file."""
    folder = tmp_path_factory.mktemp("report")
    path, page = folder / "rows.jsonl", folder / "report.html"
    results.append(rows(), path)
    assert report.main([str(path), "--docs", str(folder), "--html", str(page)]) == 0
    return folder, page


def test_tables(made):
    text = (made[0] / "performance.md").read_text()
    case = "`layers/lstm/train/35x20x200x200x2/float32/native`"
    held = "12 | 10 (20) |"
    assert f"| {case} | default | 9.9 | 10 | 10.1 | 15 | 1.50 | 6 | 60% | {held}" in text
    below = "below: it needs 80% of the floor; this is 60%; forward is at 50%, backward at 67% |"
    assert f"| {case} | default | at least 2.00x torch.nn | 1.50x torch.nn | {below}" in text
    assert f"| {case} | kept | at least 1.23x torch.nn | 1.23x torch.nn | met |" in text
    assert "2 of 7 are met" in text and "| it broke |" in text
    assert "ours 1.00 on 1 thread; torch.nn 0.00 on 1 thread" in text


def test_every_row_is_on_the_page(made):
    text = (made[0] / "performance.md").read_text()
    assert all(f"| `{row['case']}` | {row['malloc']} |" in text for row in rows())
    shown = {"layers", "growth", *(suite for suite, _, _ in sections.SUITES)}
    assert shown == {case.suite for case in suites.all_cases().values()}


def test_the_rate_of_float32_is_that_of_float32_products(made):
    text = (made[0] / "performance.md").read_text()
    assert "| 2 | 500, 500, 500 GFLOP/s |" in text


def test_every_picture_stands_beside_the_page_and_inside_it(made):
    docs, page = made
    named = set(re.findall(r"\]\((pictures/.*?\.svg)\)", (docs / "performance.md").read_text()))
    drawn = {f"pictures/{p.name}" for p in (docs / "pictures").iterdir()}
    assert named == drawn and len(drawn) == 7
    for name in drawn:
        ElementTree.parse(docs / name)
        assert (docs / name).stat().st_size < 100_000
    text = page.read_text()
    assert text.count("<svg") == 7
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    fetched = re.findall(r'(?:src|href)="([^"#][^"]*)"|url\((?!#)', text)
    assert not fetched, "the page must need nothing else"


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    command = [sys.executable, "-m", "benchmarks.report", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"python -m benchmarks.report: {command[-1]}: No such file or directory\n"


def test_the_same_rows_give_the_same_files(made, tmp_path):
    docs, page = made
    report.write(docs / "rows.jsonl", tmp_path, tmp_path / "again.html")
    for file in ("performance.md", "pictures/growth-T.svg"):
        assert (tmp_path / file).read_bytes() == (docs / file).read_bytes()
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
