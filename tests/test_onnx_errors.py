"""What cannot be exported is refused in one line that names the module."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import fastrnn
import fastrnn.onnx
from fastrnn import cells
from fastrnn.onnx import export

needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")),
    reason="needs onnx and onnxscript",
)
ROWS = torch.randn(5, 3, 4)


class Call(nn.Module):
    """A module called with what a function makes of the input."""

    def __init__(self, rnn, arguments):
        super().__init__()
        self.rnn = rnn
        self.arguments = arguments

    def forward(self, rows):
        args, options = self.arguments(rows)
        return self.rnn(*args, **options)[0]


def refused(error, model, args, path, **options):
    with pytest.raises(error) as caught:
        export(model, args, path / "model.onnx", **options)
    text = str(caught.value)
    assert "\n" not in text
    assert not list(path.iterdir())
    return text


@needs_packages
@pytest.mark.parametrize(
    ("module", "what"),
    [
        (lambda: fastrnn.LSTM(4, 6, proj_size=2), "LSTM '1.rnn' has proj_size=2"),
        (lambda: fastrnn.GRU(4, 6, layer_norm=True), "GRU '1.rnn' has layer_norm=True"),
        (lambda: fastrnn.RNN(4, 6, zoneout=0.1), "RNN '1.rnn' has zoneout=0.1"),
        (lambda: fastrnn.LSTM(4, 6, zoneout=(0.0, 0.1)), "LSTM '1.rnn' has zoneout=(0.0, 0.1)"),
    ],
)
def test_options(module, what, tmp_path):
    model = nn.Sequential(nn.Identity(), nn.ModuleDict({"rnn": module()}))
    text = refused(ValueError, model, ROWS, tmp_path)
    assert text == f"onnx.export: {what}, which ONNX cannot express"


@needs_packages
@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (lambda x: ((pack_padded_sequence(x, [5, 4, 1]),), {}), "a PackedSequence (pad it first)"),
        (lambda x: ((x,), {"resets": torch.zeros(5, 3, dtype=torch.bool)}), "resets"),
        (lambda x: ((x,), {"return_cells": True}), "return_cells"),
    ],
)
def test_calls(arguments, what, tmp_path):
    text = refused(ValueError, Call(fastrnn.LSTM(4, 6), arguments), ROWS, tmp_path)
    assert text == f"onnx.export: LSTM 'rnn' is called with {what}, which ONNX cannot express"


@needs_packages
def test_a_packed_argument(tmp_path):
    packed = pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
    text = refused(ValueError, fastrnn.GRU(4, 6), (packed,), tmp_path)
    assert text.startswith("onnx.export: GRU is called with a PackedSequence")


@needs_packages
def test_a_cell_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setitem(cells.CELLS, "other", cells.CELLS["rnn_tanh"])
    text = refused(ValueError, fastrnn.RNNOf("other", 4, 6), ROWS, tmp_path)
    assert text == "onnx.export: RNNOf runs the cell 'other', which ONNX cannot express"


@needs_packages
@pytest.mark.parametrize(
    ("error", "args", "options", "text"),
    [
        (RuntimeError, torch.randn(5, 3, 9), {}, "Expected 4, got 9"),
        (RuntimeError, (ROWS, torch.randn(1, 2, 6)), {}, "Expected hidden size (1, 3, 6), got"),
        (TypeError, (ROWS, None, None, None), {}, "args do not fit the model's forward: too many"),
        (TypeError, "text", {}, "GRU: input must be a Tensor, got str"),
        (ValueError, ROWS, {"opset_version": 17}, "opset_version must be 18 or later, got 17"),
        (ValueError, ROWS, {"opset_version": 99}, "no opset_version 99"),
    ],
)
def test_arguments(error, args, options, text, tmp_path):
    assert text in refused(error, fastrnn.GRU(4, 6), args, tmp_path, **options)


def test_what_is_not_a_model_or_a_place(tmp_path):
    assert "must be a module, got str" in refused(TypeError, "GRU", ROWS, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^onnx\.export: no folder '.*nowhere' to write"):
        export(fastrnn.GRU(4, 6), ROWS, tmp_path / "nowhere" / "model.onnx")


def test_missing_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(fastrnn.onnx, "find_spec", lambda name: None)
    text = refused(ImportError, fastrnn.GRU(4, 6), ROWS, tmp_path)
    assert text == "onnx.export needs onnx and onnxscript: pip install 'fastrnn[onnx]'"
