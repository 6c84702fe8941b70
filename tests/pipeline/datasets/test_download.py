"""Downloads against a server of our own: resumed, checked, and refused in one line."""

from __future__ import annotations

import hashlib
import http.server
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import download
from pipeline.datasets.download import fetch
from pipeline.datasets.registry import RemoteFile
from pipeline.errors import InputError
from pipeline.interrupt import Interrupted

CONTENT = np.random.default_rng(1).bytes(500_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What the server does, and what it was asked.

    Attributes:
        address: of the file.
        cuts: bytes after which each of the next connections is cut.
        ranges: whether it honours Range.
        status: of every answer, where it is not that of a good one.
        content: what it sends.
        asked: the Range of each request.
    """

    address: str = ""
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    status: int = 0
    content: bytes = CONTENT
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            state.asked.append(asked)
            if state.status:
                self.send_error(state.status)
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and state.ranges else 0
            size = len(state.content)
            if start >= size:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("Content-Length", str(size - start))
            self.end_headers()
            end = start + state.cuts.pop(0) if state.cuts else size
            self.wfile.write(state.content[start:end])

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as service:
        threading.Thread(target=service.serve_forever, args=(0.02,), daemon=True).start()
        state.address = f"http://127.0.0.1:{service.server_address[1]}/data.bin"
        yield state
        service.shutdown()


def get(cache: Path, *addresses: str, sha256: str = SHA256) -> Path:
    (path,) = fetch("set", cache=cache, files=(RemoteFile("data.bin", sha256, addresses),))
    return path


def refused(cache: Path, *addresses: str, sha256: str = SHA256) -> str:
    with pytest.raises(InputError) as error:
        get(cache, *addresses, sha256=sha256)
    assert "\n" not in str(error.value)
    assert not (cache / "set/data.bin").exists()
    return str(error.value)


def left(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "set").iterdir())


def test_a_file_is_fetched_once(tmp_path: Path, server: Server) -> None:
    path = get(tmp_path, server.address)
    assert path.read_bytes() == CONTENT
    assert left(tmp_path) == ["data.bin"]
    get(tmp_path, server.address)
    assert server.asked == [""]


def test_a_cut_connection_is_resumed_at_once(tmp_path: Path, server: Server) -> None:
    server.cuts = [200_000, 100_000]
    assert get(tmp_path, server.address).read_bytes() == CONTENT
    assert server.asked == ["", "bytes=200000-", "bytes=300000-"]


def test_a_connection_that_gives_nothing_ends_and_the_next_command_goes_on(tmp_path: Path, server: Server) -> None:
    server.cuts = [200_000, *[0] * download.ATTEMPTS]
    message = refused(tmp_path, server.address)
    assert "the connection ended after 200,000 of 500,000 bytes" in message
    assert "200,000 bytes are kept" in message
    assert left(tmp_path) == ["data.bin.part"]
    server.asked.clear()
    assert get(tmp_path, server.address).read_bytes() == CONTENT
    assert server.asked == ["bytes=200000-"]
    assert left(tmp_path) == ["data.bin"]


def test_a_server_without_ranges_starts_over(tmp_path: Path, server: Server) -> None:
    server.ranges, server.cuts = False, [200_000]
    assert get(tmp_path, server.address).read_bytes() == CONTENT


def test_a_signal_keeps_what_is_there(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def after_three() -> None:
        if next(calls) == 3:
            raise Interrupted(2)

    monkeypatch.setattr("pipeline.progress.stop_if_asked", after_three)
    with pytest.raises(Interrupted):
        get(tmp_path, server.address)
    kept = (tmp_path / "set/data.bin.part").stat().st_size
    assert 0 < kept < len(CONTENT)
    assert get(tmp_path, server.address).read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={kept}-"


def test_the_wrong_content_is_refused_and_not_kept(tmp_path: Path, server: Server) -> None:
    server.content = b"another file"
    assert "not the registered file: its SHA-256 is not" in refused(tmp_path, server.address)
    assert left(tmp_path) == []


def test_a_damaged_part_is_fetched_again(tmp_path: Path, server: Server) -> None:
    (tmp_path / "set").mkdir()
    for kept in (b"x" * 1_000, CONTENT + b"more"):
        (tmp_path / "set/data.bin.part").write_bytes(kept)
        assert get(tmp_path, server.address).read_bytes() == CONTENT
        (tmp_path / "set/data.bin").unlink()


def test_a_complete_part_needs_no_more_bytes(tmp_path: Path, server: Server) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/data.bin.part").write_bytes(CONTENT)
    assert get(tmp_path, server.address).read_bytes() == CONTENT


def test_a_file_that_has_changed_is_fetched_again(tmp_path: Path, server: Server) -> None:
    path = get(tmp_path, server.address)
    path.write_bytes(CONTENT[:-1])
    assert get(tmp_path, server.address).read_bytes() == CONTENT


def test_no_such_file_and_no_network_are_one_line(tmp_path: Path, server: Server) -> None:
    server.status = 404
    assert f"{server.address}: HTTP 404 Not Found" in refused(tmp_path, server.address)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/data.bin"
        assert "no network? (Connection refused)" in refused(tmp_path, closed)
    assert "no network?" in refused(tmp_path, "http://no-such-host.invalid/data.bin")


def test_the_second_address_is_tried(tmp_path: Path, server: Server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/data.bin"
        assert get(tmp_path, closed, server.address).read_bytes() == CONTENT


def test_two_processes_do_not_write_one_file(tmp_path: Path, server: Server) -> None:
    import fcntl

    (tmp_path / "set").mkdir()
    with (tmp_path / "set/data.bin.part").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another process is fetching this file" in refused(tmp_path, server.address)
    assert server.asked == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="could not be written"):
        get(tmp_path / "file", server.address)
    assert os.listdir(tmp_path) == ["file"]
