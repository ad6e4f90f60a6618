"""Fused recurrent networks for PyTorch: drop-in modules, fast kernels, a language-model trainer."""

from fastrnn import _flops, init, onnx
from fastrnn._cuda import use_schedule
from fastrnn._version import __version__
from fastrnn.attention import masked_attention
from fastrnn.backends import show_config, use_backend
from fastrnn.cells import CELLS
from fastrnn.functional import explain, recurrence
from fastrnn.loss import linear_cross_entropy
from fastrnn.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, RNNOf, accelerate
from fastrnn.multihead import MultiHeadAttention

_flops.count_ours()

__all__ = [
    "CELLS",
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "MultiHeadAttention",
    "RNNCell",
    "RNNOf",
    "__version__",
    "accelerate",
    "explain",
    "init",
    "linear_cross_entropy",
    "masked_attention",
    "onnx",
    "recurrence",
    "show_config",
    "use_backend",
    "use_schedule",
]
