"""What every test runs under."""

import os
from collections.abc import Iterator

import pytest


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
