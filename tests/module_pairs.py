"""Modules of torch.nn beside ours, and values to call them with."""

import torch
from torch import nn

from fastrnn import modules

LAYERS = [
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
    ("GRU", {}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 3}),
]
CELLS = [("RNNCell", {}), ("RNNCell", {"nonlinearity": "relu"}), ("GRUCell", {}), ("LSTMCell", {})]
IN, H, T, B = 4, 6, 5, 3


def pair(name, *args, **options):
    """torch's module and ours, built from the same seed."""
    built = []
    for library in (nn, modules):
        torch.manual_seed(0)
        built.append(getattr(library, name)(*args, dtype=torch.float64, **options))
    return built


def tensor(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def tensors(values):
    """The tensors of nested tuples; a PackedSequence is one too."""
    if isinstance(values, torch.Tensor):
        return [values]
    return [] if values is None else [leaf for v in values for leaf in tensors(v)]


def floats(values):
    return [v for v in tensors(values) if v.requires_grad]


def make_state(module, *shape):
    """An initial state of leading shape `shape` that fits a layer or cell."""
    h = tensor(*shape, getattr(module, "proj_size", 0) or H)
    return (h, tensor(*shape, H)) if "LSTM" in type(module).__name__ else h
