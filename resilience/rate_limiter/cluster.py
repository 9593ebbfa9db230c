"""Lines to a cluster: one call at a time, to whichever nodes it needs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from .lines import Arguments, AsyncLine, Refused, SyncLine, ask_async, ask_sync, refused_to_run
from .routes import Learn, Routes, Slots, Step, Steps
from .target import Address, Target, node_of

_SLOTS = ("CLUSTER", "SLOTS")


class AsyncNodes:
    """One line to each node that is needed, on one asyncio loop, and what is known of who has what."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.routes = Routes(target.addresses, target.remap)
        self.learning = asyncio.Lock()
        self._lines: dict[Address, AsyncLine] = {}

    async def connected(self, address: Address, seconds: float) -> AsyncLine:
        """Give the line to a node, connected; it takes any number of calls at once."""
        line = self._lines.get(address)
        if line is None:
            line = self._lines[address] = AsyncLine(node_of(self.target, address))
        if not line.is_ready:
            await line.connect(seconds)
        return line

    async def drop(self, address: Address) -> None:
        """Close the line to a node that is in trouble."""
        if address in self._lines:
            await self._lines[address].close()

    async def close(self, *, but: set[Address] | None = None) -> None:
        """Close the lines, or those to nodes that are none any more."""
        for address in [one for one in self._lines if but is None or one not in but]:
            line = self._lines[address]
            if but is None or line.is_idle:
                del self._lines[address]
                await line.close()


class AsyncClusterLine:
    """What finds the way of one call, on one asyncio loop. Whoever calls sets the time limit, by cancelling.

    Attributes:
        sent: whether a node may have run the last call, or a part of it.
    """

    def __init__(self, nodes: AsyncNodes) -> None:
        self.sent = False
        self._nodes = nodes

    def begin(self) -> AsyncClusterLine:
        """Give one for a call of its own, beside others."""
        return AsyncClusterLine(self._nodes)

    async def call(self, keys: list[str], arguments: Arguments, seconds: float) -> bytes:
        """Run the script where the keys are and give its reply; `seconds` are what the caller will wait."""
        self.sent = False
        left = _countdown(seconds)
        try:
            reply: bytes = await self._follow(self._nodes.routes.call(keys, arguments, left), left)
        except Refused:
            raise
        except BaseException:
            self._nodes.routes.suspect()
            raise
        return reply

    async def _follow(self, steps: Steps, left: Callable[[], float]) -> Any:
        answer: Any = None
        try:
            while True:
                step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
                try:
                    answer = await self._do(step, left)
                except Exception as error:  # noqa: BLE001 - the steps know what follows from it
                    answer = error
        except StopIteration as end:
            return end.value
        finally:
            steps.close()

    async def _do(self, step: Step, left: Callable[[], float]) -> Any:
        nodes = self._nodes
        if isinstance(step, float):
            return await asyncio.sleep(step)
        if isinstance(step, Slots):
            async with asyncio.timeout(step.seconds):
                return await ask_async(node_of(nodes.target, step.address), *_SLOTS)
        if isinstance(step, Learn):
            async with nodes.learning:
                if step.version == nodes.routes.version:  # else somebody else has meanwhile
                    await self._follow(nodes.routes.learn(left), left)
                    await nodes.close(but=nodes.routes.nodes)
            return None
        step.sent = False
        line = await nodes.connected(step.address, left())
        step.sent = True
        try:
            reply = await line.call(step.keys, step.arguments, left(), asking=step.asking)
        except BaseException as error:
            step.sent = not refused_to_run(error)
            self.sent = self.sent or step.sent
            if not isinstance(error, Refused):
                await nodes.drop(step.address)
            raise
        self.sent = True  # what comes may be the next part of the same call
        return reply

    async def close(self) -> None:
        """Do nothing: the lines are shared."""


class SyncClusterLine:
    """One call at a time, for the thread that serves trio and sync code.

    Attributes:
        sent: whether a node may have run the last call, or a part of it.
    """

    def __init__(self, target: Target) -> None:
        self.sent = False
        self._target = target
        self._routes = Routes(target.addresses, target.remap)
        self._lines: dict[Address, SyncLine] = {}

    def call(self, keys: list[str], arguments: Arguments, seconds: float) -> bytes:
        """Run the script where the keys are and give its reply, or raise when `seconds` are over."""
        self.sent = False
        left = _countdown(seconds)
        try:
            reply: bytes = self._follow(self._routes.call(keys, arguments, left), left)
        except Refused:
            raise
        except BaseException:
            self._routes.suspect()
            raise
        return reply

    def _follow(self, steps: Steps, left: Callable[[], float]) -> Any:
        answer: Any = None
        try:
            while True:
                step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
                try:
                    answer = self._do(step, left)
                except ResponseError as error:
                    answer = Refused.of(error)
                except Exception as error:  # noqa: BLE001 - the steps know what follows from it
                    answer = error
        except StopIteration as end:
            return end.value
        finally:
            steps.close()

    def _do(self, step: Step, left: Callable[[], float]) -> Any:
        if isinstance(step, float):
            return time.sleep(step)
        if isinstance(step, Slots):
            return ask_sync(node_of(self._target, step.address), step.seconds, *_SLOTS)
        if isinstance(step, Learn):
            self._follow(self._routes.learn(left), left)
            for address in self._lines.keys() - self._routes.nodes:
                self._lines.pop(address).close()
            return None
        line = self._lines.get(step.address)
        if line is None:
            line = self._lines[step.address] = SyncLine(node_of(self._target, step.address))
        try:
            reply = line.call(step.keys, step.arguments, left(), asking=step.asking)
        except BaseException as error:
            step.sent = line.sent and not refused_to_run(error)
            self.sent = self.sent or step.sent
            raise
        self.sent = True  # what comes may be the next part of the same call
        return reply

    def interrupt(self) -> None:
        """Let the call that another thread makes here fail now, if it waits for a node that it knows."""
        for line in list(self._lines.values()):
            line.interrupt()

    def close(self) -> None:
        """Close all connections."""
        while self._lines:
            self._lines.popitem()[1].close()


def _countdown(seconds: float) -> Callable[[], float]:
    """Give a function that tells how many of so many seconds are left."""
    ends = time.monotonic() + seconds
    return lambda: ends - time.monotonic()
