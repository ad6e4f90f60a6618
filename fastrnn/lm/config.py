"""The trainer's options: one dataclass per component, the command line and config.toml in one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro


def _unset(metavar: str, default: str) -> object:
    """How --help shows an option whose default depends on others."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass
class CorpusOptions:
    """What to read and how to cut it into tokens."""

    data: Annotated[
        str,
        tyro.conf.arg(
            help="Folder with train.txt, valid.txt and test.txt; or one text file, split 90/5/5 by "
            "lines; or ptb, wikitext-2, time-machine or tiny-shakespeare, looked for in the folder "
            "that the variable FASTRNN_DATA names, else downloaded once; or python-docs, the "
            "manual and docstrings of this Python."
        ),
    ] = "python-docs"
    level: Literal["word", "char", "bpe"] = "word"
    """Whether a token is a word (split on white space), a character, or a piece found by byte-pair
    encoding of the training text."""
    charset: Literal["all", "letters"] = "all"
    """Characters as they are, or lower-cased to a-z with one space for whatever lies between."""
    min_count: Annotated[int | None, _unset("INT", "1; for words 2, unless the text has <unk>")] = (
        None
    )
    """Tokens seen less often in the training text become <unk>."""
    bpe_size: int = 4096
    """Pieces in the dictionary of --level bpe."""
    documents: Annotated[str | None, _unset("REGEX", "none")] = None
    """Lines that match begin a document, before which the hidden state is zeroed."""
    sentences: bool = False
    """Read every line by itself, from a hidden state of zeros, instead of one text."""


@dataclass
class ModelOptions:
    """Embedding, recurrent layers, softmax."""

    cell: Literal["rnn-tanh", "rnn-relu", "lstm", "gru", "gru-reset-before", "transformer"] = "gru"
    """Kind of layer; gru-reset-before is the original, with the reset gate before the product."""
    emb_size: Annotated[int | None, _unset("INT", "the output size")] = None
    """Width of the embedding; 0 feeds one-hot vectors instead."""
    hidden_size: int = 200
    """Units of each layer."""
    num_layers: int = 1
    """Layers."""
    heads: int = 4
    """Attention heads of each transformer layer."""
    context: Annotated[int | None, _unset("INT", "bptt")] = None
    """Tokens that a transformer looks back over when it is not trained."""
    tied: bool = True
    """Use the embedding as the weight of the output layer too; needs emb-size = output-size."""
    dropout: float = 0.3
    """Probability of dropping a value after the embedding, between layers and before the output."""
    dropout_input: Annotated[float | None, _unset("FLOAT", "dropout")] = None
    """The same, after the embedding alone."""
    dropout_layers: Annotated[float | None, _unset("FLOAT", "dropout")] = None
    """The same, between layers alone."""
    dropout_output: Annotated[float | None, _unset("FLOAT", "dropout")] = None
    """The same, before the output alone."""
    dropout_words: float = 0.0
    """Probability of dropping a word of the dictionary from the embedding, wherever it stands."""
    dropout_weights: float = 0.0
    """Probability of dropping a recurrent weight for a whole window (DropConnect)."""
    variational: bool = False
    """Drop the same units at every step of a window."""
    zoneout: float = 0.0
    """Probability of a unit of the hidden state to keep its value for a step."""
    zoneout_cell: Annotated[float | None, _unset("FLOAT", "zoneout")] = None
    """The same, for an LSTM's cell state."""
    output_size: Annotated[int | None, _unset("INT", "the hidden size")] = None
    """Units of the last layer."""
    layer_norm: bool = False
    """Normalise the projections inside each step (lstm and gru)."""
    residual: bool = False
    """Add each layer's input to its output, above the first, where they are equally wide."""
    init: Literal["torch", "zaremba", "course"] = "torch"
    """Weights at the start. torch: U(-0.1, 0.1) outside, U(-1/sqrt(H), 1/sqrt(H)) inside the
    layers, of H units; zaremba: all from U(-r, r), r being init-range; course: as torch, with a
    single bias for each gate, or a transformer's matrices as Glorot and Bengio draw them."""
    init_range: float = 0.1
    """r of --init zaremba."""

    # Unset options stay unset, so that config.toml can be changed in one place.
    @property
    def top_size(self) -> int:
        """Units of the last layer."""
        return self.hidden_size if self.output_size is None else self.output_size

    @property
    def dropouts(self) -> tuple[float, float, float]:
        """Probabilities after the embedding, between layers and before the output."""
        parts = self.dropout_input, self.dropout_layers, self.dropout_output
        first, between, last = (self.dropout if p is None else p for p in parts)
        return first, between, last

    @property
    def zoneouts(self) -> tuple[float, float]:
        """Probabilities of h and of an LSTM's c."""
        return self.zoneout, self.zoneout if self.zoneout_cell is None else self.zoneout_cell


@dataclass
class OptimizerOptions:
    """How a gradient becomes a change of the weights."""

    optimizer: Literal["sgd", "adam", "adamw", "nt-asgd"] = "adam"
    """sgd is plain; nt-asgd is sgd whose weights are averaged once validation has stalled."""
    lr: Annotated[float | None, _unset("FLOAT", "20 with sgd, 30 with nt-asgd, else 0.006")] = None
    """Learning rate at the start."""
    schedule: Annotated[
        Literal["constant", "plateau", "decay", "course", "cosine"] | None,
        _unset(
            "{constant,plateau,decay,course,cosine}",
            "plateau with sgd, constant with nt-asgd, else cosine",
        ),
    ] = None
    """plateau: times decay-factor after every epoch that is not the best yet in validation; decay:
    times decay-factor after each epoch from decay-from on; course: times 1/1.15 to the power of
    the epochs beyond 14, compounding; cosine: down to 0 along half a cosine."""
    decay_from: int = 1
    """Epochs at the full rate, for --schedule decay."""
    decay_factor: Annotated[float | None, _unset("FLOAT", "0.25 with plateau, 0.5 with decay")] = (
        None
    )
    """What plateau and decay multiply the rate by."""
    warmup: int = 0
    """Steps in which the rate rises from 0, under any schedule."""
    patience: int = 5
    """Validations that nt-asgd waits for a better one before it averages."""
    weight_decay: Annotated[float | None, _unset("FLOAT", "0.01 with adamw, else 0")] = None
    """Share of each weight subtracted by every step, times the rate; with adam part of the
    gradient, as in torch."""
    clip: float = 0.25
    """Scale gradients down to this norm when theirs is larger; 0: never."""


@dataclass
class TrainingOptions:
    """Batches and length of training."""

    batch_size: int = 20
    """Columns of text read side by side."""
    bptt: int = 35
    """Steps that gradients flow back through; the hidden state is carried further."""
    random_bptt: bool = False
    """Draw each window's length around bptt, or 1 time in 20 around half of it, and scale the rate
    with it."""
    accumulate: int = 1
    """Parts that a batch's columns are worked through in, one after another, to save memory."""
    ar: float = 0.0
    """Activation regularisation: weight of the mean square of the dropped-out outputs."""
    tar: float = 0.0
    """Temporal activation regularisation: weight of the mean square of the outputs' changes."""
    epochs: int = 5
    """Passes over the training text."""
    max_steps: Annotated[int | None, _unset("INT", "as the epochs take")] = None
    """Stop after this many optimizer steps, if the epochs have not ended before."""
    seed: int = 1
    """Seed of weights, dropout and the order of sentences."""
    rewinds: int = 3
    """Times that a run which diverges goes back to its last checkpoint and on at half the rate,
    before it is an error."""
    explosion: float = 1e4
    """Gradient norm, in multiples of its running mean, that counts as divergence; 0: none does."""


@dataclass
class RunOptions:
    """Where to compute, what to write, what to report."""

    backend: Literal["auto", "native", "triton", "reference"] = "auto"
    """Kernels of the recurrent layers; one that is asked for runs or is an error."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 ..."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the products: bfloat16 through autocast, tf32 on GPUs. Weights stay float32."""
    compile: bool = False
    """Compile model and loss with torch.compile."""
    cuda_graphs: bool = False
    """Launch each step as one CUDA graph, where windows are of one length."""
    out: Annotated[str | None, _unset("DIR", "runs/ and the date and time")] = None
    """Folder of the run: config.toml, metrics.jsonl, curves, log.txt, last/ and best/."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint, with its options; without one, start
    afresh."""
    force: bool = False
    """Replace the run in --out, if there is one."""
    preset: Annotated[str | None, _unset("NAME", "none")] = None
    """Options of a published experiment, under all others: see --presets."""
    presets: bool = False
    """List the presets and where each comes from, and do nothing else."""
    config: Annotated[str | None, _unset("FILE.toml", "none")] = None
    """TOML file of options, like config.toml of a run; the command line overrides it."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard, too, into the run's folder."""
    log_interval: int = 100
    """Steps between two reports of the training loss."""
    checkpoint_interval: int = 1000
    """Steps between two checkpoints, besides the one after every epoch; 0: none besides."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass
class Config:
    """Train a recurrent language model; with no options, on the Python manual in about a minute."""

    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    run: RunOptions = field(default_factory=RunOptions)
