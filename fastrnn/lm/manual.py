"""The default corpus: the Python manual and docstrings that every CPython carries.

Both are read as source text with `ast` and never imported, so nothing is executed and the same
installation always gives the same words.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import textwrap
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from fastrnn.lm.errors import UserError

_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"}
# A paragraph holding one of these is code, grammar, a table or a list of calls, not prose.
_CODE = re.compile(
    r">>>|::=|\.\.\.  |  {3}\S|--|==|->|=\"|\w=\w|^\s*:\w|[{}\\|$@~<>]|^\s*[-=*^+#]{3,}", re.M
)
_FOOTNOTE = re.compile(r"\s*\[\d+\]")
_TOKEN = re.compile(r"\d[\d.,]*\d|\d|[a-z_][a-z_\d]*(?:['.-][a-z_\d]+)*|[.,:;?!()]")
_PLAIN = re.compile(r"[a-z]+(?:['-][a-z]+)*$")
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z\"'(])")
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2026": "."})


def manual_splits(library: Path | None = None) -> tuple[str, str, str]:
    """The manual as train, valid and test text: one lower-case sentence per line.

    Whole paragraphs go to one split or another by a hash of their text (90/5/5), so the three are
    alike; a sentence that occurs twice is kept once, so none of test's was seen in training.

    Args:
        library: folder of the standard library; default: that of the running interpreter.

    Returns:
        Three strings, each line a sentence of space-separated tokens.

    Raises:
        UserError: the folder holds no `pydoc_data/topics.py`.
    """
    library = library or Path(sysconfig.get_path("stdlib"))
    splits: tuple[list[str], list[str], list[str]] = ([], [], [])
    seen: set[str] = set()
    for paragraph in _paragraphs(library):
        # dict.fromkeys: a sentence may also be there twice within its paragraph.
        sentences = [s for s in dict.fromkeys(_sentences(paragraph)) if s not in seen]
        seen.update(sentences)
        share = zlib.crc32(paragraph.encode()) % 20
        splits[max(share - 17, 0)].extend(sentences)
    train, valid, test = ("".join(f"{line}\n" for line in split) for split in splits)
    return train, valid, test


def _paragraphs(library: Path) -> Iterator[str]:
    """Blank-line separated paragraphs of the manual's topics, then of the library's docstrings."""
    for document in _documents(library):
        yield from re.split(r"\n\s*\n", document)


def _documents(library: Path) -> Iterator[str]:
    topics = library / "pydoc_data" / "topics.py"
    if not topics.is_file():
        raise UserError(
            f"{topics}: this Python carries no manual; pass --data a folder, file or name"
        )
    for node in ast.walk(_parse(topics)):
        if isinstance(node, ast.Dict):
            for value in node.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value
    for path in sorted(library.rglob("*.py")):
        if _SKIPPED.isdisjoint(path.relative_to(library).parts):
            try:
                tree = _parse(path)
            except (SyntaxError, ValueError):  # templates and files for other versions
                continue
            yield from _docstrings(tree.body, ast.get_docstring(tree))


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in the library are not this program's matter
        return ast.parse(path.read_bytes())


def _docstrings(body: Iterable[ast.stmt], own: str | None) -> Iterator[str]:
    """A definition's docstring, then those inside it, without descending into expressions."""
    if own:
        yield own
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings(node.body, ast.get_docstring(node))
        elif isinstance(node, (ast.If, ast.Try)):
            yield from _docstrings([*node.body, *node.orelse], None)


def _sentences(paragraph: str) -> Iterator[str]:
    """Tokens of each sentence, if the paragraph reads as prose."""
    paragraph = textwrap.dedent(paragraph).translate(_QUOTES)
    if _CODE.search(paragraph) or "." not in paragraph:
        return
    text = _FOOTNOTE.sub("", " ".join(paragraph.split()))
    for sentence in _SENTENCE_END.split(text):
        tokens = _TOKEN.findall(sentence.lower())
        tokens = ["N" if token[0].isdigit() else token for token in tokens]
        words = [token for token in tokens if _PLAIN.match(token)]
        if len(words) >= 4 and len(words) >= 0.7 * len(tokens) and tokens[-1] in ".?!:)":
            yield " ".join(tokens)
