"""Corpora found and read, dictionaries, columns."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

pytest.importorskip("tyro")

from fastrnn.lm import encoded, texts  # noqa: E402
from fastrnn.lm.batches import IGNORED, Sentences  # noqa: E402
from fastrnn.lm.config import CorpusOptions, TrainingOptions  # noqa: E402
from fastrnn.lm.corpus import read_corpus  # noqa: E402
from fastrnn.lm.data import batchify, load_corpus, scored_columns  # noqa: E402
from fastrnn.lm.errors import UserError  # noqa: E402
from fastrnn.lm.manual import manual_splits  # noqa: E402
from fastrnn.lm.texts import TextFile, split_lines  # noqa: E402
from fastrnn.lm.tokens import DOCUMENT, Vocabulary, pairs_text, tokenize  # noqa: E402


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


def test_a_dictionary_of_nothing_but_unknown_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"word{n}\n" for n in range(200)))
    for least, count in ((None, 2), (9, 9)):
        with pytest.raises(UserError, match=f"seen --min-count = {count} times, got none .* 1$"):
            load_corpus(CorpusOptions(str(path), min_count=least), 2, 5)
    assert load_corpus(CorpusOptions(str(path), min_count=1), 2, 5).vocabulary.numbers["word0"]


def test_one_file_is_split_by_lines(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    # A form feed or a line separator inside a line must not count as a line end.
    path.write_text("".join(f"line\x0c {i}\u2028\n" for i in range(40)), encoding="utf-8")
    train, valid, test = ("".join(part) for part in read_corpus(str(path)))
    assert [t.count("\n") for t in (train, valid, test)] == [36, 2, 2]
    assert train + valid + test == path.read_text(encoding="utf-8")


def test_line_ends_byte_order_mark_and_gutenberg_marks_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(
        b"\xef\xbb\xbfheader\r\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\r\n"
        b"one\r\ntwo\rlast\n"
        b"*** END OF THE PROJECT GUTENBERG EBOOK X ***\nlicence\n"
    )
    assert "".join(TextFile(path)) == "one\ntwo\nlast\n"


def test_text_that_is_not_utf8_is_named_with_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("näive\n".encode() * 3 + b"caf\xe9\n")
    with pytest.raises(UserError, match=r"text\.txt: not UTF-8 text: invalid at byte 24$"):
        TextFile(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n" * 10, "10 lines are too few to split 90/5/5"),
        ("a\n", "1 line is too few to split 90/5/5"),
        ("a\n" * 95 + "\n" * 5, "test has nothing but blank ones"),
        ("a\n" * 90 + " \n" * 5 + "a\n" * 5, "valid has nothing but blank ones"),
    ],
)
def test_too_few_lines_cannot_be_split(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "text.txt").write_text(text)
    with pytest.raises(UserError, match=expected):
        split_lines(TextFile(tmp_path / "text.txt"))


def test_known_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRNN_DATA", str(tmp_path))
    (tmp_path / "time_machine.txt").write_text("a line\n" * 100)
    assert "".join(read_corpus("time-machine")[1]) == "a line\n" * 5


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
    text = "".join(map("".join, read_corpus(str(dataset("time_machine.txt")))))
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


# ---- pieces, encodings and their cache


def test_pieces_join_to_the_text_wherever_they_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("".join(f"é{i} line\r\n" for i in range(60)).encode() + b"x" * 50 + b"\nend")
    whole = path.read_bytes().decode().replace("\r\n", "\n") + "\n"
    for size in (7, 20, 10**6):
        monkeypatch.setattr(texts, "PIECE", size)
        pieces = list(TextFile(path))
        assert "".join(pieces) == whole
        assert all(piece.endswith("\n") for piece in pieces)
        train, valid, test = ("".join(part) for part in split_lines(TextFile(path)))
        assert (train + valid + test, valid.count("\n"), test.count("\n")) == (whole, 3, 4)
        corpus = load_corpus(CorpusOptions(str(path)), 1, 2)
        assert corpus.train.numel() == len(tokenize(train, "word"))


def test_a_corpus_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text("a b c b\n" * 60)
    first = load_corpus(CorpusOptions(str(path)), 1, 2)
    (kept,) = (tmp_path / "cache" / "encoded").iterdir()
    assert kept.stat().st_mode == kept.parent.stat().st_mode  # others may read it, too
    written = (kept / "train.int32").stat().st_mtime_ns
    again = load_corpus(CorpusOptions(str(path)), 1, 2)
    assert (kept / "train.int32").stat().st_mtime_ns == written
    numbers = first.train.tolist()
    assert again.train.tolist() == numbers and again.fingerprint == first.fingerprint
    other = load_corpus(CorpusOptions(str(path), level="char"), 1, 2)
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    "name", ["train.int32", "counts.json", "vocabulary.json", "tokenizer.json"]
)
@pytest.mark.parametrize("content", [b"", b"[1", None])
def test_what_a_crash_has_left_of_an_encoded_text_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None
) -> None:
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text("a b c b\n" * 60)
    options = CorpusOptions(str(path))
    if name == "tokenizer.json":
        pytest.importorskip("tokenizers")
        options.level = "bpe"
    first = load_corpus(options, 1, 2)
    (kept,) = (tmp_path / "cache" / "encoded").iterdir()
    whole, numbers = (kept / name).read_bytes(), first.train.tolist()
    (kept / name).unlink()
    if content is not None:
        (kept / name).write_bytes(content)
    mended = load_corpus(options, 1, 2)
    assert mended.train.tolist() == numbers
    assert mended.vocabulary.tokens == first.vocabulary.tokens
    assert (kept / name).read_bytes() == whole


def test_who_encodes_the_same_at_once_all_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text("a b c b\n" * 60)
    read, together = encoded._read, Barrier(8)

    def slowly(*arguments: Any) -> Any:  # what was not there may be when it is acted on
        found = read(*arguments)
        if found is None:
            time.sleep(0.05)
        return found

    def numbers(_: int) -> list[int]:
        together.wait()
        return load_corpus(CorpusOptions(str(path)), 1, 2).train.tolist()

    monkeypatch.setattr(encoded, "_read", slowly)
    with ThreadPoolExecutor(8) as threads:
        first, *others = threads.map(numbers, range(8))
    assert all(other == first for other in others)
    (kept,) = (tmp_path / "cache" / "encoded").iterdir()
    assert len(first) == (kept / "train.int32").stat().st_size // 4


def test_cache_that_cannot_be_written_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "file"))
    (tmp_path / "text.txt").write_text("a b\n" * 100)
    with pytest.raises(UserError, match="file/encoded: cannot be written: .*set FASTRNN_CACHE"):
        load_corpus(CorpusOptions(str(tmp_path / "text.txt")), 1, 2)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = tmp_path / "large.txt"
    line = " ".join(f"word{k % 97}" for k in range(200)) + "\n"
    with path.open("w") as file:
        for _ in range(300):
            file.write(line * 500)  # 210 MB in all
    code = (
        "import resource\n"
        "from fastrnn.lm.batches import Columns\n"
        "from fastrnn.lm.config import CorpusOptions, TrainingOptions\n"
        "from fastrnn.lm.data import load_corpus\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"corpus = load_corpus(CorpusOptions({str(path)!r}), 20, 35)\n"
        "columns = Columns(corpus.train, TrainingOptions(), None)\n"
        "assert sum(columns.get(1, k).count for k in range(50)) == 35_000\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < path.stat().st_size


# ---- levels


def test_letters_are_27_symbols_and_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("The Quick, brown\nFOX jumps -- 'over'\n the lazy dog.\n" * 20)
    monkeypatch.setattr(texts, "PIECE", 5)  # a run of other characters falls on two pieces
    corpus = load_corpus(CorpusOptions(str(path), level="char", charset="letters"), 1, 2)
    assert sorted(corpus.vocabulary.tokens) == [" ", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    text = "".join(corpus.vocabulary.tokens[i] for i in corpus.train)
    assert text.startswith("the quick brown fox jumps over the lazy dog the quick")
    assert "  " not in text and corpus.vocabulary.tokens[corpus.vocabulary.eos] == " "


def test_the_time_machine_has_its_28_symbols() -> None:
    path = str(dataset("time_machine.txt"))
    corpus = load_corpus(CorpusOptions(path, level="char", charset="letters"), 1, 2)
    assert len(corpus.vocabulary) == 28


def test_byte_pairs_come_back_as_the_text(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "text.txt"
    line = "the naïve thinker — thinks, therefore the thin thing\n"
    path.write_text(line * 100, encoding="utf-8")
    least = CorpusOptions(str(path), level="bpe", bpe_size=258)
    assert len(load_corpus(least, 1, 2).vocabulary) == 258  # bytes, <eos> and <unk>
    options = CorpusOptions(str(path), level="bpe", bpe_size=300)
    corpus = load_corpus(options, 1, 2)
    assert 258 <= len(corpus.vocabulary) <= 300 and corpus.tokenizer is not None
    tokens = [corpus.vocabulary.tokens[i] for i in corpus.valid]
    assert pairs_text(tokens) == line * 5
    assert len(tokens) < len(line * 5) / 2  # what is frequent has become one piece
    assert corpus.vocabulary.unknown not in corpus.train


def test_byte_pairs_are_learnt_from_lines_as_they_are_cut(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "text.txt"
    path.write_text("one\n\n\n  two\n" * 100)
    options = CorpusOptions(str(path), level="bpe", bpe_size=300)
    vocabulary = load_corpus(options, 1, 2).vocabulary
    pairs = {t for t in vocabulary.tokens if len(t) > 1 and t not in ("<eos>", "<unk>")}
    assert {"one", "Ġtwo"} <= pairs and not any("Ċ" in pair for pair in pairs)  # Ċ: a newline
    seen = {vocabulary.tokens[n] for n in load_corpus(options, 1, 2).train.tolist()}
    assert seen == {"one", "Ġ", "Ġtwo", "<eos>"}


def test_documents_begin_with_a_token_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("= One =\na b\n= Two =\nc d\n" * 30)
    corpus = load_corpus(CorpusOptions(str(path), documents="^= .* =$"), 1, 2)
    tokens = [corpus.vocabulary.tokens[i] for i in corpus.train[:18]]
    one, two = (
        ["=", "One", "=", "<eos>", "a", "b", "<eos>"],
        ["=", "Two", "=", "<eos>", "c", "d", "<eos>"],
    )
    assert tokens == [DOCUMENT, *one, DOCUMENT, *two, DOCUMENT, "="]
    assert corpus.vocabulary.document == corpus.vocabulary.numbers[DOCUMENT]


def test_sentences_are_rows_of_their_own() -> None:
    eos = 0
    text = torch.tensor([5, 6, eos, eos, 7, 8, 9, eos, 4, eos], dtype=torch.int32)
    rows = Sentences(text, TrainingOptions(batch_size=2, seed=3), eos)
    assert rows.count(1) == 2
    seen = []
    for batch in rows.every(3):
        assert not batch.carried and batch.lengths is not None
        for column, length in enumerate(batch.lengths.tolist()):
            targets = batch.targets[:, column].tolist()
            assert set(targets[length:]) <= {IGNORED}
            assert batch.inputs[:length, column].tolist() == [eos, *targets[: length - 1]]
            seen.append(targets[:length])
        assert batch.count == int(batch.lengths.sum())
    assert seen == [[eos], [4, eos], [5, 6, eos], [7, 8, 9, eos]]
    epochs = [[rows.get(e, k).targets.tolist() for k in range(2)] for e in (1, 2, 3, 4)]
    assert any(epoch != epochs[0] for epoch in epochs)
    again = Sentences(text, TrainingOptions(batch_size=2, seed=3), eos)
    assert [again.get(1, k).targets.tolist() for k in range(2)] == epochs[0]
