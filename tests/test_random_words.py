"""The random bits of zoneout: Philox-4x32-10, and how its counter is used."""

import pytest
import torch

from fastrnn.regularisers import philox, random_words

ANSWERS = [  # of Random123, the authors' library: counter, key, words
    ("00000000" * 4, "00000000" * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff" * 4, "ffffffff" * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a8885a308d313198a2e03707344",
        "a4093822299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
SEED = torch.tensor(-(2**62) + 12345)


def words(text):
    return [torch.tensor(int(text[i : i + 8], 16)) for i in range(0, len(text), 8)]


@pytest.mark.parametrize(("counter", "key", "expected"), ANSWERS)
def test_philox_gives_the_published_answers(counter, key, expected):
    found = philox(words(counter), words(key))
    assert " ".join(f"{int(w):08x}" for w in found) == expected


def test_words_are_laid_out_as_documented():
    found = random_words(SEED, 1, torch.tensor([7]), torch.tensor([3]), 10)
    key = [SEED & 0xFFFFFFFF, SEED >> 32 & 0xFFFFFFFF]
    counters = [[torch.tensor(c) for c in (unit // 4, 3, 7, 1)] for unit in range(10)]
    expected = [philox(c, key)[unit % 4] for unit, c in enumerate(counters)]
    assert found.tolist() == [[int(w) for w in expected]]


def test_words_are_uniform_and_independent():
    steps, batch, width = 32, 32, 128
    t, b = torch.meshgrid(torch.arange(steps), torch.arange(batch), indexing="ij")

    def draw(seed, state):
        return random_words(torch.tensor(seed), state, t.flatten(), b.flatten(), width).view(
            steps, batch, width
        )

    found = draw(1, 0)
    count = found.numel()
    for shift in (0, 12, 24):  # chi-squared with 255 degrees of freedom; 5 sigma
        bins = torch.bincount((found >> shift & 255).flatten(), minlength=256).double()
        chi2 = ((bins - count / 256).square() / (count / 256)).sum()
        assert abs(chi2 - 255) < 5 * (2 * 255) ** 0.5

    def centred(x):
        return x.double() / 2**32 - 0.5

    others = {
        "step": (found[1:], found[:-1]),
        "sequence": (found[:, 1:], found[:, :-1]),
        "unit": (found[..., 1:], found[..., :-1]),
        "fourth unit": (found[..., 4:], found[..., :-4]),
        "state": (found, draw(1, 1)),
        "seed": (found, draw(2, 0)),
        "seed's high half": (found, draw(1 + 2**32, 0)),
        "step and sequence": (found, found.transpose(0, 1)),
    }
    for name, (one, two) in others.items():
        off = one != two
        product = (centred(one) * centred(two))[off]
        assert off.double().mean() > 0.96, name
        assert product.mean().abs() < 5 / 12 / product.numel() ** 0.5, name
