"""The table of docs/compatibility.md: every row is tried on torch.nn and on ours."""

import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from fastrnn import _library, modules, use_backend
from tests.compatibility import graphs, inputs, parameters, training, transforms
from tests.compatibility.table import ROWS, SECTIONS, Case, document, outcome, verdict

MODULES = (inputs, parameters, training, transforms, graphs)
PAGE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"
native = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")

# Rows where a fastrnn module does not do what a program written for torch.nn expects: by a piece
# of the title, what it does and what the message must say.
NOT = {
    "in place before backward": ("raises", "modified by an inplace operation"),
    "RNNBase)`": ("differs", ""),
    "check_forward_args": ("raises", "no attribute 'get_expected_hidden_size'"),
    "inside `torch.compile`": ("raises", "InternalTorchDynamoError"),
    "torch.fx.symbolic_trace": ("raises", "input must be a Tensor, got Proxy"),
    "torch.jit.script": ("raises", "cannot be scripted; use torch.compile or torch.export"),
    "quantize_dynamic": ("differs", ""),
}
# The reference backend is plain torch, and its loop over steps is unrolled into graphs.
NOT_ON_REFERENCE = NOT | {
    "in place before backward": ("works", ""),
    "compiled once for every length": ("raises", "Recompiling function forward"),
    "the same with `proj_size`": ("raises", "Recompiling function forward"),
    "inside `torch.compile`": ("works", ""),
    "free length": ("raises", "your code specialized it to be a constant (5)"),
    "called with another length": ("raises", "TorchScript interpreter"),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For speed: everything is small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()


def expected(row, table=NOT):
    found = [value for piece, value in table.items() if piece in row.title]
    assert len(found) < 2
    return found[0] if found else ("works", "")


def check(row, table, tried):
    word, message = expected(row, table)
    for kind in row.kinds:
        got = tried(row, modules, kind)
        assert got.word == word and message in got.text, f"{kind}: {got.text or got.word}"


@native
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_row(row):
    check(row, NOT, outcome)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", [row for row in ROWS if "Distributed" not in row.title], ids=lambda row: row.title
)
def test_row_on_the_reference_backend(row):
    with use_backend("reference"):
        check(row, NOT_ON_REFERENCE, outcome.__wrapped__)


class TestAutocastOfLstm:
    """As torch.nn's where the processor has these dtypes; ours has them on each."""

    @pytest.mark.parametrize(
        ("dtype", "atol"), [(torch.bfloat16, 4e-2), (torch.float16, 6e-3)], ids=str
    )
    def test_values(self, dtype, atol):
        training.autocast(Case(modules, "LSTM"), dtype, atol)

    def test_dtypes_where_not_all_is_float32(self):
        half, single, double = torch.bfloat16, torch.float32, torch.float64
        assert training.autocast_dtypes(Case(modules, "LSTM")) == [
            *[single] * 2,  # a PackedSequence stays as it is
            *[half] * 3,  # hx of another dtype
            *[half, half, single],  # proj_size: the cells' state is not a product's
            *[double] * 3,
            *[single] * 2,  # single steps
            *[half] * 2,
        ]


def test_rows_are_all_there():
    assert {row.section for row in ROWS} == {module.SECTION for module in MODULES} == set(SECTIONS)
    assert len({row.title for row in ROWS}) == len(ROWS) >= 60
    titles = "\n".join(row.title for row in ROWS)
    assert all(piece in titles for piece in NOT)


def skip_with_another_torch():
    """torch.nn's column is its own affair: it is as it was with the torch that the page names."""
    tried = re.search(r"with torch (\S+)\.", PAGE.read_text())[1]
    if tried != torch.__version__.split("+")[0]:
        pytest.skip(f"the page was written with torch {tried}")


@native
def test_every_no_has_a_reason_and_no_yes_has_one():
    for row in ROWS:
        assert bool(row.ours) == (expected(row)[0] != "works"), row.title
    skip_with_another_torch()
    for row in ROWS:
        assert bool(row.theirs) == (verdict(row, nn) != "works"), row.title


@native
def test_page_is_up_to_date():
    if os.environ.get("FASTRNN_WRITE_DOCS"):
        PAGE.write_text(document())
    skip_with_another_torch()
    assert PAGE.read_text() == document(), "FASTRNN_WRITE_DOCS=1 rewrites docs/compatibility.md"
