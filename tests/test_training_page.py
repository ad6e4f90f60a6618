"""The commands of docs/training.md, run as they stand there."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

for name in ("tyro", "optuna"):
    pytest.importorskip(name)

from fastrnn.lm.command_line import parse  # noqa: E402
from fastrnn.lm.parallel import check_shares  # noqa: E402

PAGE = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.M | re.S)
pytestmark = pytest.mark.usefixtures("no_pictures", "one_thread")


@pytest.mark.slow
def test_the_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("= one =\nthe fox saw it and it saw the fox\nit ran\n" * 50)
    (toml,) = (text for kind, text in BLOCKS if kind == "toml")
    Path("sweep.toml").write_text(toml)
    commands = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    assert len(commands) > 15
    for command in commands:
        program, *arguments = shlex.split(command)
        if program == "torchrun":  # tests/test_parallel.py runs such
            continue
        try:
            code = importlib.import_module(program).main(arguments)
        except SystemExit as left:
            code = left.code
        assert code == 0, (command, capsys.readouterr().err)
    assert (tmp_path / "runs" / "sweep" / "report.html").is_file()


def test_torchrun_is_given_runs_that_can_be_shared() -> None:
    launches = re.findall(r"^torchrun .*?-m fastrnn\.train (.*?)$", PAGE.replace("\\\n", " "), re.M)
    assert len(launches) == 2
    for arguments in launches:
        check_shares(parse(shlex.split(arguments)), 2)
