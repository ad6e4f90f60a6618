"""Several processes that train one model give what one process gives."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

pytest.importorskip("tyro")

from fastrnn.lm.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from fastrnn.lm.command_line import parse  # noqa: E402
from fastrnn.lm.errors import UserError  # noqa: E402
from fastrnn.lm.parallel import World, check_shares  # noqa: E402
from fastrnn.train import main  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(30, (60, 12), generator=generator).tolist()
    path = tmp_path / "text.txt"
    path.write_text("".join(" ".join(f"w{w}" for w in line) + "\n" for line in words))
    return path


def arguments(text: Path, out: Path, *more: str) -> list[str]:
    given = (
        f"--data {text} --out {out} --hidden-size 12 --batch-size 4 --bptt 9 --epochs 2 "
        "--dropout 0 --log-interval 10 --cell lstm --num-layers 2 --lr 0.01"
    )
    return [*given.split(), *more]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


TRAIN = ("-m", "fastrnn.train")


def start(
    arguments: list[str], size: int, program: tuple[str, ...] = TRAIN
) -> list[subprocess.Popen[str]]:
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *program, *arguments],
            env=environment(rank, size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        ended.append((process.returncode, out, err))
    return ended


def assert_alike(one: Checkpoint, other: Checkpoint) -> None:
    assert one.weights.keys() == other.weights.keys() and one.state.keys() >= {"carried.0"}
    for name, weight in one.weights.items():
        torch.testing.assert_close(other.weights[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    for name in (k for k in one.state if k.startswith("carried")):
        torch.testing.assert_close(other.state[name], one.state[name], rtol=1e-4, atol=1e-5)


def test_two_processes_train_as_one_and_can_be_continued_by_one(text: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    stop = ("--max-steps", "25")  # of 30: in the middle of an epoch, with a hidden state
    ended = finish(start(arguments(text, two, *stop), 2))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert "test perplexity" in ended[0][1] and ended[1][1:] == ("", "")
    assert main(arguments(text, one, *stop)) == 0
    assert_alike(load_checkpoint(one / "last"), load_checkpoint(two / "last"))
    steps = [(line.count('"step"'), line.count("valid")) for line in metrics(two)]
    assert len(steps) == len(metrics(one))
    for out in (one, two):
        assert main(["--out", str(out), "--resume", "--max-steps", "30"]) == 0
    assert_alike(load_checkpoint(one / "best"), load_checkpoint(two / "best"))


# Names of the threads that are left after a training, the main thread's among them.
TRAIN_AND_COUNT = """
import sys
from pathlib import Path
from fastrnn.train import main
code = main(sys.argv[1:])
print([task.read_text() for task in Path("/proc/self/task").glob("*/comm")], file=sys.stderr)
sys.exit(code)
"""


def test_no_thread_outlives_the_group(text: Path, tmp_path: Path) -> None:
    # One that holds a tensor while the interpreter ends aborted the process, seldom.
    given = arguments(text, tmp_path / "run", "--max-steps", "5")
    for code, _, said in finish(start(given, 2, ("-c", TRAIN_AND_COUNT))):
        assert code == 0 and said.count("\\n") == 1, said


def metrics(out: Path) -> list[str]:
    return (out / "metrics.jsonl").read_text().splitlines()


@pytest.mark.slow
def test_torchrun_with_dropout_stops_together_at_sigterm_and_continues(
    text: Path, tmp_path: Path
) -> None:
    straight, out = tmp_path / "straight", tmp_path / "run"
    more = ("--dropout", "0.3", "--accumulate", "2", "--epochs", "40", "--sentences")
    assert [e[0] for e in finish(start(arguments(text, straight, *more), 2))] == [0, 0]
    processes = start(arguments(text, out, *more), 2)
    limit = time.monotonic() + 120
    while not (out / "best").is_dir() and time.monotonic() < limit:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    assert [e[0] for e in finish(processes)] == [143, 143]
    launch = torchrun("--nproc-per-node", "2", "--master-port", str(free_port()))
    again = launched([*launch, "--out", str(out), "--resume"])
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    one, other = load_checkpoint(straight / "last"), load_checkpoint(out / "last")
    for name, weight in one.weights.items():
        assert weight.equal(other.weights[name]), name


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "fastrnn.train"]


def launched(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_torchrun_starts_again_from_the_last_checkpoint(text: Path, tmp_path: Path) -> None:
    straight, out = tmp_path / "straight", tmp_path / "run"
    more = ("--dropout", "0.3", "--epochs", "5", "--checkpoint-interval", "5")
    assert [e[0] for e in finish(start(arguments(text, straight, *more), 2))] == [0, 0]
    launch = torchrun("--standalone", "--nproc-per-node", "2", "--max-restarts", "2")
    running = launched([*launch, *arguments(text, out, *more), "--resume"])
    limit = time.monotonic() + 120
    while not (out / "best").is_dir() and time.monotonic() < limit:
        time.sleep(0.01)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    said, errors = running.communicate(timeout=300)
    assert running.returncode == 0, errors
    assert "continuing after step" in said
    one, other = load_checkpoint(straight / "last"), load_checkpoint(out / "last")
    for name, weight in one.weights.items():
        assert weight.equal(other.weights[name]), name


@pytest.mark.slow
def test_two_hosts_train_as_one_process(text: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    meet = (
        "--rdzv-id",
        "7",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"127.0.0.1:{free_port()}",
    )
    launch = torchrun("--nnodes", "2", "--nproc-per-node", "1", *meet)
    stop = ("--max-steps", "25")  # in the middle of an epoch, with a hidden state
    for host in [launched([*launch, *arguments(text, two, *stop)]) for _ in range(2)]:
        _, said = host.communicate(timeout=300)
        assert host.returncode == 0, said
    assert main(arguments(text, one, *stop)) == 0
    assert_alike(load_checkpoint(one / "last"), load_checkpoint(two / "last"))


@pytest.mark.slow
def test_a_process_that_is_gone_is_told_in_one_line(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first, second = start(arguments(text, out, "--epochs", "2000"), 2)
    limit = time.monotonic() + 120
    while not (out / "metrics.jsonl").is_file() and time.monotonic() < limit:
        time.sleep(0.01)
    second.kill()
    second.communicate()
    _, said = first.communicate(timeout=60)
    assert first.returncode == 2 and said.count("\n") == 1, said
    assert "rank 0 of 2: another process is gone, --resume continues from the last" in said


def test_processes_on_gpus_meet_over_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(dist, "init_process_group", lambda *a, **k: asked.append((*a, k)))
    for name, value in environment(1, 2, 1).items():
        monkeypatch.setenv(name, value)
    device = torch.device("cuda", 1)
    assert not World(device).leads
    World(torch.device("cpu"))
    assert asked == [("nccl", {"device_id": device}), ("gloo", {})]


def test_mistakes_of_several_processes_are_told(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in environment(0, 2, taken.getsockname()[1]).items():
            monkeypatch.setenv(name, value)
        assert main(arguments(text, tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert "rank 0 of 2: no connection at 127.0.0.1:" in said and "EADDRINUSE" in said


def test_work_that_cannot_be_shared_is_told(text: Path, tmp_path: Path) -> None:
    config = parse(arguments(text, tmp_path / "run", "--accumulate", "4"))
    check_shares(config, 1)
    expected = "--batch-size must be a multiple of processes x --accumulate = 8, got 4"
    with pytest.raises(UserError, match=expected):
        check_shares(config, 2)
    with pytest.raises(UserError, match="several processes need --out"):
        check_shares(parse([]), 2)
    config.run.cuda_graphs = True
    with pytest.raises(UserError, match="--cuda-graphs needs a single process, got 4"):
        check_shares(config, 4)
