"""Trips to Redis for trio and for sync code: one worker thread, one hop for each batch."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from resilience.breaker import Permit

from .batch import UNRANKED, WORTH_A_TRIP, Batch, Caller, Item, Pending, Request, Unreachable, Wake
from .store import Call, SharedStore

if TYPE_CHECKING:
    from .cluster import SyncClusterLine
    from .lines import SyncLine

IDLE: Final = 10.0
"""Seconds without work after which the thread ends, and closes its line."""

PATIENCE: Final = 0.02
"""Seconds that a caller waits beyond its budget for the thread to say that the time is over."""


class _Bell:
    """Wakes the callers of one trio run, all that a batch answered with one hop."""

    __slots__ = ("_token", "event", "watched")

    def __init__(self, token: Any, event: Any) -> None:
        self._token = token
        self.event = event
        self.watched = False

    def ring(self) -> None:
        """Wake all callers, from any thread."""
        with suppress(RuntimeError):  # the run is over, and with it those who waited
            self._token.run_sync_soon(self._set)

    def _set(self) -> None:
        self.event.set()

    async def watch(self, trio: Any, seconds: float) -> None:
        """Wait until the bell rings, `seconds` at the most; then, or if that is cancelled, another one has to watch."""
        event = self.event
        self.watched = True
        try:
            with trio.move_on_after(seconds):
                await event.wait()
        finally:
            if not event.is_set():
                self.watched, self.event = False, trio.Event()
                event.set()


class _Flight:
    """One trip under way."""

    __slots__ = ("batch", "began", "number", "permit", "refreshing")

    def __init__(self, number: int, batch: Batch, permit: Permit) -> None:
        self.number = number
        self.batch = batch
        self.permit = permit
        self.refreshing = False
        self.began = 0.0


class ThreadTrips:
    """Everything that one store does without asyncio. The thread starts when it is needed, and ends when it is not."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        # Guards everything below; notified when there is something to do. Nothing of the user's runs under it. Who
        # does not wait for it takes the lock alone, which is quicker.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._pending: dict[int, Pending] = {}
        self._thread: threading.Thread | None = None
        self._idle = False
        """Whether the thread waits for something to do."""
        self._closing = False
        self._steps: Any = None
        self._next_step_at = 0.0
        self._answer: Any = None
        self._probing: SyncLine | SyncClusterLine | None = None
        # Of the thread alone.
        self._flights: list[_Flight] = []
        self._stale = False

    # --- asking ---

    async def ask(self, request: Request) -> tuple[Item, int]:
        """Ask with the next trip, from a task; gives the item with its outcome, and the caller's place there.

        Cancellation: what was granted meanwhile is given back.
        """
        trio: Any = sys.modules["trio"]  # in a task there is one; an import takes five times as long to find it
        token = trio.lowlevel.current_trio_token()
        with self._lock:
            pending = self._queue(request.key)
            item, caller = pending.join(request, None, time.monotonic, self._store.budget)
            self._wake_thread()
            if item.done:
                return item, caller.rank
            batch = pending.batches[-1]  # the one that it has just joined
            bell = batch.bells.get(token)
            if bell is None:
                bell = batch.bells[token] = _Bell(token, trio.Event())
        deadline = batch.deadline + PATIENCE
        try:
            while True:
                if bell.watched:
                    await bell.event.wait()
                else:
                    await bell.watch(trio, max(0.0, deadline - time.monotonic()))
                # Not the outcome: that is there a moment before the places.
                if caller.rank != UNRANKED or time.monotonic() >= deadline:
                    break
        except BaseException:
            self._refund(item, item.leave(caller))
            raise
        return self._answered(item, caller)

    def ask_sync(self, request: Request) -> tuple[Item, int]:
        """Ask with the next trip, from a thread; gives the item with its outcome, and the caller's place there."""
        done = threading.Event()
        with self._lock:
            item, caller = self._join(request, lambda _: done.set())
        try:
            done.wait(self._store.budget + PATIENCE)
        except BaseException:
            self._refund(item, item.leave(caller))
            raise
        return self._answered(item, caller)

    def tell(self, request: Request, then: Wake | None = None) -> None:
        """Ask, and do not wait."""
        with self._lock:
            self._join(request, then)

    def _join(self, request: Request, wake: Wake | None) -> tuple[Item, Caller]:
        joined = self._queue(request.key).join(request, wake, time.monotonic, self._store.budget)
        self._wake_thread()
        return joined

    def _queue(self, key: str) -> Pending:
        """Give what waits together with `key`."""
        number = self._store.shard_of(key)
        pending = self._pending.get(number)
        if pending is None:
            # Half as many as a call may have: of a crowd that asks at once, two trips are under way from the start.
            pending = self._pending[number] = Pending(min(34, self._store.max_batch))
        return pending

    def _refund(self, item: Item, units: int) -> None:
        if units:
            self.tell(Request(item.request.limiter, "refund", item.request.key, units))

    def _wake_thread(self) -> None:
        if self._thread is None:
            self._closing = False
            thread = threading.Thread(target=self._run, name="resilience rate limiter", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # there is none to be had: decided here, as in an overload
                for pending in self._pending.values():
                    pending.fail(type(error).__name__)
                if self._steps is not None:
                    steps, self._steps = self._steps, None
                    steps.close()
                    self._store.end_recovery(steps)  # the next caller tries again
                return
            self._thread = thread
        elif self._idle:  # to ask that takes a tenth of the time of telling nobody
            self._idle = False
            self._work.notify()

    def _answered(self, item: Item, caller: Caller) -> tuple[Item, int]:
        if caller.rank != UNRANKED:
            return item, caller.rank
        # The thread is stuck, in a name server say: nobody waits for it.
        self._refund(item, item.leave(caller))  # or is it there just now?
        self._store.lose("TimeoutError")
        stand_in = Item(item.request)
        stand_in.outcome = Unreachable(self._store.cause, certain=False)
        return stand_in, 0

    # --- the thread ---

    def _run(self) -> None:
        lines = _Lines(self._store)
        try:
            while (work := self._next_work()) is not None:
                work(lines)
            if self._closing and self._store.reachable and lines.is_open:
                ends = time.monotonic() + self._store.budget  # for all of them: a cluster has many shards
                for call in self._store.farewells():
                    left = ends - time.monotonic()
                    if left <= 0 or isinstance(self._try(lines, replace(call, seconds=left)), Exception):
                        break  # the next one would wait just as long
        finally:
            lines.close()
            with self._work:
                if self._thread is threading.current_thread():  # a bug ended it: the next caller starts another one
                    self._thread = None

    def _next_work(self) -> Callable[[_Lines], None] | None:
        """Wait for something to do; None when the thread is to end, which it then has, for all others."""
        with self._work:
            idle_since = time.monotonic()
            while True:
                now = time.monotonic()
                for number, pending in self._pending.items():
                    if pending.batches and self._may_leave(pending.batches[0]):
                        batch = pending.batches.popleft()
                        self._pending[number] = self._pending.pop(number)  # the next shard comes next
                        return partial(self._trip, number, batch)
                if self._flights:
                    return self._receive
                if self._steps is not None and self._closing:  # it began when `close` was looking already
                    steps, self._steps = self._steps, None
                    return partial(self._leave_off, steps)
                if self._steps is not None and now >= self._next_step_at:
                    return self._step
                if self._closing or (self._steps is None and now - idle_since >= IDLE):
                    self._thread = None
                    return None
                left = IDLE - (now - idle_since) if self._steps is None else self._next_step_at - now
                self._idle = True
                self._work.wait(max(0.0, left))
                self._idle = False

    def _may_leave(self, batch: Batch) -> bool:
        """Tell whether a batch need not wait for the trips under way."""
        if not self._flights:
            return True
        return len(self._flights) == 1 and len(batch) >= WORTH_A_TRIP and not self._stale

    def _trip(self, number: int, batch: Batch, lines: _Lines) -> None:
        """Begin a trip."""
        store = self._store
        if batch.deadline <= time.monotonic():  # this process was held up: that says nothing about the store
            batch.fail("late", certain=True)
            return
        permit = store.permit()
        if permit is None:
            batch.fail(store.cause, certain=True)
            self.recover()
            return
        flight = _Flight(number, batch, permit)
        self._flights.append(flight)
        try:
            keys, arguments, flight.refreshing = store.encode(number, batch)
            flight.began = time.monotonic()
            reply = lines.send(flight, keys, arguments, batch.deadline - flight.began)
        except BaseException as error:  # noqa: BLE001 - the thread outlives everything, and the callers get an answer
            self._crash(lines, flight, error, certain=lines.is_certain(error))
        else:
            if reply is not None:
                self._land(lines, flight, reply)

    def _receive(self, lines: _Lines) -> None:
        """Take in what the next of the trips under way brings."""
        oldest = self._flights[0]
        try:
            flight, answer = lines.receive(oldest.batch.deadline - time.monotonic())
        except BaseException as error:  # noqa: BLE001 - as above
            self._crash(lines, oldest, error, certain=False)
            return
        if isinstance(answer, bytes):
            self._land(lines, flight, answer)
        elif lines.is_read_only(answer) and not flight.batch.resent:
            # A failover: whoever is asked now may know the new primary. Nothing ran, so it may be sent again.
            flight.batch.resent = self._stale = True
            flight.permit.drop()
            self._flights.remove(flight)
            with self._work:
                self._pending[flight.number].batches.appendleft(flight.batch)
        else:
            self._crash(lines, flight, answer, certain=lines.is_certain(answer))
        if self._stale and not self._flights:
            self._stale = False
            lines.close()

    def _land(self, lines: _Lines, flight: _Flight, reply: bytes) -> None:
        """Take in the reply of one trip."""
        try:
            ago = time.monotonic() - flight.began
            self._store.settle(
                flight.permit, reply, flight.batch, shard=flight.number, ago=ago, refreshing=flight.refreshing
            )
        except BaseException as error:  # noqa: BLE001 - a reply that makes no sense, of a script that is not ours
            self._crash(lines, flight, error, certain=False)
            return
        self._flights.remove(flight)
        self._give_back(flight)

    def _crash(self, lines: _Lines, flight: _Flight, error: BaseException, *, certain: bool) -> None:
        """Let a trip fail, and with it all others on its connection."""
        others, self._flights = self._flights, []
        lines.close()  # or the next trip would take in what was meant for these
        self._store.fail(flight.permit, error, flight.batch, certain=certain)
        for other in others:
            if other is not flight:
                self._store.fail(other.permit, error, other.batch, certain=False)
        self._fail_pending()
        for one in others:
            self._give_back(one)
        self.recover()

    def _give_back(self, flight: _Flight) -> None:
        for item in flight.batch.items:
            if item.left:
                self._refund(item, item.excess())

    def _fail_pending(self) -> None:
        with self._work:
            pending, self._pending = self._pending, {}
        for one in pending.values():
            one.fail(self._store.cause)

    # --- recovery ---

    def recover(self) -> None:
        """Look after the store, if it is out of reach and nobody does."""
        with self._work:
            if self._steps is None:
                steps = self._store.claim_recovery()
                if steps is not None:
                    self._steps, self._answer, self._next_step_at = steps, None, 0.0
                    self._wake_thread()

    def _step(self, lines: _Lines) -> None:
        """Do what the steps say: sleep, or make a call and report what came of it."""
        steps = self._steps
        if steps is None:  # closed meanwhile
            return
        try:
            step = steps.throw(self._answer) if isinstance(self._answer, Exception) else steps.send(self._answer)
        except BaseException as error:
            steps.close()
            with self._work:
                self._steps = self._answer = None
            self._store.end_recovery(steps)
            if not isinstance(error, StopIteration):
                raise
            return
        if isinstance(step, float):
            self._answer, self._next_step_at = None, time.monotonic() + step
        else:
            self._answer, self._next_step_at = self._try(lines, step), 0.0

    def _leave_off(self, steps: Any, lines: _Lines) -> None:
        """Let somebody else look after the store: this thread ends."""
        del lines
        steps.close()
        self._store.end_recovery(steps)

    def _try(self, lines: _Lines, call: Call) -> bytes | Exception:
        line = self._probing = lines.line()
        try:
            return line.call(call.keys, call.arguments, call.seconds)
        except Exception as error:  # noqa: BLE001 - it is what the steps want to know
            return error
        finally:
            self._probing = None

    # --- the end ---

    def renew_locks(self) -> None:
        """Start afresh in a forked child: the thread is the parent's, and so are the callers."""
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._pending.clear()
        self._idle, self._flights, self._stale = False, [], False
        self._thread = self._steps = self._answer = self._probing = None

    @property
    def is_running(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None

    def close(self) -> None:
        """End the thread after the trips that callers wait for; blocks for as long as one trip takes."""
        with self._work:
            thread, steps = self._thread, self._steps
            self._steps, self._closing = None, True
            self._work.notify()
        if steps is not None:
            with suppress(ValueError):  # the thread is in the middle of it, and closes it itself
                steps.close()
            self._store.end_recovery(steps)
            probing = self._probing
            if probing is not None:  # nobody waits for it, and it may take longer than whoever closes wants to
                probing.interrupt()
        if thread is not None and thread is not threading.current_thread():
            thread.join(self._store.budget * 2 + PATIENCE)


class _Lines:
    """The lines of the thread: one to a server, or the client of a cluster."""

    def __init__(self, store: SharedStore) -> None:
        from . import cluster, lines  # noqa: PLC0415 - import redis-py, which takes longer than all of ours

        self._cluster = cluster
        self._lines = lines
        self._store = store
        self._line: SyncLine | SyncClusterLine | None = None

    def line(self) -> SyncLine | SyncClusterLine:
        if self._line is None:
            kind = self._cluster.SyncClusterLine if self._store.is_sharded else self._lines.SyncLine
            self._line = kind(self._store.target)
        return self._line

    def send(self, flight: _Flight, keys: list[str], arguments: list[str | int], seconds: float) -> bytes | None:
        """Begin a trip; a cluster, whose nodes send each other's calls on, ends it at once."""
        line = self.line()
        if isinstance(line, self._cluster.SyncClusterLine):
            return line.call(keys, arguments, seconds)
        line.send(flight, keys, arguments, seconds)
        return None

    def receive(self, seconds: float) -> tuple[_Flight, bytes | Exception]:
        """Give the next of the trips under way, and what it brought."""
        line = self.line()
        if isinstance(line, self._cluster.SyncClusterLine):
            raise TypeError("a bug: nothing is under way to a cluster")
        return line.receive(seconds)

    def is_certain(self, error: BaseException) -> bool:
        """Tell whether a trip that ended so did nothing. A cluster's line tells that by itself, for all its parts."""
        return not self.line().sent or (not self._store.is_sharded and self._lines.refused_to_run(error))

    def is_read_only(self, error: Exception) -> bool:
        """Tell whether a replica said that it may not write."""
        return self._lines.is_read_only(error)

    @property
    def is_open(self) -> bool:
        return self._line is not None

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
