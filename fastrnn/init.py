"""Initialisations of recurrent weights, in place, for any model that has recurrent modules."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastrnn._arguments import number
from fastrnn._frozen import Freezable
from fastrnn._recurrent import Recurrent


def _parameters(
    op: str, module: nn.Module, kinds: tuple[str, ...], cell: str | None = None
) -> list[tuple[int, str, Tensor]]:
    """H, name and tensor of the parameters of some kinds, such as "weight_hh", in a model.

    They are about to change: modules that hold them packed drop the packs.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"{op}: module must be a torch.nn.Module, got {type(module).__name__}")
    found: list[tuple[int, str, Tensor]] = []
    for part in module.modules():
        if not isinstance(part, Recurrent | nn.RNNBase | nn.RNNCellBase):
            continue
        if isinstance(part, Recurrent):
            name: str | None = part.cell_name
        else:
            name = "lstm" if isinstance(part, nn.LSTM | nn.LSTMCell) else None
        if cell in (None, name):
            named = part.named_parameters(recurse=False)
            own = [(part.hidden_size, n, p) for n, p in named if n.startswith(kinds)]
            if own and isinstance(part, Freezable):
                part.unfreeze()
            found += own
    if not found:
        raise ValueError(
            f"{op}: module must hold {cell or 'recurrent'} modules with {' or '.join(kinds)} among "
            f"their parameters, got {type(module).__name__}"
        )
    return found


@torch.no_grad()
def orthogonal_(module: nn.Module) -> nn.Module:
    """Make the recurrent weights of each gate orthogonal.

    Args:
        module: any model; its recurrent modules, torch's or ours, are changed.

    Returns:
        The module.

    Raises:
        TypeError: `module` is not a module.
        ValueError: nothing in it is recurrent, or its weights are parametrized.

    Source: Saxe et al. 2013.
    """
    for hidden, _, weight in _parameters("orthogonal_", module, ("weight_hh",)):
        for gate in torch.split(weight, hidden):
            nn.init.orthogonal_(gate)
    return module


@torch.no_grad()
def forget_bias_(module: nn.Module, value: float = 1.0) -> nn.Module:
    """Set the bias of the forget gates of every LSTM: in `bias_ih`, with zeros in `bias_hh`.

    Args:
        module: any model; its LSTMs, torch's or ours, are changed.
        value: the sum of the two biases; default 1.

    Returns:
        The module.

    Raises:
        TypeError: `module` is not a module, or `value` no number.
        ValueError: it has no LSTM with biases.

    Source: Gers et al. 2000; Jozefowicz et al. 2015.
    """
    number("forget_bias_: value", value)
    for hidden, name, bias in _parameters("forget_bias_", module, ("bias",), "lstm"):
        bias[hidden : 2 * hidden] = value if name.startswith("bias_ih") else 0.0
    return module


@torch.no_grad()
def uniform_(module: nn.Module, bound: float) -> nn.Module:
    """Draw the weights and biases of recurrent modules from U(-bound, bound).

    Args:
        module: any model; its recurrent modules, torch's or ours, are changed.
        bound: finite, at least 0.

    Returns:
        The module.

    Raises:
        TypeError: `module` is not a module, or `bound` no number.
        ValueError: nothing in it is recurrent, or `bound` is negative or infinite.
    """
    number("uniform_: bound", bound)
    if not 0 <= bound < math.inf:
        raise ValueError(f"uniform_: bound must be finite and at least 0, got {bound}")
    for _, _, parameter in _parameters("uniform_", module, ("weight", "bias")):
        nn.init.uniform_(parameter, -bound, bound)
    return module
