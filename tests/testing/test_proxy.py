"""A bad network before a server: what passes, what does not, and how long it takes."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from resilience import ConfigurationError
from resilience.testing.servers import RedisServer, ServerError, TcpProxy, proxy
from resilience.testing.servers.process import pick_port, wait_until

MakeProxy = Callable[..., TcpProxy]
SILENCE = 0.05  # seconds after which nothing is expected to come


class Echo:
    """A server that sends back what it gets, and keeps its connections for the test to look at."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.ends: list[str] = []
        self.accepted: list[socket.socket] = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:
                return
            self.accepted.append(one)
            threading.Thread(target=self.serve, args=[one], daemon=True).start()

    def serve(self, one: socket.socket) -> None:
        with one:
            try:
                while data := one.recv(65_536):
                    one.sendall(data)
                self.ends.append("closed")
            except OSError:
                self.ends.append("reset")

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread; close alone does not
        self.listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def connect() -> Iterator[Callable[[TcpProxy], socket.socket]]:
    with ExitStack() as clients:
        yield lambda to: clients.enter_context(socket.create_connection(("127.0.0.1", to.port), timeout=5))


Connect = Callable[[TcpProxy], socket.socket]


def read(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := client.recv(65_536)):
        data += more
    return data


def ask(client: socket.socket, what: bytes = b"hello") -> bytes:
    client.sendall(what)
    return read(client, len(what))


def is_silent(client: socket.socket) -> bool:
    client.settimeout(SILENCE)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5)
    return False


def round_trip(client: socket.socket) -> float:
    began = time.monotonic()
    ask(client)
    return time.monotonic() - began


def test_everything_passes_both_ways_and_is_counted(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    to = tcp_proxy(echo.port)
    client = connect(to)
    sent = random.Random(1).randbytes(5_000_000)
    sender = threading.Thread(target=client.sendall, args=[sent])
    sender.start()
    assert read(client, len(sent)) == sent
    sender.join()
    assert (to.bytes_up, to.bytes_down) == (len(sent), len(sent))
    assert (to.accepted, to.connections) == (1, 1)


def test_a_server_works_through_it(any_redis: RedisServer, tcp_proxy: MakeProxy, connect: Connect) -> None:
    client = connect(tcp_proxy(any_redis.port))
    client.sendall(b"PING\r\n")
    assert read(client, 7) == b"+PONG\r\n"


def test_the_end_of_one_direction_leaves_the_other_open(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    to = tcp_proxy(echo.port, latency=0.02)
    client = connect(to)
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_WR)
    assert read(client, 100) == b"last words"
    assert client.recv(1) == b""
    wait_until("it was closed", lambda: to.connections == 0)
    assert echo.ends == ["closed"]


def test_a_server_that_hangs_up_is_heard(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    client = connect(tcp_proxy(echo.port))
    ask(client)
    echo.accepted[0].shutdown(socket.SHUT_RDWR)
    assert client.recv(1) == b""


def test_a_reset_by_the_client_reaches_the_server(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    to = tcp_proxy(echo.port)
    client = connect(to)
    ask(client)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, proxy._RESET)
    client.close()
    wait_until("the server heard", lambda: echo.ends)
    assert echo.ends == ["reset"]
    assert to.connections == 0


def test_latency_is_taken_each_way_and_may_change(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    to = tcp_proxy(echo.port, latency=0.02)
    client = connect(to)
    assert 0.04 <= round_trip(client) < 0.2
    to.latency = 0.0
    assert min(round_trip(client) for _ in range(20)) < 0.01
    to.latency = 0.0125
    assert to.latency == 0.0125
    assert 0.025 <= min(round_trip(client) for _ in range(5)) < 0.1


def test_bytes_under_way_do_not_wait_for_each_other(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    to = tcp_proxy(echo.port, latency=0.05)
    client = connect(to)
    began = time.monotonic()
    for number in range(50):
        client.sendall(b"%02d" % number)
        wait_until("the chunk was under way", lambda sent=2 * number + 2: to.bytes_up == sent)
    assert read(client, 100) == b"".join(b"%02d" % number for number in range(50))
    assert time.monotonic() - began < 1.5  # one after the other would take 5 s


def test_jitter_keeps_the_order_and_its_bounds(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    class Drawn(random.Random):
        def uniform(self, a: float, b: float) -> float:
            drawn.append(super().uniform(a, b))
            return drawn[-1]

    drawn: list[float] = []
    to = tcp_proxy(echo.port, jitter=0.02, rng=Drawn(7))
    client = connect(to)
    for number in range(20):
        client.sendall(b"%02d" % number)
        wait_until("the chunk was under way", lambda sent=2 * number + 2: to.bytes_up == sent)
    assert read(client, 40) == b"".join(b"%02d" % number for number in range(20))
    assert len(drawn) >= 21
    assert all(0 <= delay <= 0.02 for delay in drawn)
    to.jitter = 0
    assert min(round_trip(client) for _ in range(20)) < 0.01


def test_a_sender_waits_while_too_much_is_under_way(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    to = tcp_proxy(echo.port, latency=3600.0)
    client = connect(to)
    client.settimeout(SILENCE)
    with pytest.raises(TimeoutError):
        client.sendall(bytes(50_000_000))
    assert to.bytes_up < proxy._MOST_ON_THE_WAY + proxy._CHUNK


def test_a_client_that_reads_slowly_gets_everything(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    to = tcp_proxy(echo.port)
    client = connect(to)
    sent = random.Random(2).randbytes(8_000_000)
    sender = threading.Thread(target=client.sendall, args=[sent])
    sender.start()
    # Read nothing until all buffers are full: its answers have nowhere to go, and it stops to take in more.
    before = -1
    while before != to.bytes_down:
        before = to.bytes_down
        sender.join(0.02)
    assert read(client, len(sent)) == sent
    sender.join()


def test_in_a_black_hole_nobody_answers_and_nobody_hangs_up(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    to = tcp_proxy(echo.port)
    old = connect(to)
    ask(old)
    to.black_hole()
    new = connect(to)
    for client in (old, new):
        client.sendall(b"anybody there?")
        assert is_silent(client)
    echo.accepted[0].shutdown(socket.SHUT_RDWR)
    assert is_silent(old)
    assert (to.connections, len(echo.accepted)) == (2, 1)

    to.restore()
    assert ask(connect(to)) == b"hello"
    for client in (old, new):
        assert is_silent(client)  # half-open for good
        client.close()
    wait_until("the closed ones were forgotten", lambda: to.connections == 1)


def test_what_is_under_way_is_lost_in_a_black_hole(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    to = tcp_proxy(echo.port, latency=0.02)
    client = connect(to)
    client.sendall(b"hello")
    wait_until("it was under way", lambda: to.bytes_up)
    to.black_hole()
    to.black_hole()
    assert is_silent(client)
    to.reset_all()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_black_hole_accepts_where_was_refused_before(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    to = tcp_proxy(echo.port)
    to.refuse()
    to.black_hole()
    client = connect(to)
    client.sendall(b"hello")
    assert is_silent(client)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, proxy._RESET)
    client.close()
    wait_until("it was forgotten", lambda: to.connections == 0)


def test_reset_connections_fail_at_once_on_both_sides(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    to = tcp_proxy(echo.port)
    clients = [connect(to) for _ in range(3)]
    for client in clients:
        ask(client)
    to.reset_all()
    assert to.connections == 0
    for client in clients:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    wait_until("the server heard", lambda: len(echo.ends) == 3)
    assert echo.ends == ["reset"] * 3
    assert ask(connect(to)) == b"hello"
    assert to.accepted == 4


def test_new_connections_are_refused_and_old_ones_go_on(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    to = tcp_proxy(echo.port)
    old = connect(to)
    to.refuse()
    to.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect(to)
    assert ask(old) == b"hello"
    to.restore()
    to.restore()
    assert ask(connect(to)) == b"hello"


def test_where_no_server_is_a_connection_is_reset(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    to = tcp_proxy(echo.port)
    echo.close()
    with pytest.raises(ConnectionResetError):
        connect(to).recv(1)
    assert (to.accepted, to.connections) == (1, 0)
    echo.listener = socket.create_server(("127.0.0.1", 0))
    to.target_port = echo.listener.getsockname()[1]
    threading.Thread(target=echo.accept, daemon=True).start()
    assert ask(connect(to)) == b"hello"


def test_at_its_end_it_closes_everything(echo: Echo, connect: Connect) -> None:
    with TcpProxy(echo.port) as to:
        client = connect(to)
        ask(client)
    assert client.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(to)
    with pytest.raises(ServerError, match="does not run"):
        to.reset_all()
    with to:  # once more, on its port
        assert ask(connect(to)) == b"hello"


def test_it_runs_once_at_a_time(echo: Echo) -> None:
    to = TcpProxy(echo.port)
    with pytest.raises(ServerError, match="no port before its start"):
        _ = to.port
    with to, pytest.raises(ServerError, match="runs already"):
        to.__enter__()


def test_it_shows_what_it_does(echo: Echo) -> None:
    with TcpProxy(echo.port) as to:
        assert repr(to) == f"<TcpProxy from {to.port} to {echo.port}, forwards, 0 open>"
        to.black_hole()
        assert "swallows" in repr(to)
        to.refuse()
        assert "refuses" in repr(to)
    assert repr(to) == f"<TcpProxy from {to.port} to {echo.port}, not running>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_port": 0}, "target_port must be at least 1, got 0"),
        ({"target_port": "6379"}, "target_port must be an int, got '6379'"),
        ({"target_port": 65_536}, "target_port must be at most 65,535, got 65536"),
        ({"latency": -0.1}, "latency must be at least 0, got -0.1"),
        ({"jitter": float("inf")}, "jitter must be finite, got inf"),
    ],
)
def test_bad_values_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{message}$"):
        TcpProxy(**{"target_port": 1, **options})  # type: ignore[arg-type]  # that is the test


def test_latency_cannot_become_nonsense(echo: Echo) -> None:
    to = TcpProxy(echo.port, latency=0.1)
    with pytest.raises(ConfigurationError, match="latency must be finite, got nan"):
        to.latency = float("nan")
    assert to.latency == 0.1


def test_a_port_that_was_stolen_is_not_waited_for(
    echo: Echo, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    picked = iter([echo.port, pick_port()])
    monkeypatch.setattr(proxy, "pick_port", lambda: next(picked))
    with TcpProxy(echo.port) as to:
        assert to.port != echo.port
        to.refuse()
        with socket.create_server(("127.0.0.1", to.port)), pytest.raises(ServerError, match="cannot listen on port"):
            to.restore()
        to.restore()
        assert ask(connect(to)) == b"hello"


def test_without_any_port_it_does_not_start(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "pick_port", lambda: echo.port)
    with pytest.raises(ServerError, match="cannot listen on port"):
        TcpProxy(echo.port).__enter__()


def test_many_connections_at_once(echo: Echo, tcp_proxy: MakeProxy, connect: Connect) -> None:
    to = tcp_proxy(echo.port, latency=0.01)
    clients = [connect(to) for _ in range(50)]
    for number, client in enumerate(clients):
        client.sendall(b"%02d" % number)
    assert [read(client, 2) for client in clients] == [b"%02d" % number for number in range(50)]
