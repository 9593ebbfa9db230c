"""Trips to Redis on an asyncio loop: whoever asks while a trip is under way goes with the next one, all in one call."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncGenerator, Coroutine
from functools import partial
from typing import Any, Final

from resilience.breaker import Permit

from .batch import Batch, Caller, Item, Pending, Request, Wake
from .lines import AsyncClusterLine, AsyncLine, Refused, make_async_line, refused_to_run
from .store import Call, SharedStore

MAX_FLYING: Final = 4
"""Trips under way at once. The second and further ones start only when the next batch is full, or has waited a quarter
of the budget: else every caller would start one of its own, and nothing would be asked together."""


class _Shard:
    """The keys that one script call may touch: all of a server, or those of one hash tag of a cluster."""

    __slots__ = ("departing", "flying", "idle", "late", "number", "pending")

    def __init__(self, number: int, max_batch: int) -> None:
        self.number = number
        self.pending = Pending(max_batch)
        self.flying = 0
        self.departing = False
        """Whether a trip leaves as soon as everybody who is about to ask has asked."""
        self.idle: list[AsyncLine | AsyncClusterLine] = []
        self.late: asyncio.TimerHandle | None = None


class _Flight:
    """One trip under way."""

    __slots__ = ("batch", "began", "line", "overdue", "permit", "refreshing", "shard")

    def __init__(self, shard: _Shard, line: AsyncLine | AsyncClusterLine, batch: Batch, permit: Permit) -> None:
        self.shard = shard
        self.line = line
        self.batch = batch
        self.permit = permit
        self.refreshing = False
        self.began = 0.0
        self.overdue: asyncio.TimerHandle | None = None


class AsyncioTrips:
    """Everything that one store does on one loop. Ends with the loop, or with `close`."""

    def __init__(self, store: SharedStore, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop
        self._shards: dict[int, _Shard] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._flights: set[_Flight] = set()
        self._landed: asyncio.Future[None] | None = None  # for whoever waits for the last flight
        self._cluster_line: AsyncClusterLine | None = None
        self._end: AsyncGenerator[None, None] | None = None

    async def ask(self, request: Request) -> tuple[Item, int]:
        """Ask with the next trip; gives the item with its outcome, and the caller's place in it.

        Cancellation: what was granted meanwhile is given back.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        item, caller = self._join(request, partial(_resolve, future))
        try:
            await future
        except BaseException:
            self._refund(item, item.leave(caller))
            raise
        return item, caller.rank

    def tell(self, request: Request, then: Wake | None = None) -> None:
        """Ask, and do not wait."""
        self._join(request, then)

    def _join(self, request: Request, wake: Wake | None) -> tuple[Item, Caller]:
        shard = self._shard(self._store.shard_of(request.key))
        deadline = self._loop.time() + self._store.budget
        item, caller, _ = shard.pending.join(request, wake, deadline)
        if not shard.departing:
            self._start(shard)
        return item, caller

    def _shard(self, number: int) -> _Shard:
        shard = self._shards.get(number)
        if shard is None:
            shard = self._shards[number] = _Shard(number, self._store.max_batch)
        return shard

    def _refund(self, item: Item, units: int) -> None:
        if units:
            self.tell(Request(item.request.limiter, "refund", item.request.key, units))

    # --- trips ---

    def _start(self, shard: _Shard, *, late: bool = False) -> None:
        """Let the next trip leave, if there is one and it need not wait for the one under way."""
        waiting = len(shard.pending.batches)
        if not waiting or shard.flying >= MAX_FLYING:
            return
        if shard.flying and not late and waiting == 1:  # it may still grow
            if shard.late is None:
                shard.late = self._loop.call_later(self._store.budget / 4, self._start_late, shard)
            return
        shard.departing = True
        self._loop.call_soon(self._depart, shard)

    def _start_late(self, shard: _Shard) -> None:
        shard.late = None
        self._start(shard, late=True)

    def _depart(self, shard: _Shard) -> None:
        """Make the next trip: at once on a line that is ready, else when one is."""
        shard.departing = False
        if shard.late is not None:
            shard.late.cancel()
            shard.late = None
        if not shard.pending.batches:
            return
        batch = shard.pending.batches.popleft()
        permit = self._store.permit()
        if permit is None:
            batch.fail(self._store.cause, certain=True)
            self._recover()
            return
        line = shard.idle.pop() if shard.idle else self._new_line()
        flight = _Flight(shard, line, batch, permit)
        shard.flying += 1
        self._flights.add(flight)
        if isinstance(line, AsyncLine) and line.is_ready:
            self._send(flight, line)
        else:
            self._spawn(self._fly(flight))
        self._start(shard)

    def _send(self, flight: _Flight, line: AsyncLine) -> None:
        try:
            keys, arguments, flight.refreshing = self._store.encode(flight.shard.number, flight.batch)
            flight.began = time.monotonic()
            flight.overdue = self._loop.call_at(flight.batch.deadline, line.give_up)
            line.send(keys, arguments, partial(self._land, flight))
        except Exception as error:  # noqa: BLE001 - a bug of ours must not leave callers without an answer
            self._land(flight, error)

    async def _fly(self, flight: _Flight) -> None:
        """Make a trip that cannot leave at once: its line must connect first, or is a cluster's."""
        line = flight.line
        try:
            if self._end is None:
                await self._watch_for_the_end()
            async with asyncio.timeout_at(flight.batch.deadline):
                if isinstance(line, AsyncLine):
                    await line.connect()
                else:
                    keys, arguments, flight.refreshing = self._store.encode(flight.shard.number, flight.batch)
                    flight.began = time.monotonic()
                    self._land(flight, await line.call(keys, arguments))
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers get their answer from the fallback
            self._land(flight, error)
        except BaseException:
            flight.permit.drop()
            flight.batch.fail("cancelled", certain=not line.sent)
            self._gone(flight)
            raise
        else:
            if isinstance(line, AsyncLine):
                self._send(flight, line)

    def _land(self, flight: _Flight, answer: bytes | Exception) -> None:
        """Take in what a trip brought."""
        shard, batch, line = flight.shard, flight.batch, flight.line
        if flight.overdue is not None:
            flight.overdue.cancel()
            flight.overdue = None
        if isinstance(answer, Refused) and answer.code == "READONLY" and not batch.resent:
            # A failover: whoever is asked now may know the new primary. Nothing ran, so it may be sent again.
            batch.resent = True
            self._spawn(self._fly(flight))
            return
        if isinstance(answer, bytes):
            try:
                ago = time.monotonic() - flight.began
                self._store.settle(
                    flight.permit, answer, batch, shard=shard.number, ago=ago, refreshing=flight.refreshing
                )
            except Exception as error:  # noqa: BLE001 - a reply that makes no sense, of a script that is not ours
                answer = error
        if isinstance(answer, Exception):
            certain = not line.sent or refused_to_run(answer)
            self._store.fail(flight.permit, answer, batch, certain=certain)
            self._fail_pending()
            self._recover()
            if isinstance(line, AsyncLine):
                self._spawn(line.close())
        else:
            for item in batch.items:
                self._refund(item, item.excess())
        self._gone(flight)
        self._start(shard)

    def _gone(self, flight: _Flight) -> None:
        flight.shard.flying -= 1
        flight.shard.idle.append(flight.line)
        self._flights.discard(flight)
        if not self._flights and self._landed is not None and not self._landed.done():
            self._landed.set_result(None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # In an empty context: nothing of whoever happened to ask first lives on in it.
        task = self._loop.create_task(work, context=contextvars.Context())
        self._tasks.add(task)  # the loop itself would not keep it alive
        task.add_done_callback(self._tasks.discard)
        return task

    def _fail_pending(self) -> None:
        """Let nobody wait for a store that is out of reach."""
        for shard in self._shards.values():
            shard.pending.fail(self._store.cause)

    def _new_line(self) -> AsyncLine | AsyncClusterLine:
        if self._cluster_line is not None:
            return self._cluster_line
        line = make_async_line(self._store.target)
        if isinstance(line, AsyncClusterLine):
            self._cluster_line = line
        return line

    # --- recovery ---

    def recover(self) -> None:
        """Look after the store, if it is out of reach and nobody does."""
        self._recover()

    def _recover(self) -> None:
        steps = self._store.claim_recovery()
        if steps is not None:
            task = self._spawn(self._drive(steps))
            task.add_done_callback(lambda _: self._store.end_recovery())  # also if it never began

    async def _drive(self, steps: Any) -> None:
        """Do what the steps say: sleep, or make a call and report what came of it."""
        line = self._new_line()
        answer: Any = None
        try:
            while True:
                step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
                answer = await (asyncio.sleep(step) if isinstance(step, float) else self._try(line, step))
        except StopIteration:
            pass
        finally:
            steps.close()
            self._shard(0).idle.append(line)

    @staticmethod
    async def _try(line: AsyncLine | AsyncClusterLine, call: Call) -> bytes | Exception:
        try:
            async with asyncio.timeout(call.seconds):
                return await line.call(call.keys, call.arguments)
        except Exception as error:  # noqa: BLE001 - it is what the steps want to know
            return error

    # --- the end ---

    async def _watch_for_the_end(self) -> None:
        """Be told when the loop ends: it closes async generators that have begun, and this one closes the lines."""
        self._end = self._until_the_end()
        await anext(self._end)

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self._close_lines()

    async def close(self) -> None:
        """Wait for the trips under way, which end within the budget, and close all lines."""
        self._store.stop_recovery()
        if self._flights:
            self._landed = self._loop.create_future()
            await asyncio.wait([self._landed], timeout=self._store.budget * 2)
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._store.budget)
        for shard in self._shards.values():
            shard.pending.fail("closed")
            if shard.late is not None:
                shard.late.cancel()
                shard.late = None
        await self._say_farewell()
        end, self._end = self._end, None
        if end is not None:
            await end.aclose()
        await self._close_lines()

    async def _say_farewell(self) -> None:
        """Let the other instances know that there is one less, if that takes no connecting and no waiting."""
        lines = self._shard(0).idle
        if self._store.reachable and lines and (isinstance(lines[-1], AsyncClusterLine) or lines[-1].is_ready):
            for call in self._store.farewells():
                await self._try(lines[-1], call)

    async def _close_lines(self) -> None:
        for shard in self._shards.values():
            while shard.idle:
                line = shard.idle.pop()
                if line is not self._cluster_line:
                    await line.close()
        shared, self._cluster_line = self._cluster_line, None
        if shared is not None:
            await shared.close()


def _resolve(future: asyncio.Future[None], _: Item) -> None:
    if not future.done():  # cancelled meanwhile
        future.set_result(None)
