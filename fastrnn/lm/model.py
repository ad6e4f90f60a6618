"""The language model: embedding, recurrent layers, softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrnn import modules
from fastrnn.lm.config import ModelOptions
from fastrnn.lm.data import IGNORED
from fastrnn.lm.device import memory_of
from fastrnn.lm.errors import UserError
from fastrnn.loss import linear_cross_entropy

State = Tensor | tuple[Tensor, Tensor]


class LanguageModel(nn.Module):
    """Predicts each next token of B texts read side by side.

    Embedding and output weights start as U(-0.1, 0.1), the output bias as 0, the recurrent layers
    as `torch.nn` starts them.

    Args:
        vocabulary_size: V, tokens in the dictionary.
        options: cell, sizes, tying, dropout; `emb_size` set.

    Source: pytorch/examples, word_language_model, for structure and initial values.
    """

    def __init__(self, vocabulary_size: int, options: ModelOptions) -> None:
        super().__init__()
        assert options.emb_size is not None
        width, hidden, layers = options.emb_size, options.hidden_size, options.num_layers
        self.vocabulary_size = vocabulary_size
        self.drop = nn.Dropout(options.dropout)
        self.encoder = nn.Embedding(vocabulary_size, width) if width else None
        between = options.dropout if layers > 1 else 0.0
        sizes = (width or vocabulary_size, hidden, layers)
        self.rnn: modules.LSTM | modules.GRU | modules.RNN
        if options.cell == "lstm":
            self.rnn = modules.LSTM(*sizes, dropout=between)
        elif options.cell == "gru":
            self.rnn = modules.GRU(*sizes, dropout=between)
        else:
            nonlinearity = options.cell.removeprefix("rnn-")
            self.rnn = modules.RNN(*sizes, nonlinearity=nonlinearity, dropout=between)
        self.decoder = nn.Linear(hidden, vocabulary_size)
        if self.encoder is not None:
            nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
            if options.tied:
                self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Scores of every next token.

        Args:
            tokens: int64 [T, B].
            state: what the call before returned; default None: zeros.

        Returns:
            Logits [T*B, V], row t*B + b after `tokens[t, b]`, and the states [layers, B, H] (h; or
            h and c) after the last row.
        """
        hidden, after = self._hidden(tokens, state)
        logits: Tensor = self.decoder(hidden.flatten(0, 1))
        return logits, after

    def _hidden(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """What the decoder reads, [T, B, H], and the states after the last row."""
        if self.encoder is None:
            one_hot = F.one_hot(tokens, self.vocabulary_size)
            features = one_hot.to(self.decoder.weight.dtype)
        else:
            features = self.drop(self.encoder(tokens))
        output, after = self.rnn(features, state)
        return self.drop(output), after

    def loss(
        self, tokens: Tensor, targets: Tensor, state: State | None, reduction: str = "mean"
    ) -> tuple[Tensor, State]:
        """Cross entropy of the next tokens.

        Args:
            tokens: int64 [T, B].
            targets: int64 [T, B]; `IGNORED` ones do not count.
            state: as for `forward`.
            reduction: "mean" over the targets that count, or "sum".

        Returns:
            The loss in nats, [], and the states after the last row, cut off from the graph.
        """
        hidden, after = self._hidden(tokens, state)
        # The decoder is most of a word model's work: fused with the loss, its logits are never
        # whole in memory.
        loss = linear_cross_entropy(
            hidden,
            self.decoder.weight,
            self.decoder.bias,
            targets,
            ignore_index=IGNORED,
            reduction=reduction,
        )
        if isinstance(after, tuple):
            return loss, (after[0].detach(), after[1].detach())
        return loss, after.detach()


def count_parameters(vocabulary_size: int, options: ModelOptions) -> int:
    """Numbers in a model's parameters, told without building it.

    Args:
        vocabulary_size: V.
        options: see `LanguageModel`.

    Returns:
        The count; shared ones once.
    """
    assert options.emb_size is not None
    width, hidden = options.emb_size, options.hidden_size
    rows = {"lstm": 4, "gru": 3}.get(options.cell, 1) * hidden
    inputs = (width or vocabulary_size) + (options.num_layers - 1) * hidden
    recurrent = rows * (inputs + options.num_layers * (hidden + 2))
    output = 1 if options.tied else hidden + 1
    return recurrent + vocabulary_size * (width + output)


def build_model(
    vocabulary_size: int, options: ModelOptions, rows: int, device: torch.device
) -> LanguageModel:
    """A model on a device, if what training it takes fits the memory there.

    Args:
        vocabulary_size: V.
        options: see `LanguageModel`.
        rows: predictions made at a time, batch x bptt.
        device: where to.

    Returns:
        The model.

    Raises:
        UserError: the sizes ask for more memory than there is.
    """
    parameters = count_parameters(vocabulary_size, options)
    # Weights, gradients and two moments of Adam; logits, their softmax and gradient.
    needed = 4 * (4 * parameters + 3 * rows * vocabulary_size)
    present = memory_of(device)
    if present is not None and needed > present:
        raise UserError(
            f"--hidden-size {options.hidden_size}, --num-layers {options.num_layers}, --batch-size "
            f"x --bptt {rows} and {vocabulary_size} tokens need about {needed / 2**30:.0f} GiB of "
            f"memory, {device} has {present / 2**30:.0f}"
        )
    return LanguageModel(vocabulary_size, options).to(device)
