"""Tests that need a GPU, and the fixture of those that run CUDA kernels on the CPU."""

import os
from collections.abc import Iterator

import pytest
import torch

from build_tools import toolchain
from tests.emulator import Emulator, emulator


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without a GPU its tests are skipped, unless FASTRNN_REQUIRE_GPU=1: then they fail."""
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    if os.environ.get("FASTRNN_REQUIRE_GPU") == "1":
        pytest.fail("needs a CUDA device", pytrace=False)
    pytest.skip("needs a CUDA device")


@pytest.fixture
def device() -> Iterator[Emulator]:
    """The emulated device, empty."""
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
