"""The checks of tests/gpu_checks.py, as tests."""

from __future__ import annotations

import pytest

from tests.gpu_checks import checks

CHECKS = checks()


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(name: str) -> None:
    CHECKS[name]()
