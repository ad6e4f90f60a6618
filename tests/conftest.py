"""The fixture of the tests that run CUDA kernels on the CPU."""

from collections.abc import Iterator

import pytest
import torch

from build_tools import toolchain
from tests.emulator import Emulator, emulator


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
