"""Trips to Redis on an asyncio loop: whoever asks while a trip is under way goes with the next one, all in one call."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Final

from resilience.breaker import Permit

from .batch import WORTH_A_TRIP, Batch, Caller, Item, Pending, Request, Wake
from .cluster import AsyncClusterLine, AsyncNodes
from .lines import AsyncLine, Refused, refused_to_run
from .store import Call, SharedStore
from .target import check_for_asyncio

MAX_FLYING: Final = 4
"""Trips under way at once, on one connection, so that they keep their order. A third one starts only when the next
batch is full, or has waited a quarter of the budget: else every caller would start one of its own, and nothing would be
asked together. The second starts for less, see `WORTH_A_TRIP`."""


class _Shard:
    """The keys that one script call may touch: all of a server, or those of one hash tag of a cluster."""

    __slots__ = ("connecting", "departing", "flying", "late", "line", "number", "pending", "stale")

    def __init__(self, number: int, max_batch: int, line: AsyncLine | AsyncClusterLine) -> None:
        self.number = number
        self.line = line
        self.pending = Pending(max_batch)
        self.flying = 0
        self.departing = False
        """Whether a trip leaves as soon as everybody who is about to ask has asked."""
        self.connecting = False
        self.stale = False
        """Whether the line leads to a replica: it is closed when the trips under way on it have ended."""
        self.late: asyncio.TimerHandle | None = None


class _Flight:
    """One trip under way."""

    __slots__ = ("batch", "began", "overdue", "permit", "refreshing", "sent", "shard")

    def __init__(self, shard: _Shard, batch: Batch, permit: Permit) -> None:
        self.shard = shard
        self.batch = batch
        self.permit = permit
        self.refreshing = False
        self.sent = True
        """Whether a server may have run it, unless it said that it did not."""
        self.began = 0.0
        self.overdue: asyncio.TimerHandle | None = None


class AsyncioTrips:
    """Everything that one store does on one loop. Ends with the loop, or with `close`."""

    def __init__(self, store: SharedStore, loop: asyncio.AbstractEventLoop) -> None:
        check_for_asyncio(store.target)
        self._store = store
        self._loop = loop
        self._shards: dict[int, _Shard] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._flights: set[_Flight] = set()
        self._landed: asyncio.Future[None] | None = None  # for whoever waits for the last flight
        self._nodes = AsyncNodes(store.target) if store.target.kind == "cluster" else None
        self._end: AsyncGenerator[None, None] | None = None

    async def ask(self, request: Request) -> tuple[Item, int]:
        """Ask with the next trip; gives the item with its outcome, and the caller's place in it.

        Cancellation: what was granted meanwhile is given back.
        """
        future: asyncio.Future[Item] = self._loop.create_future()
        item, caller = self._join(request, future.set_result)
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
        store = self._store
        number = store.shard_of(request.key)
        shard = self._shards.get(number) or self._shard(number)
        joined = shard.pending.join(request, wake, self._loop.time, store.budget)
        if not shard.departing:
            self._start(shard)
        return joined

    def _shard(self, number: int) -> _Shard:
        shard = self._shards.get(number)
        if shard is None:
            shard = self._shards[number] = _Shard(number, self._store.max_batch, self._new_line())
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
        if shard.connecting:
            return
        if shard.stale:
            if not shard.flying:
                self._spawn(self._close_and_start(shard))
            return
        if shard.flying and not late and waiting == 1 and not self._is_worth_a_trip(shard):  # it may still grow
            if shard.late is None:
                shard.late = self._loop.call_later(self._store.budget / 4, self._start_late, shard)
            return
        shard.departing = True
        self._loop.call_soon(self._depart, shard)

    def _is_worth_a_trip(self, shard: _Shard) -> bool:
        return shard.flying == 1 and len(shard.pending.batches[0]) >= WORTH_A_TRIP

    def _start_late(self, shard: _Shard) -> None:
        shard.late = None
        self._start(shard, late=True)

    def _depart(self, shard: _Shard) -> None:
        """Make the next trip, or connect for it."""
        shard.departing = False
        if shard.late is not None:
            shard.late.cancel()
            shard.late = None
        if not shard.pending.batches or shard.stale:
            return
        permit = self._store.permit()
        if permit is None:
            shard.pending.fail(self._store.cause)
            self.recover()
            return
        line = shard.line
        if isinstance(line, AsyncLine) and not line.is_ready:
            shard.connecting = True
            task = self._spawn(self._connect(shard, line, permit, shard.pending.batches[0]))
            task.add_done_callback(partial(self._connect_ended, shard, permit))
            return
        batch = shard.pending.batches.popleft()
        if batch.deadline <= self._loop.time():  # this process was held up: that says nothing about the store
            permit.drop()
            batch.fail("late", certain=True)
            self._start(shard)
            return
        rest = batch.halve() if len(batch) >= WORTH_A_TRIP and not shard.flying else None
        self._send(_Flight(shard, batch, permit))
        if rest is not None and (permit := self._store.permit()) is not None:
            self._send(_Flight(shard, rest, permit))
        elif rest is not None:
            rest.fail(self._store.cause, certain=True)
        self._start(shard)

    @staticmethod
    def _connect_ended(shard: _Shard, permit: Permit, task: asyncio.Task[None]) -> None:
        if task.cancelled() and shard.connecting:  # it never began, and could not say so
            permit.drop()
            shard.connecting = False
            shard.pending.fail("cancelled")

    async def _connect(self, shard: _Shard, line: AsyncLine, permit: Permit, batch: Batch) -> None:
        """Connect the line, within the time that those have who wait for it."""
        try:
            if self._end is None:
                await self._watch_for_the_end()
            async with asyncio.timeout_at(batch.deadline):
                await line.connect(batch.deadline - self._loop.time())
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers get their answer from the fallback
            self._store.fail(permit, error, batch, certain=True)
            self._fail_pending()
            self.recover()
        except BaseException:
            permit.drop()
            shard.pending.fail("cancelled")
            raise
        else:
            permit.drop()  # it says nothing yet about how the store answers
        finally:
            shard.connecting = False
        self._start(shard)

    def _send(self, flight: _Flight) -> None:
        line, batch = flight.shard.line, flight.batch
        flight.shard.flying += 1
        self._flights.add(flight)
        try:
            keys, arguments, flight.refreshing = self._store.encode(flight.shard.number, batch)
            flight.began = time.monotonic()
            if isinstance(line, AsyncLine):
                flight.overdue = self._loop.call_at(batch.deadline, line.give_up)
                line.send(keys, arguments, partial(self._land, flight))
            else:
                self._spawn(self._fly(flight, line, keys, arguments))
        except Exception as error:  # noqa: BLE001 - a bug of ours must not leave callers without an answer
            self._land(flight, error)

    async def _fly(self, flight: _Flight, line: AsyncClusterLine, keys: list[str], arguments: list[str | int]) -> None:
        """Make a trip to a cluster, which takes a task: a node may send it on to another."""
        trip = line.begin()
        try:
            if self._end is None:
                await self._watch_for_the_end()
            deadline = flight.batch.deadline
            async with asyncio.timeout_at(deadline):
                answer: bytes | Exception = await trip.call(keys, arguments, deadline - self._loop.time())
        except Exception as error:  # noqa: BLE001 - as above
            flight.sent = trip.sent
            answer = error
        except BaseException:
            flight.permit.drop()
            flight.batch.fail("cancelled", certain=not trip.sent)
            self._gone(flight)
            raise
        self._land(flight, answer)

    def _land(self, flight: _Flight, answer: bytes | Exception) -> None:
        """Take in what a trip brought."""
        if flight not in self._flights:  # it was abandoned
            return
        shard, batch, line = flight.shard, flight.batch, flight.shard.line
        if flight.overdue is not None:
            flight.overdue.cancel()
        self._gone(flight)
        if isinstance(answer, Refused) and answer.code == "READONLY" and not batch.resent:
            # A failover: whoever is asked now may know the new primary. Nothing ran, so it may be sent again.
            batch.resent = True
            flight.permit.drop()
            shard.pending.batches.appendleft(batch)
            shard.stale = True
            self._start(shard)
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
            certain = not flight.sent or (isinstance(line, AsyncLine) and refused_to_run(answer))
            self._store.fail(flight.permit, answer, batch, certain=certain)
            self._fail_pending()
            self.recover()
            if isinstance(line, AsyncLine):
                self._spawn(line.close())
        else:
            for item in batch.items:
                if item.left:
                    self._refund(item, item.excess())
        self._start(shard)

    async def _close_and_start(self, shard: _Shard) -> None:
        if shard.stale:  # or another one was quicker
            await shard.line.close()
            shard.stale = False
        self._start(shard)

    def _gone(self, flight: _Flight) -> None:
        flight.shard.flying -= 1
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
        return AsyncLine(self._store.target) if self._nodes is None else AsyncClusterLine(self._nodes)

    # --- recovery ---

    def recover(self) -> None:
        """Look after the store, if it is out of reach and nobody does."""
        loop = self._loop
        steps = self._store.claim_recovery(lambda: not loop.is_running())
        if steps is not None:
            task = self._spawn(self._drive(steps))
            task.add_done_callback(lambda _: self._store.end_recovery(steps))  # also if it never began

    async def _drive(self, steps: Any) -> None:
        """Do what the steps say: sleep, or make a call and report what came of it."""
        line = self._shard(0).line
        answer: Any = None
        try:
            if self._end is None:
                await self._watch_for_the_end()
            while True:
                step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
                answer = await (asyncio.sleep(step) if isinstance(step, float) else self._try(line, step))
        except StopIteration:
            pass
        finally:
            steps.close()

    @staticmethod
    async def _try(line: AsyncLine | AsyncClusterLine, call: Call) -> bytes | Exception:
        try:
            async with asyncio.timeout(call.seconds):
                return await line.call(call.keys, call.arguments, call.seconds)
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
            self._abandon_flights()
            await self._close_lines()

    def _abandon_flights(self) -> None:
        """Let nobody wait for the trips under way: that this loop ends says nothing about the store."""
        for flight in list(self._flights):
            if flight.overdue is not None:
                flight.overdue.cancel()
            flight.permit.drop()
            self._gone(flight)
            flight.batch.fail("closed", certain=False)

    async def close(self) -> None:
        """Wait for the trips under way, which end within the budget, and close all lines."""
        self._store.stop_recovery()
        if self._flights:
            self._landed = self._loop.create_future()
            await asyncio.wait([self._landed], timeout=self._store.budget * 2)
            self._abandon_flights()
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._store.budget)
        for shard in self._shards.values():
            shard.connecting = False  # a task that never began cannot say so
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
        line = self._shard(0).line
        if self._store.reachable and (isinstance(line, AsyncClusterLine) or line.is_ready):
            ends = self._loop.time() + self._store.budget  # for all of them: a cluster has many shards
            for call in self._store.farewells():
                left = ends - self._loop.time()
                if left <= 0 or isinstance(await self._try(line, replace(call, seconds=left)), Exception):
                    break  # the next one would wait just as long

    async def _close_lines(self) -> None:
        for shard in self._shards.values():
            await shard.line.close()
        if self._nodes is not None:
            await self._nodes.close()
