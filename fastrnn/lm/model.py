"""The language model: embedding, recurrent layers, softmax."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrnn._dropout import dropout
from fastrnn.lm.batches import IGNORED
from fastrnn.lm.config import ModelOptions
from fastrnn.lm.device import memory_of
from fastrnn.lm.dropout import Dropout
from fastrnn.lm.errors import UserError
from fastrnn.lm.layers import RecurrentStack, State, TransformerStack
from fastrnn.loss import linear_cross_entropy

Run = tuple[Tensor, State]


class LanguageModel(nn.Module):
    """Predicts each next token of B texts read side by side.

    Its layers are in `rnn`, recurrent or not.

    Args:
        vocabulary_size: V, tokens in the dictionary.
        options: with `emb_size`.

    Source: pytorch/examples, word_language_model, for structure and `init` "torch"; Merity et al.
    2018 for word dropout, AR and TAR.
    """

    def __init__(self, vocabulary_size: int, options: ModelOptions) -> None:
        super().__init__()
        assert options.emb_size is not None
        width = options.emb_size
        self.vocabulary_size, self.dropout_words = vocabulary_size, options.dropout_words
        self.encoder = nn.Embedding(vocabulary_size, width) if width else None
        attends = options.cell == "transformer"  # whose own dropout comes after the places
        self.drop_input = Dropout(0.0 if attends else options.dropouts[0], options.variational)
        self.rnn = (
            TransformerStack(options)
            if attends
            else RecurrentStack(width or vocabulary_size, options)
        )
        self.drop_output = Dropout(options.dropouts[2], options.variational)
        self.decoder = nn.Linear(options.top_size, vocabulary_size)
        everything = options.init == "zaremba"
        bound = options.init_range if everything else 0.1
        if self.encoder is not None:
            nn.init.uniform_(self.encoder.weight, -bound, bound)
            if options.tied:
                self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.decoder.weight, -bound, bound)
        if attends and options.init == "course":
            for matrix in (p for p in self.parameters() if p.dim() > 1):
                nn.init.xavier_uniform_(matrix)
        nn.init.uniform_(self.decoder.bias, *((-bound, bound) if everything else (0.0, 0.0)))

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Scores of every next token.

        Args:
            tokens: int64 [T, B].
            state: what the call before returned; default None: zeros.
            resets: bool [T, B], steps before which the state is zeroed; default None.
            lengths: CPU int64 [B], where each column ends; default None: at T.

        Returns:
            Logits [T*B, V], row t*B + b after `tokens[t, b]`, and the states after the last row.
        """
        output, after = self._run(tokens, state, resets, lengths)
        logits: Tensor = self.decoder(self.drop_output(output).flatten(0, 1))
        return logits, after

    def _run(
        self, tokens: Tensor, state: State | None, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        """The last layer's output, [T, B, units], and the states after the last row."""
        if self.encoder is None:
            one_hot = F.one_hot(tokens, self.vocabulary_size)
            features = one_hot.to(self.decoder.weight.dtype)
            return cast(Run, self.rnn(features, state, resets, lengths))
        features = self.encoder(tokens)
        if self.dropout_words and self.training:
            every = features.new_ones(self.vocabulary_size)
            features = features * dropout(every, self.dropout_words)[tokens].unsqueeze(-1)
        return cast(Run, self.rnn(self.drop_input(features), state, resets, lengths))

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: State | None,
        reduction: str = "mean",
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Cross entropy of the next tokens.

        Args:
            tokens: int64 [T, B].
            targets: int64 [T, B]; `IGNORED` ones do not count.
            state: as for `forward`, as are `resets` and `lengths`.
            reduction: "mean" over the targets that count, or "sum".

        Returns:
            The loss in nats, [], and the states after the last row, cut off from the graph.
        """
        output, after = self._run(tokens, state, resets, lengths)
        loss = self._cross_entropy(self.drop_output(output), targets, reduction)
        return loss, tuple(s.detach() for s in after)

    def objective(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: State | None,
        resets: Tensor | None,
        lengths: Tensor | None,
        ar: float,
        tar: float,
    ) -> tuple[Tensor, Tensor | float, State]:
        """The terms of what training makes small.

        Args:
            tokens: as for `loss`, as are all but the last two.
            ar: weight of the mean square of the outputs that the softmax reads.
            tar: weight of the mean square of the outputs' change from step to step.

        Returns:
            The mean cross entropy over the targets, []; the sum of the two, a mean over all places
            with targets or without, [], or 0.0 where there is none; and the states.
        """
        output, after = self._run(tokens, state, resets, lengths)
        dropped = self.drop_output(output)
        entropy = self._cross_entropy(dropped, targets, "mean")
        penalty: Tensor | float = 0.0
        if ar:
            penalty = penalty + ar * dropped.pow(2).mean()
        if tar and output.size(0) > 1:
            penalty = penalty + tar * (output[1:] - output[:-1]).pow(2).mean()
        return entropy, penalty, tuple(s.detach() for s in after)

    def _cross_entropy(self, hidden: Tensor, targets: Tensor, reduction: str) -> Tensor:
        # The decoder is most of a word model's work: fused with the loss, its logits are never
        # whole in memory.
        return linear_cross_entropy(
            hidden.to(self.decoder.weight.dtype),  # under autocast the layers' is lower
            self.decoder.weight,
            self.decoder.bias,
            targets,
            ignore_index=IGNORED,
            reduction=reduction,
        )


def count_parameters(vocabulary_size: int, options: ModelOptions) -> int:
    """Numbers that training changes, told without building the model.

    Args:
        vocabulary_size: V.
        options: see `LanguageModel`.

    Returns:
        The count; shared ones once.
    """
    assert options.emb_size is not None
    # Alike layers are counted at once: there may be more than a computer can hold.
    alike = max(options.num_layers - 2, 0)
    top, hidden = options.top_size, options.hidden_size
    first = options.emb_size or vocabulary_size
    if options.num_layers == 1:
        recurrent = _layer_parameters(first, top, options)
    else:
        recurrent = _layer_parameters(first, hidden, options)
        recurrent += alike * _layer_parameters(hidden, hidden, options)
        recurrent += _layer_parameters(hidden, top, options)
    if options.cell == "transformer":
        # Four projections, two layers of 4 H units between them, two norms; one norm at the end.
        recurrent = options.num_layers * (12 * hidden**2 + 13 * hidden) + 2 * hidden
    output = 1 if options.tied else top + 1
    return recurrent + vocabulary_size * (options.emb_size + output)


def _layer_parameters(below: int, width: int, options: ModelOptions) -> int:
    rows = {"lstm": 4, "gru": 3, "gru-reset-before": 3}.get(options.cell, 1) * width
    biases = 1 if options.init == "course" else 2
    gains = 2 * rows + (2 * width if options.cell == "lstm" else 0)
    return rows * (below + width + biases) + (gains if options.layer_norm else 0)


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
