"""Where to listen: a stale socket file is taken away, one that is in use is not; who waits in the queue gets in."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ratelimit.errors import ConfigError
from ratelimit.server.address import Address


def test_a_stale_socket_file_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "serve.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    listening = Address(uds=str(path)).bind()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listening.close()
    assert not path.exists()


def test_a_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "serve.sock"
    listening = Address(uds=str(path)).bind()
    with pytest.raises(ConfigError, match=r"--uds: cannot listen on .*: somebody listens there"):
        Address(uds=str(path)).bind()
    listening.close()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--uds: cannot listen on .*: Address already in use"):
        Address(uds=str(path)).bind()
    assert path.read_text(encoding="utf-8") == "precious"


def test_a_path_that_is_somebody_elses_by_now_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "serve.sock"
    first = Address(uds=str(path)).bind()
    first.close()
    second = Address(uds=str(path)).bind()
    first.close()
    assert path.exists()
    second.close()


@pytest.mark.parametrize(("host", "where"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_where(host: str, where: str) -> None:
    listening = Address(host=host, port=0).bind()
    assert listening.where.startswith(where)
    listening.close()


def test_once_closed_nobody_joins_the_queue_and_who_is_in_it_gets_in() -> None:
    listening = Address(port=0).bind()
    place, worker = listening.socket.getsockname(), listening.socket.dup()
    with worker, socket.create_connection(place, timeout=30) as waiting, socket.socket() as newcomer:
        waiting.sendall(b"request")
        listening.close()
        newcomer.setblocking(False)
        assert newcomer.connect_ex(place) != 0
        accepted, _ = worker.accept()
        with accepted:
            assert accepted.recv(100) == b"request"
            accepted.sendall(b"answer")
            assert waiting.recv(100) == b"answer"
        with pytest.raises(BlockingIOError):
            worker.accept()
