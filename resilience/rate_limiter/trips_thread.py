"""Trips to Redis for trio and for sync code: one worker thread, one hop for each batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .batch import Batch, Caller, Item, Pending, Request, Unreachable, Wake
from .store import Call, SharedStore

if TYPE_CHECKING:
    from .cluster import SyncClusterLine
    from .lines import SyncLine

IDLE: Final = 10.0
"""Seconds without work after which the thread ends, and closes its line."""

PATIENCE: Final = 0.02
"""Seconds that a caller waits beyond its budget for the thread to say that the time is over."""


class _Bell:
    """Wakes the callers of one trio run, all that a batch answered with one hop.

    One of them watches the time for all.
    """

    __slots__ = ("_event", "_token", "_watched")

    def __init__(self, token: Any, event: Any) -> None:
        self._token = token
        self._event = event
        self._watched = False

    def ring(self) -> None:
        """Wake all callers, from any thread."""
        with suppress(RuntimeError):  # the run is over, and with it those who waited
            self._token.run_sync_soon(self._set)

    def _set(self) -> None:
        self._event.set()

    async def wait(self, trio: Any, seconds: float) -> None:
        """Wait until the bell rings, `seconds` at the most, or until somebody else has to watch the time."""
        event = self._event
        if self._watched:
            await event.wait()
            return
        self._watched = True
        try:
            with trio.move_on_after(seconds):
                await event.wait()
        finally:
            if not event.is_set():
                self._watched, self._event = False, trio.Event()
                event.set()


class ThreadTrips:
    """Everything that one store does without asyncio. The thread starts when it is needed, and ends when it is not."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        # Guards everything below; notified when there is something to do. Nothing of the user's runs under it.
        self._work = threading.Condition()
        self._pending: dict[int, Pending] = {}
        self._thread: threading.Thread | None = None
        self._closing = False
        self._steps: Any = None
        self._next_step_at = 0.0
        self._answer: Any = None
        self._probing: SyncLine | SyncClusterLine | None = None

    # --- asking ---

    async def ask(self, request: Request) -> tuple[Item, int]:
        """Ask with the next trip, from a task; gives the item with its outcome, and the caller's place there.

        Cancellation: what was granted meanwhile is given back.
        """
        import trio  # noqa: PLC0415 - only a program that runs on trio has it

        token = trio.lowlevel.current_trio_token()
        with self._work:
            item, caller = self._join(request, None)
            if item.outcome is not None:
                return item, caller.rank
            batch = self._pending[self._store.shard_of(request.key)].batches[-1]  # the one that it has just joined
            bell = batch.bells.get(token)
            if bell is None:
                bell = batch.bells[token] = _Bell(token, trio.Event())
        deadline = batch.deadline + PATIENCE
        try:
            while not item.done and (left := deadline - time.monotonic()) > 0:
                await bell.wait(trio, left)
        except BaseException:
            self._refund(item, item.leave(caller))
            raise
        return self._answered(item, caller)

    def ask_sync(self, request: Request) -> tuple[Item, int]:
        """Ask with the next trip, from a thread; gives the item with its outcome, and the caller's place there."""
        done = threading.Event()
        with self._work:
            item, caller = self._join(request, lambda _: done.set())
        try:
            done.wait(self._store.budget + PATIENCE)
        except BaseException:
            self._refund(item, item.leave(caller))
            raise
        return self._answered(item, caller)

    def tell(self, request: Request, then: Wake | None = None) -> None:
        """Ask, and do not wait."""
        with self._work:
            self._join(request, then)

    def _join(self, request: Request, wake: Wake | None) -> tuple[Item, Caller]:
        number = self._store.shard_of(request.key)
        pending = self._pending.get(number)
        if pending is None:
            pending = self._pending[number] = Pending(self._store.max_batch)
        joined = pending.join(request, wake, time.monotonic, self._store.budget)
        self._wake_thread()
        return joined

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
                return
            self._thread = thread
        else:
            self._work.notify()

    def _answered(self, item: Item, caller: Caller) -> tuple[Item, int]:
        if item.outcome is not None:
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
                    if pending.batches:
                        batch = pending.batches.popleft()
                        self._pending[number] = self._pending.pop(number)  # the next shard comes next
                        return partial(self._trip, number, batch)
                if self._steps is not None and self._closing:  # it began when `close` was looking already
                    steps, self._steps = self._steps, None
                    return partial(self._leave_off, steps)
                if self._steps is not None and now >= self._next_step_at:
                    return self._step
                if self._closing or (self._steps is None and now - idle_since >= IDLE):
                    self._thread = None
                    return None
                left = IDLE - (now - idle_since) if self._steps is None else self._next_step_at - now
                self._work.wait(max(0.0, left))

    def _trip(self, number: int, batch: Batch, lines: _Lines) -> None:
        store = self._store
        permit = store.permit()
        if permit is None:
            batch.fail(store.cause, certain=True)
        else:
            line = lines.of(number)
            try:
                keys, arguments, refreshing = store.encode(number, batch)
                began = time.monotonic()
                reply = line.call(keys, arguments, batch.deadline - began)
                ago = time.monotonic() - began
                store.settle(permit, reply, batch, shard=number, ago=ago, refreshing=refreshing)
            except BaseException as error:  # noqa: BLE001 - the thread outlives everything, and the callers get an answer
                store.fail(permit, error, batch, certain=not line.sent or lines.refused(error))
                self._fail_pending()
        for item in batch.items:
            self._refund(item, item.excess())
        if not store.reachable:
            self.recover()

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
            self._store.end_recovery()
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
        self._store.end_recovery()

    def _try(self, lines: _Lines, call: Call) -> bytes | Exception:
        line = self._probing = lines.of(call.shard)
        try:
            return line.call(call.keys, call.arguments, call.seconds)
        except Exception as error:  # noqa: BLE001 - it is what the steps want to know
            return error
        finally:
            self._probing = None

    # --- the end ---

    def renew_locks(self) -> None:
        """Start afresh in a forked child: the thread is the parent's, and so are the callers."""
        self._work = threading.Condition()
        self._pending.clear()
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
            self._store.end_recovery()
            probing = self._probing
            if probing is not None:  # nobody waits for it, and it may take longer than whoever closes wants to
                probing.interrupt()
        if thread is not None and thread is not threading.current_thread():
            thread.join(self._store.budget * 2 + PATIENCE)


class _Lines:
    """The lines of the thread: one to a server, or the client of a cluster."""

    def __init__(self, store: SharedStore) -> None:
        from . import cluster, lines  # noqa: PLC0415 - import redis-py, which takes longer than all of ours

        self._kind = cluster.SyncClusterLine if store.target.kind == "cluster" else lines.SyncLine
        self._refused_to_run = lines.refused_to_run
        self._store = store
        self._line: SyncLine | SyncClusterLine | None = None

    def of(self, number: int) -> SyncLine | SyncClusterLine:
        del number  # a cluster's client finds the node itself
        if self._line is None:
            self._line = self._kind(self._store.target)
        return self._line

    def refused(self, error: BaseException) -> bool:
        """Tell whether the server said that it did nothing. A cluster's line tells that by itself, for all parts."""
        return self._store.target.kind != "cluster" and self._refused_to_run(error)

    @property
    def is_open(self) -> bool:
        return self._line is not None

    def close(self) -> None:
        if self._line is not None:
            self._line.close()


def current_run_sync_soon() -> Callable[..., object]:
    """Give the function by which any thread has something done in the trio run of this task."""
    import trio  # noqa: PLC0415 - as above

    run_sync_soon: Callable[..., object] = trio.lowlevel.current_trio_token().run_sync_soon
    return run_sync_soon
