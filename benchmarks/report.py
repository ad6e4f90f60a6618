"""docs/performance.md with its pictures, and benchmarks/report.html, from kept rows.

python -m benchmarks.report [FILE]
"""

from __future__ import annotations

import argparse
import html
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks import results
from benchmarks.machine import ROOT
from benchmarks.sections import Section, sections
from benchmarks.tables import Table
from fastrnn.lm.program import run_program

INTRODUCTION = """`make bench` measures all of it again and writes this page;
`python -m benchmarks CASE --malloc SETTING` measures one line of it, `pytest benchmarks/` every
line, as tests. Rows are kept in benchmarks/results/; `python -m benchmarks.compare A B` says what
got slower between two files or commits.

Times are milliseconds. A case is checked against torch.nn or the reference first. Then every round
times ours and each peer once, in turns forwards and backwards; rounds in which another program
took the processors are left out. p20, p50 and p80 are ours, of the rounds that count; peers show
their p50, and ratio is a peer's p50 over ours: above 1, ours is faster. The floor is the time of
the multiply-adds at the measured rate, or of reading and writing each input, weight, output and
gradient once ("MB moved") at the measured bandwidth, whichever is longer. "MB held" is the most
memory that a run adds to weights and gradients, ours (and each peer's).

A malloc setting reaches the peer, too, so each case has a new process under each: "default"
hands large buffers back to the system every time, "kept" keeps them
(MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ at 4294967296)."""

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:96rem;margin:2rem auto;padding:0 1rem;
color:#24292f;background:#fff}table{border-collapse:collapse;font-size:13px;margin:1rem 0;
display:block;overflow-x:auto}td,th{padding:.2rem .6rem;border-bottom:1px solid #d0d7de;
text-align:right;white-space:nowrap}td:first-child,th:first-child,td.t,th.t{text-align:left}
td.w{white-space:normal;min-width:15rem}tr:hover td{background:#f6f8fa}
code{font:12px ui-monospace,monospace}svg{max-width:100%;height:auto}
h2{border-bottom:1px solid #d0d7de;margin-top:2.5rem}nav a{margin-right:1rem}"""


def markdown(parts: Iterable[Section], folder: str) -> str:
    """The page, with pictures in a folder beside it.

    Args:
        parts: what it says.
        folder: of the pictures, from the page.
    """
    text = ["# Performance", INTRODUCTION]
    for part in parts:
        text.append(f"## {part.title}")
        if part.text:
            text.append(part.text)
        text += [f"![{part.title}: {name}]({folder}/{name}.svg)" for name in part.pictures]
        if part.table:
            heads, *lines = part.table
            rule = ["---" if _is_text(part.table, k) else "--:" for k in range(len(heads))]
            table = [heads, rule, *lines]
            text.append("\n".join(f"| {' | '.join(line)} |" for line in table))
    return "\n\n".join(text) + "\n"


def page(parts: Iterable[Section]) -> str:
    """The page as one file of HTML that needs nothing else."""
    parts = list(parts)
    links = "".join(
        f'<a href="#s{k}">{html.escape(part.title)}</a>' for k, part in enumerate(parts)
    )
    body = [f"<h1>Performance</h1><nav>{links}</nav>"]
    body += [f"<p>{_marked(paragraph)}</p>" for paragraph in INTRODUCTION.split("\n\n")]
    for k, part in enumerate(parts):
        body.append(f'<h2 id="s{k}">{html.escape(part.title)}</h2>')
        if part.text:
            body.append(f"<p>{_marked(part.text)}</p>")
        for name, picture in part.pictures.items():
            # Names inside an SVG are the page's: two pictures must not share them.
            alone = re.sub(
                r'(id="|url\(#|href="#)', rf"\1{name}-", picture[picture.index("<svg") :]
            )
            body.append(f"<figure>{alone}</figure>")
        if part.table:
            body.append(_html_table(part.table))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>fastrnn performance</title>'
        f"<style>{STYLE}</style><body>{''.join(body)}</body></html>\n"
    )


def _is_text(table: Table, column: int) -> bool:
    """Whether a column holds words: anything but numbers and blanks."""
    return not all(line[column][:1].isdigit() for line in table[1:] if line[column])


def _html_table(table: Table) -> str:
    heads, *lines = table
    kinds = ["t" if _is_text(table, k) else "" for k in range(len(heads))]
    text = "".join(
        f'<th class="{kind}">{_marked(cell)}' for kind, cell in zip(kinds, heads, strict=True)
    )
    for line in lines:
        cells = (
            f'<td class="{kind}{" w" * (len(cell) > 60 and k > 0)}">{_marked(cell)}'
            for k, (kind, cell) in enumerate(zip(kinds, line, strict=True))
        )
        text += f"<tr>{''.join(cells)}"
    return f"<table><tr>{text}</table>"


def _marked(text: str) -> str:
    """Escaped, with `code` set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def write(path: Path, docs: Path, html_file: Path) -> None:
    """Make the report.

    Args:
        path: file of rows.
        docs: folder for performance.md and pictures/.
        html_file: where the page in one file goes.

    Raises:
        ValueError: the file has no rows.
    """
    rows = results.read(path)
    if not rows:
        raise ValueError(f"benchmarks: {path} has no rows")
    elsewhere = {
        processor: list(results.newest(results.read(file)).values())
        for processor, file in results.OTHERS.items()
        if file.is_file()
    }
    parts = list(sections(list(results.newest(rows).values()), elsewhere))
    pictures = docs / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for part in parts:
        for name, picture in part.pictures.items():
            (pictures / f"{name}.svg").write_text(picture)
    (docs / "performance.md").write_text(markdown(parts, pictures.name))
    html_file.write_text(page(parts))


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, write the report.

    Returns:
        0; 2 on a mistake in the command line.

    Raises:
        OSError: a file cannot be read or written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("file", nargs="?", type=Path, default=results.FULL, help="of rows")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--html", type=Path, default=ROOT / "benchmarks" / "report.html")
    options = parser.parse_args(arguments)
    try:
        write(options.file, options.docs, options.html)
    except ValueError as error:
        parser.error(str(error))
    print(f"wrote {options.docs / 'performance.md'} and {options.html}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program("python -m benchmarks.report", main))
