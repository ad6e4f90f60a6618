"""How many batches there are, and those that hold little: documents of a token, rare letters."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tyro")

from fastrnn.lm.batches import Columns, Sentences, count_batches  # noqa: E402
from fastrnn.lm.checkpoint import load_checkpoint  # noqa: E402
from fastrnn.lm.config import CorpusOptions, TrainingOptions  # noqa: E402
from fastrnn.lm.data import load_corpus  # noqa: E402
from fastrnn.lm.tokens import DOCUMENT  # noqa: E402
from fastrnn.train import main  # noqa: E402
from tests.test_parallel import assert_alike, finish, start  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_pictures", "one_thread")


def test_batches_are_counted_without_drawing_more_epochs_than_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = []
    draw_ends = Columns._draw_ends

    def draw(columns: Columns, epoch: int) -> np.ndarray:
        drawn.append(epoch)
        return draw_ends(columns, epoch)

    monkeypatch.setattr(Columns, "_draw_ends", draw)
    tokens = torch.arange(2000) % 9
    options = TrainingOptions(batch_size=4, bptt=20)
    varying = TrainingOptions(batch_size=4, bptt=20, random_bptt=True)

    assert count_batches(Columns(tokens, options, None), 10**9, None) == 25 * 10**9
    assert count_batches(Columns(tokens, options, None), 10**9, 70) == 70
    assert count_batches(Sentences(tokens, options, 0), 10**9, None) == 223 // 4 * 10**9
    assert drawn == [1, 1]

    random = Columns(tokens, varying, None)
    epochs = [random.count(epoch) for epoch in (1, 2, 3)]
    drawn.clear()
    assert count_batches(random, 3, None) == count_batches(random, 3, sum(epochs) + 1)
    assert count_batches(random, 3, None) == sum(epochs)
    drawn.clear()
    assert count_batches(random, 10**9, epochs[0] + 1) == epochs[0] + 1
    assert drawn == [1, 2]


# ---- documents


@pytest.mark.parametrize("documents", [None, "^="])
def test_a_mark_that_the_text_holds_is_a_word(tmp_path: Path, documents: str | None) -> None:
    path = tmp_path / "text.txt"
    path.write_text("= a\nb <doc> b\n" * 40)
    corpus = load_corpus(CorpusOptions(str(path), documents=documents), 1, 2)
    vocabulary = corpus.vocabulary
    tokens = [vocabulary.tokens[i] for i in corpus.test]
    mark = [] if documents is None else [DOCUMENT]
    assert tokens == 2 * [*mark, "=", "a", "<eos>", "b", "<doc>", "b", "<eos>"]
    assert vocabulary.document == (None if documents is None else vocabulary.numbers[DOCUMENT])
    assert vocabulary.document != vocabulary.numbers["<doc>"]


def test_a_mark_is_kept_however_few_documents_there_are(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("= a\n" + "b b\n" * 40)  # words seen once are dropped
    corpus = load_corpus(CorpusOptions(str(path), documents="^="), 1, 2)
    assert corpus.vocabulary.tokens == ["b", "<eos>", DOCUMENT, "<unk>"]
    assert corpus.train[0] == corpus.vocabulary.document


def short(text: Path, out: Path, options: str) -> list[str]:
    given = f"--data {text} --out {out} --hidden-size 6 --dropout 0 --bptt 1 --cell lstm"
    return [*given.split(), "--documents", ".", "--max-steps", "21", *options.split()]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A text whose every line is a document."""
    path = tmp_path / "text.txt"
    path.write_text("a b\na\nb b a\n" * 21)  # two columns begin in different lines
    return path


def test_a_batch_of_beginnings_alone_is_a_step_without_an_update(
    documents: Path, tmp_path: Path
) -> None:
    given = short(documents, tmp_path / "run", "--batch-size 1 --log-interval 1")
    assert main(given) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    # Targets: a b <eos> <doc> a <eos> <doc> b b a <eos> <doc>, and again.
    expected = [step for step in range(1, 22) if step % 12 not in (4, 7, 0)]
    assert [m["step"] for m in metrics if m["split"] == "train"] == expected
    assert load_checkpoint(tmp_path / "run" / "last").counters["step"] == 21


@pytest.mark.parametrize("more", ["", "--ar 2 --tar 1 --bptt 2"])
def test_shares_of_few_targets_leave_the_steps_as_they_are(
    documents: Path, tmp_path: Path, more: str
) -> None:
    places = [tmp_path / name for name in ("one", "parts", "processes")]
    given = f"--batch-size 2 {more}"
    assert main(short(documents, places[0], given)) == 0
    assert main(short(documents, places[1], f"{given} --accumulate 2")) == 0
    ended = finish(start(short(documents, places[2], given), 2))
    assert [code for code, _, _ in ended] == [0, 0], ended
    one, *others = (load_checkpoint(place / "last") for place in places)
    for other in others:
        assert_alike(one, other)


def test_letters_too_rare_leave_the_space(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Ab, c\n" * 40)
    options = CorpusOptions(str(path), level="char", charset="letters", min_count=1000)
    vocabulary = load_corpus(options, 1, 2).vocabulary
    assert vocabulary.tokens == [" ", "<unk>"] and vocabulary.eos == 0
