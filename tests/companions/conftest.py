"""Two small runs that all tests of the programs beside the trainer read, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("tyro")

from fastrnn.train import main  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only wait for a second thread, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two runs: `words`, a two-layer LSTM, and `characters`, a one-hot GRU."""
    folder = tmp_path_factory.mktemp("runs")
    text = folder / "text.txt"
    text.write_text("a b a c a d\n" * 400)
    common = f"--data {text} --batch-size 8 --bptt 10 --log-interval 20"
    for name, options in {
        "words": "--cell lstm --hidden-size 16 --num-layers 2 --epochs 12 --lr 0.03 --dropout 0",
        "characters": "--cell gru --level char --hidden-size 8 --emb-size 0 --no-tied --epochs 2 "
        "--optimizer sgd --lr 2 --schedule plateau --dropout 0",
    }.items():
        assert main([*common.split(), *options.split(), "--out", str(folder / name)]) == 0
    return folder
