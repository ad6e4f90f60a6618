"""Corpora fetched from a server, which here is one of our own."""

import functools
import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tyro")

from fastrnn.lm import corpus, datasets  # noqa: E402
from fastrnn.lm.datasets import DATASETS, Dataset, Source  # noqa: E402
from fastrnn.lm.download import cache_folder  # noqa: E402
from fastrnn.lm.errors import UserError  # noqa: E402

TEXT = b"a line of text\n" * 100
BOOK = b"*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\nThe Book\n\n*** END OF THE PROJECT"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    served = tmp_path / "served"
    served.mkdir()
    (served / "text.txt").write_bytes(TEXT)
    (served / "book.txt").write_bytes(b"any header\n" + BOOK)
    handler = functools.partial(Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTRNN_DATA", raising=False)


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def offer(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    monkeypatch.setitem(datasets.DATASETS, "sample", dataset)


@pytest.mark.parametrize("sum", [hashlib.sha256(TEXT).hexdigest(), blob(TEXT)])
def test_a_corpus_is_fetched_once_and_checked(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sum: str
) -> None:
    source = Source(f"{server}/text.txt", ("0" * 40, sum))
    offer(monkeypatch, Dataset("sample", {f"{s}.txt": source for s in corpus.SPLITS}))
    for _ in range(2):
        train, valid, test = corpus.read_corpus("sample")
        assert "".join(train) == "".join(valid) == "".join(test) == TEXT.decode()
        monkeypatch.setattr("urllib.request.urlopen", None)  # the second time nothing is asked
    names = sorted(p.name for p in (tmp_path / "cache" / "data" / "sample").iterdir())
    assert names == ["test.txt", "train.txt", "valid.txt"]


def test_a_book_is_checked_between_its_marks(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sum = "text:" + hashlib.sha256(b"The Book").hexdigest()
    offer(monkeypatch, Dataset("book.txt", {"": Source(f"{server}/book.txt", ("1" * 64, sum))}))
    with pytest.raises(UserError, match="too few to split"):  # fetched and found good
        corpus.read_corpus("sample")


def test_another_sum_keeps_the_file_and_names_both(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, Dataset("t.txt", {"": Source(f"{server}/text.txt", ("2" * 40,))}))
    with pytest.raises(UserError) as caught:
        corpus.read_corpus("sample")
    said = str(caught.value)
    assert blob(TEXT) in said and "2" * 40 in said and "t.txt.mismatch" in said
    assert (tmp_path / "cache" / "data" / "t.txt.mismatch").read_bytes() == TEXT
    assert not (tmp_path / "cache" / "data" / "t.txt").exists()


def test_offline_says_where_to_put_which_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    source = Source(f"{address}/text.txt", ())
    offer(monkeypatch, Dataset("sample", {f"{s}.txt": source for s in corpus.SPLITS}))
    with pytest.raises(UserError) as caught:
        corpus.read_corpus("sample")
    expected = f"put train.txt, valid.txt, test.txt into {tmp_path}/cache/data/sample"
    assert "Connection refused" in str(caught.value) and expected in str(caught.value)
    monkeypatch.setenv("FASTRNN_DATA", str(tmp_path / "mine"))
    with pytest.raises(UserError, match=f"into {tmp_path}/mine/sample$"):
        corpus.read_corpus("sample")
    offer(monkeypatch, Dataset("one.txt", {"": source}))
    with pytest.raises(UserError, match=f"put it at {tmp_path}/mine/one.txt$"):
        corpus.read_corpus("sample")
    assert "\n" not in str(caught.value)


def test_a_missing_page_is_told(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Dataset("t.txt", {"": Source(f"{server}/none.txt", ())}))
    with pytest.raises(UserError, match=r"none\.txt cannot be downloaded \(.*not found"):
        corpus.read_corpus("sample")


def test_known_corpora_have_sums() -> None:
    assert set(DATASETS) == {"ptb", "wikitext-2", "time-machine", "tiny-shakespeare"}
    for dataset in DATASETS.values():
        for source in dataset.files.values():
            assert source.address.startswith("https://") and source.sums
            assert all(len(sum.removeprefix("text:")) in (40, 64) for sum in source.sums)


def test_without_a_home_folder_one_line_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("FASTRNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "fastrnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(UserError, match="no home folder: set FASTRNN_CACHE to a folder"):
        cache_folder()
