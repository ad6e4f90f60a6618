"""What `fastrnn.evaluate` does: perplexity, dynamic evaluation, what happens at each time-step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from fastrnn.lm.checkpoint import write_file
from fastrnn.lm.complete import LARGEST
from fastrnn.lm.corpus import SPLITS
from fastrnn.lm.data import Corpus
from fastrnn.lm.dynamic import Adaptation, evaluate_dynamically
from fastrnn.lm.errors import UserError
from fastrnn.lm.evaluate import evaluate
from fastrnn.lm.figures import finite, perplexity
from fastrnn.lm.pictures import ENDINGS, draw_lines
from fastrnn.lm.run import CONFIG, EVALUATIONS, GRADIENTS, LOSSES
from fastrnn.lm.saved import SavedRun, open_run, read_text_of
from fastrnn.lm.time_steps import gradient_norm_per_step, loss_per_step
from fastrnn.lm.tokens import DOCUMENT, EOS, Vocabulary

# The letters by which byte pairs stand for the bytes 10xxxxxx, with which no character begins.
_CONTINUED = {*map(chr, range(0x122, 0x144)), *map(chr, range(0xA1, 0xC0))} - {"\xad"}
_DYNAMIC = ("rule", "rate", "decay", "window")  # options of dynamic evaluation alone


def _by_rule(metavar: str, default: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass
class MeasuringOptions:
    """Measure the best models of runs on a split of the text that they were trained on."""

    run: tuple[str, ...]
    """Folders of one or more runs, compared in the same pictures."""
    split: Literal["train", "valid", "test"] = "test"
    """Which part of the text."""
    out: Annotated[str | None, _by_rule("DIR", "evaluation-SPLIT in the first run's folder")] = None
    """Folder for evaluation.json and the pictures."""
    dynamic: bool = False
    """Also let the weights follow the text as it is read (Krause et al. 2018)."""
    rule: Literal["rms", "sgd"] = "rms"
    """Dynamic evaluation: divide gradients by the root of their mean square in training, or not."""
    rate: Annotated[float | None, _by_rule("FLOAT", "5e-5 with rms, 0.1 with sgd")] = None
    """Dynamic evaluation: what gradients are multiplied by."""
    decay: float = 2e-3
    """Dynamic evaluation: share of the way back to the trained weights made at every step."""
    window: int = 5
    """Dynamic evaluation: tokens between two steps."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 ..."""
    debug: bool = False
    """Show the traceback of an error."""


def measure(options: MeasuringOptions) -> None:
    """Print what runs' models come to on a text, and write it as JSON and pictures.

    Args:
        options: see `MeasuringOptions`.

    Raises:
        UserError: an option is out of range, a run or its text cannot be read.
    """
    adaptation = _adaptation(options)
    path, *others = (Path(place) / EVALUATIONS[options.split] for place in options.run)
    if options.out:
        path, others = Path(options.out) / "evaluation.json", []
        taken = next(place for place in path.parents if place.exists())
        if not taken.is_dir():  # before all the work
            raise UserError(f"--out {options.out!r}: expected a folder, but {taken} is a file")
    for place in options.run[1:]:  # what is wrong with a later one is told before all the work
        _readable(open_run(place), options.split, adaptation)
    found = []
    for place in options.run:
        run = open_run(place, options.device)
        found.append(_measure_one(run, options.split, adaptation))
        _say(found[-1], options.split)
    for other, each in zip(others, found[1:], strict=False):
        try:
            _write(other, options.split, [each])
        except OSError as error:  # the first run's folder has it all the same
            print(f"{other}: cannot be written: {error.strerror}")
    _write(path, options.split, found)
    folder, made = path.parent, [path.name]
    for name, key, label in (
        (GRADIENTS, "gradient_norm_per_step", "norm of d loss(T) / d h(t), largest = 1"),
        (LOSSES, "loss_per_step", "loss (nats a token)"),
    ):
        lines = {each["run"]: each[key] for each in found if each.get(key)}
        pictures = [folder / f"{name}.{ending}" for ending in ENDINGS]
        if lines:
            draw_lines(lines, "time-step t", label, folder / name)
            made += [picture.name for picture in pictures]
        else:  # those of an evaluation before are of other runs
            for picture in pictures:
                picture.unlink(missing_ok=True)
    print(f"in {folder}: {', '.join(made)}")


def _write(path: Path, split: str, found: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    content = json.dumps({"split": split, "runs": finite(found)}, indent=1)
    write_file(path, content.encode())


def _readable(run: SavedRun, split: str, adaptation: Adaptation | None) -> Corpus:
    """The text of a run that can be measured so."""
    if run.config.corpus.sentences and adaptation is not None:
        raise UserError(f"--dynamic needs a run on continuous text; {run.folder} read sentences")
    corpus = _text_of(run)
    count = getattr(corpus, split).numel()
    if count < 2:
        raise UserError(f"--split {split}: the text has {count} tokens, fewer than 2")
    return corpus


def _measure_one(run: SavedRun, split: str, adaptation: Adaptation | None) -> dict[str, Any]:
    """Everything about one run, as JSON values."""
    corpus, training = _readable(run, split, adaptation), run.config.training
    sentences, document = run.config.corpus.sentences, run.vocabulary.document
    tokens: Tensor = getattr(corpus, split)
    eos, columns, steps = run.vocabulary.eos, training.batch_size, training.bptt
    batch = columns if sentences else columns * steps
    loss, speed = evaluate(run.model, tokens, eos, batch, document, sentences)
    if run.config.corpus.level == "word":
        characters = count_letters(corpus.texts[SPLITS.index(split)])
    else:
        characters = count_characters(tokens, run.vocabulary, run.config.corpus.level)
    count = tokens.numel() - (0 if document is None else int((tokens == document).sum()))
    found = {"run": str(run.folder), "tokens": count, "characters": characters}
    found |= _figures(loss, count, characters) | {"tokens_per_s": round(speed)}
    if adaptation is not None:
        # What it is to be compared with: read in the same way, from one hidden state of zeros.
        loss, _ = evaluate(run.model, tokens, eos, batch, document, columns=1)
        found["one_column"] = _figures(loss, count, characters)
        loss = evaluate_dynamically(run.model, tokens, eos, corpus.train, adaptation, document)
        found["dynamic"] = _figures(loss, count, characters) | asdict(adaptation)
    if not sentences:  # whose steps are no windows of a text
        given = (run.model, tokens, columns, steps, document)
        found["loss_per_step"] = loss_per_step(*given)
        found["gradient_norm_per_step"] = gradient_norm_per_step(*given)
    return found


def _text_of(run: SavedRun) -> Corpus:
    try:
        return read_text_of(run)
    except UserError as error:
        where = f"`data` in {run.folder / CONFIG}"
        raise UserError(f"{error}; {where} says where it is, and may be changed") from error


def _figures(loss: float, count: int, characters: int) -> dict[str, float | None]:
    bits = loss * count / math.log(2) / characters
    figures = {"loss": loss, "perplexity": perplexity(loss), "bits_per_character": bits}
    return {name: finite(value) for name, value in figures.items()}


def count_letters(text: Iterable[str]) -> int:
    """Characters of a text with one space between words; a line end is one, as it is predicted.

    From the text, since a word that is not in the dictionary has its letters there alone.
    """
    lines = (line for piece in text for line in piece.split("\n")[:-1])
    return sum(len(" ".join(line.split())) + 1 for line in lines)


def count_characters(tokens: Tensor, vocabulary: Vocabulary, level: str) -> int:
    """Characters that characters or byte pairs stand for.

    Args:
        tokens: integers [N].
        vocabulary: their dictionary.
        level: "char", where each is one, or "bpe".

    Returns:
        The count, at least 1; `DOCUMENT` is none.
    """

    def length(token: str) -> int:
        if token == DOCUMENT:
            return 0
        if level == "char" or token == EOS:
            return 1
        return sum(letter not in _CONTINUED for letter in token)

    lengths = torch.tensor([length(token) for token in vocabulary.tokens])
    return max(int(lengths[tokens.long()].sum()), 1)


def _say(found: dict[str, Any], split: str) -> None:
    print(f"{found['run']}: {found['tokens']:,} tokens of {split}")
    print(f"  perplexity {_written(found)}")
    if "dynamic" in found:
        each = found["dynamic"]
        static = _written(found["one_column"])
        print(f"  in one column, as dynamic evaluation reads: perplexity {static}")
        how = f"{each['rule']}, rate {each['rate']:g}, decay {each['decay']:g}"
        print(f"  dynamic ({how}): perplexity {_written(each)}")
    if "loss_per_step" not in found:
        return
    losses, norms = found["loss_per_step"], found["gradient_norm_per_step"]
    print(f"  loss {losses[0]:.3f} at time-step 1, {losses[-1]:.3f} at {len(losses)}")
    half = next((t for t, norm in enumerate(norms, 1) if norm >= 0.5), None)
    if half is None:  # of a model without recurrent layers, or one that has no gradient left
        return
    print(
        f"  gradient of the last loss: {norms[0]:.2g} of the largest at time-step 1, half at {half}"
    )


def _written(found: dict[str, Any]) -> str:
    if found["perplexity"] is None:
        return "not finite"
    return f"{found['perplexity']:.2f}, {found['bits_per_character']:.3f} bits per character"


def _adaptation(options: MeasuringOptions) -> Adaptation | None:
    rate = options.rate
    if rate is None:
        rate = 5e-5 if options.rule == "rms" else 0.1
    if not options.run:
        raise UserError("--run needs the folder of a run")
    if not 0 < rate <= LARGEST:
        raise UserError(f"--rate must be above 0 and finite in float32, got {rate}")
    if not 0 <= options.decay <= 1:
        raise UserError(f"--decay must be in [0, 1], got {options.decay}")
    if options.window < 1:
        raise UserError(f"--window must be at least 1, got {options.window}")
    if not options.dynamic:
        for each in fields(options):
            if each.name in _DYNAMIC and getattr(options, each.name) != each.default:
                raise UserError(f"--{each.name} does nothing without --dynamic")
        return None
    return Adaptation(options.rule, rate, options.decay, options.window)
