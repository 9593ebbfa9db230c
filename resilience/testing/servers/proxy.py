"""A bad network before a test server: slow, silent, refusing, or cut."""

from __future__ import annotations

import heapq
import itertools
import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Self

from resilience.checks import check_int, check_number

from .process import HOST, LAUNCHES, ServerError, pick_port

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_CHUNK = 65_536  # bytes read at once
_MOST_ON_THE_WAY = 1 << 20  # bytes in one direction of one connection: then its sender waits, as on a real wire
_COARSEST = 0.001  # seconds: selectors sleep in steps of this, and rather too long
_NAP = 0.0001  # seconds
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: closing sends RST


class _Flow:
    """One direction of a connection: what was read waits in line until it is due."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.line: deque[tuple[float, bytes]] = deque()  # when it is due, and what; b"" is the end
        self.on_the_way = 0  # bytes in line
        self.last_due = 0.0
        self.has_ended = False  # nothing more will be read
        self.is_done = False  # and everything is delivered
        self.is_blocked = False  # the sink takes no more for now
        self.watched = 0  # for which events the selector watches the source


class _Connection:
    """What a client opened. In a black hole it has neither a server nor flows."""

    def __init__(self, client: socket.socket, server: socket.socket | None) -> None:
        self.client = client
        self.sockets = [client] if server is None else [client, server]
        self.flows: tuple[_Flow, ...] = ()
        if server is not None:
            self.flows = (_Flow(client, server), _Flow(server, client))


class TcpProxy:
    """Forwards TCP to a server on 127.0.0.1, and does to its connections what a bad network does.

    A context manager: it listens from entering to leaving, which closes all connections. Its loop runs in a thread of
    its own, so that it serves sync, asyncio and trio code alike; all methods may be called from any thread, and have
    happened when they return. It adds about 0.1 ms to a round trip (unless the tests keep Python's GIL busy), and
    keeps the order of bytes whatever the delays. Bytes under way do not wait for each other: latency costs no
    throughput.

    Args:
        target_port: of the server. It need not run: then connections are reset once they are accepted.
        latency: seconds that each byte takes each way, >= 0; a round trip takes twice that. Opening a connection takes
            none. Default 0.
        jitter: seconds, >= 0: on top of latency, between 0 and this, drawn for each chunk. Default 0.
        rng: draws the jitter. None: one with a fixed seed, so that all runs are alike.

    Raises:
        ConfigurationError: a value out of its range.

    Attributes:
        target_port: for connections from now on.
        accepted: how many connections were accepted, all in all.
        bytes_up: how many bytes came from clients, forwarded or not.
        bytes_down: how many bytes came from the server.
    """

    def __init__(
        self, target_port: int, *, latency: float = 0.0, jitter: float = 0.0, rng: random.Random | None = None
    ) -> None:
        check_int("target_port", target_port, most=65_535)
        self.target_port = target_port
        self.latency = latency
        self.jitter = jitter
        self.accepted = self.bytes_up = self.bytes_down = 0
        self._rng = random.Random(0) if rng is None else rng  # noqa: S311 - jitter is no secret
        self._port: int | None = None
        self._thread: threading.Thread | None = None
        self._is_black_hole = False
        # Used by the thread alone, except that anybody may ask for the number of connections.
        self._connections: set[_Connection] = set()
        self._listener: socket.socket | None = None
        self._timers: list[tuple[float, int, _Connection, _Flow]] = []  # a heap, by due time
        self._numbers = itertools.count()  # ties in the heap
        # What other threads want done.
        self._orders: deque[tuple[Callable[[], None], Future[None]]] = deque()

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1: chosen at its start, and kept.

        Raises:
            ServerError: it was never started.
        """
        if self._port is None:
            raise ServerError("the proxy has no port before its start")
        return self._port

    @property
    def latency(self) -> float:
        """Seconds each way, for bytes that come from now on; may be set at any time."""
        return self._latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        check_number("latency", seconds, least=0)
        self._latency = seconds

    @property
    def jitter(self) -> float:
        """Seconds on top of latency at most, for bytes that come from now on; may be set at any time."""
        return self._jitter

    @jitter.setter
    def jitter(self, seconds: float) -> None:
        check_number("jitter", seconds, least=0)
        self._jitter = seconds

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._connections)

    def black_hole(self) -> None:
        """Swallow everything from now on: connections open, nothing answers, nobody hangs up.

        Connections of now are silent for good (half-open), even after `restore`; what was under way is lost. New ones
        are accepted, and never reach the server.

        Raises:
            ServerError: the proxy does not run.
        """
        self._order(self._swallow_all)

    def refuse(self) -> None:
        """Refuse new connections from now on, as a machine does where nothing listens. Open ones go on.

        Raises:
            ServerError: the proxy does not run.
        """
        self._order(self._stop_listening)

    def reset_all(self) -> None:
        """Cut all open connections, in both directions, by RST. New ones are served as before.

        Raises:
            ServerError: the proxy does not run.
        """
        self._order(self._cut_all)

    def restore(self) -> None:
        """Forward new connections again, after `black_hole` or `refuse`. Latency and jitter stay.

        Raises:
            ServerError: the proxy does not run, or another process has taken its port meanwhile.
        """
        self._order(self._listen)

    def __enter__(self) -> Self:
        """Start to listen.

        Raises:
            ServerError: it listens already, or finds no port.
        """
        if self._thread is not None:
            raise ServerError(f"{self!r} runs already")
        self._selector = selectors.DefaultSelector()
        self._waker, self._alarm = socket.socketpair()
        self._is_ending = False
        try:
            self._listen()
        except BaseException:
            self._close_all()
            raise
        self._selector.register(self._alarm, _READ, self._obey)
        self._thread = threading.Thread(target=self._run, name=f"TcpProxy {self._port}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close all connections and stop to listen."""
        if self._thread is not None:
            self._is_ending = True
            with suppress(OSError):  # the thread has ended already, by a bug of its own
                self._waker.send(b"!")
            self._thread.join()
            self._thread = None

    def __repr__(self) -> str:
        how = "refuses" if self._listener is None else "swallows" if self._is_black_hole else "forwards"
        state = f"{how}, {self.connections} open" if self._thread is not None else "not running"
        return f"<TcpProxy from {self._port} to {self.target_port}, {state}>"

    def _order(self, what: Callable[[], None]) -> None:
        """Have the thread do it, and wait until it has."""
        if self._thread is None or not self._thread.is_alive():
            raise ServerError(f"{self!r} does not run")
        done: Future[None] = Future()
        self._orders.append((what, done))
        self._waker.send(b"!")
        done.result()

    # From here on: in the thread.

    def _run(self) -> None:
        try:
            while not self._is_ending:
                for key, events in self._selector.select(self._patience()):
                    key.data(events)
                self._deliver_what_is_due()
        finally:
            self._close_all()

    def _patience(self) -> float | None:
        """Give the seconds to wait for sockets: until something is due, but rather too short."""
        if not self._timers:
            return None
        rest = self._timers[0][0] - time.monotonic()
        if rest > _COARSEST:
            return rest - _COARSEST
        if rest > 0:
            time.sleep(min(rest, _NAP))
        return 0

    def _deliver_what_is_due(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, connection, flow = heapq.heappop(self._timers)
            if flow in connection.flows and connection in self._connections:
                self._deliver(connection, flow, now)

    def _obey(self, _events: int) -> None:
        self._alarm.recv(_CHUNK)
        while self._orders:
            what, done = self._orders.popleft()
            try:
                what()
            except BaseException as error:  # noqa: BLE001 - belongs to the caller
                done.set_exception(error)
            else:
                done.set_result(None)

    def _listen(self) -> None:
        self._is_black_hole = False
        if self._listener is not None:
            return
        self._listener = self._bind()
        self._listener.setblocking(False)
        self._port = self._listener.getsockname()[1]
        self._selector.register(self._listener, _READ, self._accept)

    def _bind(self) -> socket.socket:
        attempts = 1 if self._port is not None else LAUNCHES
        while True:
            port = self._port or pick_port()
            attempts -= 1
            try:
                return socket.create_server((HOST, port), backlog=1024)
            except OSError as error:
                # Another process may have taken it since it was picked.
                if not attempts:
                    raise ServerError(f"cannot listen on port {port}: {error}") from error

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, _events: int) -> None:
        if self._listener is None:
            return
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has gone already
            return
        self.accepted += 1
        server = None if self._is_black_hole else socket.socket()
        connection = _Connection(client, server)
        self._connections.add(connection)
        for one in connection.sockets:
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if server is None:
            self._selector.register(client, _READ, partial(self._swallow, connection, client))
            return
        server.connect_ex((HOST, self.target_port))  # whether it worked is seen when the socket gets ready
        connection.flows[0].is_blocked = True
        self._watch(connection)

    def _watch(self, connection: _Connection) -> None:
        """Ask to be called for those sockets, and only those, with which something can be done."""
        for flow, other in zip(connection.flows, reversed(connection.flows), strict=True):
            has_room = not flow.has_ended and flow.on_the_way < _MOST_ON_THE_WAY
            self._watch_for(_READ * has_room | _WRITE * other.is_blocked, connection, flow, other)

    def _watch_for(self, events: int, connection: _Connection, flow: _Flow, other: _Flow) -> None:
        if events == flow.watched:
            return
        handler = partial(self._serve, connection, flow, other)
        if not events:
            self._selector.unregister(flow.source)
        elif not flow.watched:
            self._selector.register(flow.source, events, handler)
        else:
            self._selector.modify(flow.source, events, handler)
        flow.watched = events

    def _serve(self, connection: _Connection, flow: _Flow, other: _Flow, events: int) -> None:
        """The source of `flow`, which is the sink of `other`, can be read or written."""
        if events & _WRITE and connection in self._connections:
            other.is_blocked = False
            self._deliver(connection, other, time.monotonic())
        if events & _READ and connection in self._connections:
            self._read(connection, flow)

    def _read(self, connection: _Connection, flow: _Flow) -> None:
        try:
            data = flow.source.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:  # reset, or the server was not there
            self._close(connection, cut=True)
            return
        self._count(connection, flow.source, data)
        flow.has_ended = not data
        flow.on_the_way += len(data)
        now = time.monotonic()
        delay = self._latency + (self._rng.uniform(0, self._jitter) if self._jitter else 0.0)
        # Nothing overtakes what was sent before it, even if that had the longer delay.
        flow.last_due = max(flow.last_due, now + delay)
        flow.line.append((flow.last_due, data))
        if flow.last_due > now:
            heapq.heappush(self._timers, (flow.last_due, next(self._numbers), connection, flow))
            self._watch(connection)
        else:
            self._deliver(connection, flow, now)

    def _deliver(self, connection: _Connection, flow: _Flow, now: float) -> None:
        try:
            while flow.line and not flow.is_blocked and flow.line[0][0] <= now:
                self._deliver_chunk(flow)
        except OSError:
            self._close(connection, cut=True)
            return
        if all(one.is_done for one in connection.flows):
            self._close(connection)
        else:
            self._watch(connection)

    def _deliver_chunk(self, flow: _Flow) -> None:
        due, data = flow.line[0]
        if not data:
            flow.sink.shutdown(socket.SHUT_WR)
            flow.is_done = True
            flow.line.popleft()
            return
        try:
            sent = flow.sink.send(data)
        except BlockingIOError:
            flow.is_blocked = True
            return
        flow.on_the_way -= sent
        if sent < len(data):
            flow.line[0] = (due, data[sent:])
        else:
            flow.line.popleft()

    def _count(self, connection: _Connection, source: socket.socket, data: bytes) -> None:
        if source is connection.client:
            self.bytes_up += len(data)
        else:
            self.bytes_down += len(data)

    def _swallow_all(self) -> None:
        self._listen()
        self._is_black_hole = True
        for connection in self._connections:
            for flow in connection.flows:
                self._watch_for(0, connection, flow, flow)
                self._selector.register(flow.source, _READ, partial(self._swallow, connection, flow.source))
            connection.flows = ()  # and with them, what was under way

    def _swallow(self, connection: _Connection, source: socket.socket, _events: int) -> None:
        if connection not in self._connections:
            return
        try:
            data = source.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._count(connection, source, data)
        if data:
            return
        if source is connection.client:
            self._close(connection)
        else:
            self._selector.unregister(source)  # the client must not hear that the server hung up

    def _cut_all(self) -> None:
        for connection in list(self._connections):
            self._close(connection, cut=True)

    def _close(self, connection: _Connection, *, cut: bool = False) -> None:
        self._connections.discard(connection)
        for one in connection.sockets:
            with suppress(KeyError):  # not every socket is always registered
                self._selector.unregister(one)
            if cut:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            one.close()

    def _close_all(self) -> None:
        for connection in list(self._connections):
            self._close(connection)
        self._timers.clear()
        self._stop_listening()
        self._selector.close()
        self._waker.close()
        self._alarm.close()
