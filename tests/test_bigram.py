"""The Kneser-Ney yardstick against hand-computed probabilities."""

import math

import pytest
import torch

pytest.importorskip("numpy")

from fastrnn.lm.bigram import KneserNeyBigram  # noqa: E402

# Words 0..3 with 0 standing before the first. Pairs: 01 once, 12 twice, 21 twice, 13 once, so
# D = 2 / (2 + 2*2) = 1/3; words before 1, 2, 3: 2, 1, 1 of 4 pairs, so D1 = 2 / (2 + 2*1) = 1/2.
TEXT = torch.tensor([1, 2, 1, 2, 1, 3])


def test_probabilities_equal_a_case_computed_by_hand() -> None:
    model = KneserNeyBigram(TEXT, 4, 0)
    continuation = [(0.5 * 3 / 4) / 4, 1.875 / 4, 0.875 / 4, 0.875 / 4]
    after_1 = [
        2 / 9 * continuation[0],
        2 / 9 * continuation[1],
        5 / 9 + 2 / 9 * continuation[2],
        2 / 9 + 2 / 9 * continuation[3],
    ]
    for word in range(4):
        found = model.probabilities(torch.tensor([1, word]))[1]
        assert found == pytest.approx(after_1[word], rel=1e-12)
        # 3 was never followed by anything: all its mass is the continuation's.
        assert model.probabilities(torch.tensor([3, word]))[1] == pytest.approx(continuation[word])


def test_perplexity_starts_from_the_word_before_the_first() -> None:
    model = KneserNeyBigram(TEXT, 4, 0)
    first = 2 / 3 + 1 / 3 * 1.875 / 4
    second = 5 / 9 + 2 / 9 * 0.875 / 4
    expected = math.exp(-(math.log(first) + math.log(second)) / 2)
    assert model.perplexity(torch.tensor([1, 2])) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [2, 30, 200])
def test_probabilities_after_every_word_sum_to_one(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    # Squared uniform draws: some words often, some once, some (of 200) never.
    text = (torch.rand(300, generator=generator) ** 2 * size).long()
    model = KneserNeyBigram(text, size, 0)
    for context in range(size):
        pairs = torch.tensor([[context, word] for word in range(size)]).flatten()
        after = model.probabilities(pairs)[1::2]
        assert after.min() > 0
        assert after.sum() == pytest.approx(1, abs=1e-12)
