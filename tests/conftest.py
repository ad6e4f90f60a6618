"""What every test runs under, and the fixtures that many share."""

import os
from collections.abc import Iterator

import pytest
import torch

from build_tools import toolchain
from fastrnn import _library
from tests.emulator import Emulator, emulator


def pytest_sessionstart() -> None:
    """With a wrong environment variable tests would be skipped as without compiled kernels."""
    if _library.mistake is not None:
        pytest.exit(_library.mistake, returncode=pytest.ExitCode.USAGE_ERROR)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without a GPU its tests are skipped, unless FASTRNN_REQUIRE_GPU=1: then they fail."""
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    if os.environ.get("FASTRNN_REQUIRE_GPU") == "1":
        pytest.fail("needs a CUDA device", pytrace=False)
    pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Encoded corpora go into a folder of this run, not into the user's cache."""
    before = os.environ.get("FASTRNN_CACHE")
    os.environ["FASTRNN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["FASTRNN_CACHE"]
    if before is not None:
        os.environ["FASTRNN_CACHE"] = before


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no curves, which take longer than training a model this small."""
    monkeypatch.setattr("fastrnn.lm.session.draw_curves", lambda metrics, folder: None)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small only wait for a second thread, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Everything torch allocates holds NaN until a kernel writes it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device() -> Iterator[Emulator]:
    """The emulated device that runs CUDA kernels on the CPU, empty."""
    try:
        toolchain.compiler()
    except toolchain.BuildError as error:
        pytest.skip(str(error))
    found, threads = emulator(), torch.get_num_threads()
    torch.set_num_threads(1)  # the reference's products are small here
    found.clear()
    yield found
    found.clear()
    torch.set_num_threads(threads)
