"""What `fastrnn.sweep` does: one run after another, by as many workers as are wanted."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any

import optuna
import torch
import tyro
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console

from fastrnn.lm.errors import UserError
from fastrnn.lm.figures import perplexity
from fastrnn.lm.interrupt import StopOnSignal
from fastrnn.lm.lock import locked, try_lock
from fastrnn.lm.plan import Plan, options_of, read_plan, written
from fastrnn.lm.program import one_line, run_program
from fastrnn.lm.report import Reporter, duration
from fastrnn.lm.reporting import ReportingOptions, write_report
from fastrnn.lm.session import train
from fastrnn.lm.study import open_study
from fastrnn.lm.summary import read_summary

_TERMINATED = 128 + signal.SIGTERM  # the exit code


@dataclass
class SweepingOptions:
    """Train over a grid or a search space of settings; called again, go on where it stopped."""

    file: tyro.conf.Positional[str]
    """TOML file: out, method (grid, random, tpe), trials, seed, storage, [settings], [search]."""
    workers: int = 1
    """Processes that train side by side, sharing the processors."""
    debug: bool = False
    """Show the traceback of an error."""


def sweep(options: SweepingOptions) -> int:
    """Make a sweep's runs, and the page that shows them.

    Args:
        options: see `SweepingOptions`.

    Returns:
        The exit code: 0; 130 after Ctrl-C, 143 after SIGTERM, the runs under way saved.

    Raises:
        UserError: the file cannot be used, or its storage, or runs failed.
    """
    if options.workers < 1:
        raise UserError(f"--workers must be at least 1, got {options.workers}")
    path = Path(options.file)
    plan = read_plan(path)
    plan.out.mkdir(parents=True, exist_ok=True)
    study = open_study(plan)
    _prepare(study, plan, path)
    code = work(path) if options.workers == 1 else _share_out(path, options.workers)
    _conclude(study, plan)
    if code:
        print("fastrnn.sweep: interrupted", file=sys.stderr)
        return code
    newest = _newest(study)
    if failed := [name for name, trial in newest.items() if trial.state == TrialState.FAIL]:
        raise UserError(
            f"{len(failed)} of {len(newest)} runs failed, see above why: {', '.join(failed)}; "
            "started again, the sweep tries them again"
        )
    return 0


def _share_out(path: Path, workers: int) -> int:
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_worker, args=(path, threads)) for _ in range(workers)]
    told = 0  # the signal that was passed on
    with StopOnSignal() as stop:
        for process in processes:
            process.start()
        while alive := [process for process in processes if process.is_alive()]:
            with suppress(KeyboardInterrupt):  # of a second Ctrl-C
                wait([process.sentinel for process in alive], timeout=0.5)
                if stop.asked and not told:  # may have come to this one alone
                    # A worker that has heard Ctrl-C too is not kept from saving by SIGTERM.
                    for process in alive:
                        process.terminate()
                    told = stop.asked
    codes = [process.exitcode or 0 for process in processes]
    if told:  # between two runs it ends a worker at once
        stopped = (130, _TERMINATED, -signal.SIGTERM)
        codes = [128 + told if code in stopped else code for code in codes]
    if failed := [code for code in codes if code not in (0, 130, _TERMINATED)]:
        raise UserError(f"{len(failed)} of {workers} workers died, see above; start again to go on")
    return max(codes)


def _worker(path: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    sys.exit(run_program("fastrnn.sweep", lambda _: work(path), []))


def work(path: Path) -> int:
    """Train one run of a sweep after another, until none is left.

    Args:
        path: the sweep's file.

    Returns:
        The exit code: 0; 130 or 143 if Ctrl-C or SIGTERM ended it before, or the end of the sweep
        that it works for.
    """
    plan = read_plan(path)
    study = open_study(plan)
    while not _orphaned() and (claimed := _claim(study, plan)) is not None:
        trial, lock = claimed
        with lock:
            if code := _train(trial, plan):
                return code
    return _TERMINATED if _orphaned() else 0


def _orphaned() -> bool:
    """Whether this is a worker whose sweep was killed: nobody is left to stop it."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def _sampler(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    """What draws the trial of that number: seeded by it, or all workers would draw the same."""
    seed = (plan.seed * 1_000_003 + number) % 2**32
    if plan.method == "tpe":
        # Runs under way count as poor ones: workers keep away from each other.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.samplers.RandomSampler(seed)


def _prepare(study: optuna.Study, plan: Plan, path: Path) -> None:
    """Put in the queue what there is of a grid, and what failed before; refuse a sweep that began
    otherwise."""
    with locked(plan.out / ".lock"):
        begun = study.user_attrs.get("plan")
        if begun is None:
            study.set_user_attr("plan", plan.identity())
        elif begun != plan.identity():
            raise UserError(
                f"{path}: the sweep in {plan.out} began with another method, [settings] or "
                "[search]; restore them, or name another out"
            )
        newest = _newest(study)
        queued = {json.dumps(trial.user_attrs.get("point")) for trial in newest.values()}
        for point in plan.points() if plan.method == "grid" else []:
            if json.dumps(point) not in queued:  # all, or what a crash has kept from the queue
                study.enqueue_trial(point, user_attrs={"point": point})
        for trial in newest.values():
            if trial.state == TrialState.FAIL:
                _enqueue_again(study, trial)


def _newest(study: optuna.Study) -> dict[str, FrozenTrial]:
    """The last trial of every folder."""
    return {_folder(trial): trial for trial in study.get_trials(deepcopy=False)}


def _enqueue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    point = trial.user_attrs.get("point", trial.params)
    study.enqueue_trial(point, user_attrs={"folder": _folder(trial), "point": point})


def _take_up(study: optuna.Study, plan: Plan) -> None:
    """Put the runs that a worker died over into the queue, before each claim: a process that was
    killed may live on for a while."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        folder = _folder(trial)
        # A living worker holds the lock; where there is no folder, it works elsewhere.
        if (plan.out / folder).is_dir() and (lock := _try_lock(plan, folder)) is not None:
            lock.close()
            study.tell(trial.number, state=TrialState.FAIL)
            _enqueue_again(study, trial)


def _claim(study: optuna.Study, plan: Plan) -> tuple[Trial, IO[str]] | None:
    """The next trial, and the lock on its folder that says that it is being worked on."""
    with locked(plan.out / ".lock"):
        _take_up(study, plan)
        trials = study.get_trials(deepcopy=False)
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        begun = {_folder(trial) for trial in trials if trial.state != TrialState.WAITING}
        if not waiting and (plan.method == "grid" or len(begun) >= plan.trials):
            return None
        study.sampler = _sampler(plan, len(trials))
        trial = study.ask()
        folder = _folder(trial)
        (plan.out / folder).mkdir(exist_ok=True)
        lock = _try_lock(plan, folder)
        assert lock is not None
        return trial, lock


def _train(trial: Trial, plan: Plan) -> int:
    """Make or continue the run of a trial; the exit code, other than 0 if it was interrupted."""
    folder = plan.out / _folder(trial)
    point = {key: _suggest(trial, key, values) for key, values in plan.search.items()}
    print(f"{folder.name}  {written(point)}", flush=True)
    try:
        settings = options_of(plan.settings | point, folder)
        code = train(settings, Reporter(Console(file=io.StringIO())))
    except Exception as error:
        reason = one_line(error, "fastrnn.sweep")
        if reason is None:
            raise
        _fail(trial, reason)
        return 0
    if code:
        return code
    summary = read_summary(folder)
    best = summary.best_loss
    if best is None:
        _fail(trial, "no validation loss was finite")
        return 0
    trial.study.tell(trial, best)
    took = duration(summary.seconds or 0)
    print(f"{folder.name}  valid perplexity {perplexity(best):.2f}, {took}", flush=True)
    return 0


def _fail(trial: Trial, reason: str) -> None:
    trial.set_user_attr("error", reason)
    trial.study.tell(trial, state=TrialState.FAIL)
    print(f"{_folder(trial)}  failed: {reason}", flush=True)


def _suggest(trial: Trial, key: str, values: Any) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(key, values)
    low, high, log = values["low"], values["high"], values.get("log", False)
    step = values.get("step")
    if isinstance(low, int):
        return trial.suggest_int(key, low, high, step=step or 1, log=log)
    return trial.suggest_float(key, low, high, step=step, log=log)


def _conclude(study: optuna.Study, plan: Plan) -> None:
    done = [t for t in study.get_trials(states=(TrialState.COMPLETE,)) if t.value is not None]
    for trial in sorted(done, key=lambda t: t.value or 0.0)[:1]:
        value = perplexity(trial.value or 0.0)
        print(f"best: {_folder(trial)}, valid perplexity {value:.2f}, {written(trial.params)}")
    if any(plan.out.glob("*/config.toml")):
        page, title = str(plan.out / "report.html"), f"Sweep {plan.out.name}"
        write_report(ReportingOptions((str(plan.out),), page, title))


def _folder(trial: Trial | FrozenTrial) -> str:
    """Name of a trial's folder: its own, or of the one that it continues."""
    return str(trial.user_attrs.get("folder", f"{trial.number:04}"))


def _try_lock(plan: Plan, folder: str) -> IO[str] | None:
    """A folder's lock, or None: it is beside the folder, since the run in it has one of its own."""
    return try_lock(plan.out / f".{folder}.lock")
