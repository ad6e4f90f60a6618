"""Corpora found and read, dictionaries, columns."""

import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("tyro")

from fastrnn.lm.config import CorpusOptions  # noqa: E402
from fastrnn.lm.corpus import read_corpus, read_text, split_lines  # noqa: E402
from fastrnn.lm.data import (  # noqa: E402
    IGNORED,
    Vocabulary,
    batchify,
    load_corpus,
    scored_columns,
    tokenize,
)
from fastrnn.lm.errors import UserError  # noqa: E402
from fastrnn.lm.manual import manual_splits  # noqa: E402


def dataset(name: str) -> Path:
    """A corpus in the folder that FASTRNN_DATA names; skips the test without it."""
    path = Path(os.environ.get("FASTRNN_DATA", "")) / name
    if "FASTRNN_DATA" not in os.environ or not path.exists():
        pytest.skip(f"FASTRNN_DATA names no folder with {name}")
    return path


def test_batchify_reads_columns_downwards() -> None:
    columns = batchify(torch.arange(11), 3)
    assert columns.tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert columns.is_contiguous()


def test_scored_columns_predict_every_token_once() -> None:
    inputs, targets = scored_columns(torch.arange(1, 8), 3, 99)
    assert inputs.tolist() == [[99, 3, 6], [1, 4, 99], [2, 5, 99]]
    assert targets.tolist() == [[1, 4, 7], [2, 5, IGNORED], [3, 6, IGNORED]]


def test_tokens_end_every_line_with_eos() -> None:
    text = "the cat\n\n sat \n"
    assert tokenize(text, "word") == ["the", "cat", "<eos>", "<eos>", "sat", "<eos>"]
    assert tokenize("ab\n c\n", "char") == ["a", "b", "<eos>", " ", "c", "<eos>"]


def test_vocabulary_is_ordered_by_frequency_and_encodes_the_unknown() -> None:
    words = ["b", "a", "b", "<eos>", "c", "b", "a", "<eos>"]
    vocabulary = Vocabulary.of(words, min_count=2)
    assert vocabulary.tokens == ["b", "a", "<eos>", "<unk>"]
    assert vocabulary.encode(["a", "c", "b", "<eos>"]).tolist() == [1, 3, 0, 2]
    assert vocabulary.encode([]).dtype == torch.int64


def test_folder_uses_the_training_text_alone_for_its_dictionary(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a b a b\nb a <unk>\n")
    (tmp_path / "valid.txt").write_text("a z\n")
    (tmp_path / "test.txt").write_text("b")
    corpus = load_corpus(CorpusOptions(str(tmp_path)), 1, 2)
    assert set(corpus.vocabulary.tokens) == {"a", "b", "<unk>", "<eos>"}
    tokens = corpus.vocabulary.tokens
    assert [tokens[i] for i in corpus.valid] == ["a", "<unk>", "<eos>"]
    assert [tokens[i] for i in corpus.test] == ["b", "<eos>"]


def test_words_seen_once_become_unknown_unless_the_text_has_unknowns(tmp_path: Path) -> None:
    for text, kept in (("a a rare\n", False), ("a a rare <unk>\n", True)):
        for split in ("train", "valid", "test"):
            (tmp_path / f"{split}.txt").write_text(text)
        corpus = load_corpus(CorpusOptions(str(tmp_path)), 1, 2)
        assert ("rare" in corpus.vocabulary.numbers) == kept
    corpus = load_corpus(CorpusOptions(str(tmp_path), min_count=2), 1, 2)
    assert "rare" not in corpus.vocabulary.numbers


def test_one_file_is_split_by_lines(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    # A form feed or a line separator inside a line must not count as a line end.
    path.write_text("".join(f"line\x0c {i}\u2028\n" for i in range(40)), encoding="utf-8")
    train, valid, test = read_corpus(str(path))
    assert [t.count("\n") for t in (train, valid, test)] == [36, 2, 2]
    assert train + valid + test == path.read_text(encoding="utf-8")


def test_line_ends_byte_order_mark_and_gutenberg_marks_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(
        b"\xef\xbb\xbfheader\r\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\r\n"
        b"one\r\ntwo\rlast\n"
        b"*** END OF THE PROJECT GUTENBERG EBOOK X ***\nlicence\n"
    )
    assert read_text(path) == "one\ntwo\nlast\n"


def test_text_that_is_not_utf8_is_named_with_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("näive\n".encode() * 3 + b"caf\xe9\n")
    with pytest.raises(UserError, match=r"text\.txt: not UTF-8 text: invalid at byte 24$"):
        read_text(path)


def test_too_few_lines_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="10 lines are too few to split 90/5/5"):
        split_lines("a\n" * 10, tmp_path)


def test_known_name_without_a_folder_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTRNN_DATA", raising=False)
    with pytest.raises(UserError, match="FASTRNN_DATA to a folder that holds ptb"):
        read_corpus("ptb")


def test_known_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRNN_DATA", str(tmp_path))
    (tmp_path / "time_machine.txt").write_text("a line\n" * 100)
    assert read_corpus("time-machine")[1] == "a line\n" * 5
    with pytest.raises(UserError, match="wikitext-2 does not exist"):
        read_corpus("wikitext-2")


def test_penn_treebank_has_its_published_counts() -> None:
    corpus = load_corpus(CorpusOptions(str(dataset("ptb"))), 20, 35)
    assert len(corpus.vocabulary) == 10_000
    counts = [t.numel() for t in (corpus.train, corpus.valid, corpus.test)]
    assert counts == [929_589, 73_760, 82_430]


def test_wikitext_has_its_published_counts() -> None:
    corpus = load_corpus(CorpusOptions(str(dataset("wikitext-2"))), 20, 35)
    assert len(corpus.vocabulary) == 33_278
    counts = [t.numel() for t in (corpus.train, corpus.valid, corpus.test)]
    assert counts == [2_088_628, 217_646, 245_569]


def test_time_machine_is_cut_to_the_book() -> None:
    text = "".join(read_corpus(str(dataset("time_machine.txt"))))
    assert "The Time Traveller" in text
    assert "*** START" not in text and "gutenberg.org" not in text


def fake_library(folder: Path) -> Path:
    (folder / "pydoc_data").mkdir()
    (folder / "pydoc_data" / "topics.py").write_text(
        "topics = {'with': 'The with statement\\n***\\n\\nIt wraps the \"block\" of *some* code. "
        "The manager\\nis called twice [3].\\n\\n   with x as y:\\n      pass\\n'}\n"
    )
    (folder / "module.py").write_text(
        'open(__file__ + ".ran", "w")\n'
        "class A:\n"
        '    """Hold a value for later use.\n\n    >>> A().hold(1)\n    """\n'
        "    if True:\n"
        "        def hold(self):\n"
        '            """It wraps the block of some code."""\n'
    )
    (folder / "broken.py").write_text("def (:\n")
    (folder / "test").mkdir()
    (folder / "test" / "test_x.py").write_text('"""This sentence is not for reading."""\n')
    return folder


def test_manual_is_read_as_prose_without_being_run(tmp_path: Path) -> None:
    library = fake_library(tmp_path)
    lines = "".join(manual_splits(library)).splitlines()
    assert sorted(lines) == [
        "hold a value for later use .",
        "it wraps the block of some code .",
        "the manager is called twice .",
    ]
    assert not (library / "module.py.ran").exists()
    assert manual_splits(library) == manual_splits(library)


def test_python_without_a_manual_says_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"topics\.py: this Python carries no manual; pass --data"):
        manual_splits(tmp_path)


def test_manual_of_this_python_is_english_in_three_alike_parts() -> None:
    train, valid, test = manual_splits()
    words = train.split()
    assert len(words) > 100_000
    assert len(words) / 40 < len(test.split()) < len(words) / 10
    assert not set(train.splitlines()) & (set(valid.splitlines()) | set(test.splitlines()))
    common = {"the", "a", "is", "to", "of", "and", "in", "if", ".", ","}
    for split in (train, valid, test):
        tokens = split.split()
        assert 0.2 < sum(t in common for t in tokens) / len(tokens) < 0.45
        assert ">>>" not in split
