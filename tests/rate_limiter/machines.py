"""The same questions to the arithmetic in Python and to the script on a server, at moments that the test chooses.

Moments are whole microseconds since `START`. A machine in memory sees them through its two clocks; the script sees them
because a few lines before it stand between it and the server: they answer `TIME`, and note times to live instead of
setting them, so that keys end at the moment that they should by that time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import redis

from resilience.rate_limiter import Decision, MemoryStore, Quota, RateLimiter, RedisStore
from resilience.rate_limiter.batch import Batch, Item, Request, Told
from resilience.rate_limiter.lines import script

SECOND = 1_000_000
START = 1_699_920_000 * SECOND
"""A midnight, in microseconds since the epoch."""

TIME, LIVES = "the-time", "the-lives"
ASKS_TIME = "local time = redis.call('TIME')"
BETWEEN = f"""
local server = redis
local function live(key, milliseconds)
  milliseconds = tonumber(milliseconds)
  assert(milliseconds >= 1 and milliseconds % 1 == 0, 'invalid expire time')
  server.call('HSET', '{LIVES}', key, string.format('%.0f', milliseconds))
end
local redis = {{pcall = server.pcall}}
function redis.call(command, key, value, px, milliseconds)
  if command == 'TIME' then return server.call('HMGET', '{TIME}', 'seconds', 'microseconds') end
  if command == 'PEXPIRE' then
    if server.call('EXISTS', key) == 1 then live(key, value) end
  elseif command == 'SET' then
    assert(px == 'PX' or px == nil)
    server.call('HSET', '{LIVES}', key, -1)
    if px then live(key, milliseconds) end
    return server.call('SET', key, value)
  elseif command == 'DEL' then
    server.call('HSET', '{LIVES}', key, -1)
    return server.call('DEL', key)
  elseif milliseconds ~= nil then
    return server.call(command, key, value, px, milliseconds)
  elseif px ~= nil then
    return server.call(command, key, value, px)
  elseif value ~= nil then
    return server.call(command, key, value)
  else
    return server.call(command, key)
  end
end
"""


class Answer(NamedTuple):
    """A decision in whole microseconds, which can be compared."""

    allowed: bool
    limit: int
    remaining: int
    retry_after: int | None
    reset_after: int
    never: bool
    granted: int


def answer_of(decision: Decision) -> Answer:
    retry_after = decision.retry_after
    return Answer(
        decision.allowed,
        decision.limit,
        decision.remaining,
        None if retry_after is None else round(retry_after * SECOND),
        round(decision.reset_after * SECOND),
        decision.never,
        decision.granted,
    )


class Machine:
    """A limiter at a moment that the test chooses."""

    limiter: RateLimiter

    def __init__(self, quotas: str | Quota | Iterable[Quota], *, start: int = START) -> None:
        self.start = start
        self.moment = 0
        self.use(quotas)

    def clock(self) -> float:
        return self.moment / SECOND

    def wall_clock(self) -> float:
        return (self.start + self.moment) / SECOND

    def use(self, quotas: str | Quota | Iterable[Quota]) -> None:
        raise NotImplementedError

    def acquire(self, key: str, cost: int) -> Answer:
        return answer_of(self.limiter.try_acquire_sync(key, cost))

    def most(self, key: str, cost: int) -> Answer:
        return answer_of(self.limiter.at_most_sync(key, cost))

    def peek(self, key: str, cost: int) -> Answer:
        return answer_of(self.limiter.peek_sync(key, cost))

    def refund(self, key: str, cost: int) -> Answer:
        return answer_of(self.limiter.refund_sync(key, cost))

    def reset(self, key: str) -> None:
        self.limiter.reset_sync(key)

    def block(self, key: str, seconds: float) -> None:
        self.limiter.block_sync(key, seconds)

    def reserve(self, key: str, cost: int, longest: int) -> tuple[int | None, Answer]:
        """Give the wait in microseconds, or None, and the decision."""
        raise NotImplementedError

    def requeue(self, key: str, back: int, costs: Sequence[int]) -> list[int]:
        """Give the new waits in microseconds."""
        raise NotImplementedError


class MemoryMachine(Machine):
    """The arithmetic in Python."""

    def __init__(
        self, quotas: str | Quota | Iterable[Quota], *, start: int = START, store: MemoryStore | None = None
    ) -> None:
        self.store = store or MemoryStore()
        super().__init__(quotas, start=start)

    def use(self, quotas: str | Quota | Iterable[Quota]) -> None:
        self.limiter = RateLimiter(
            quotas, name="machine", store=self.store, clock=self.clock, wall_clock=self.wall_clock
        )

    def reserve(self, key: str, cost: int, longest: int) -> tuple[int | None, Answer]:
        wait, decision = self.limiter._space.reserve(key, cost, longest, self.limiter._rules, "memory")
        return wait, answer_of(decision)

    def requeue(self, key: str, back: int, costs: Sequence[int]) -> list[int]:
        return self.limiter._space.requeue(key, back, costs, self.limiter._rules)


class ScriptMachine(Machine):
    """The script on a real server, asked through everything but the transport.

    Args:
        quotas: as for a limiter.
        client: of the server.
        start: the server's time at moment 0.
        remembers: whether the limiter keeps what it was told, and refuses by it without asking.
    """

    def __init__(
        self,
        quotas: str | Quota | Iterable[Quota],
        client: redis.Redis,
        *,
        start: int = START,
        remembers: bool = False,
    ) -> None:
        self.client = client
        self.remembers = remembers
        self.trips = 0
        self.store = RedisStore("redis://nowhere.invalid:1")  # it is never connected to
        source, _ = script()
        assert source.count(ASKS_TIME) == 1
        self._script = client.script_load(BETWEEN + source)
        self.lives: dict[str, int] = {}
        """Milliseconds that each key had to live when that was set; -1 is for ever."""
        self._ends: dict[str, int] = {}
        super().__init__(quotas, start=start)

    def use(self, quotas: str | Quota | Iterable[Quota]) -> None:
        self.limiter = RateLimiter(
            quotas, name="machine", store=self.store, hash_keys=False, clock=self.clock, wall_clock=self.wall_clock
        )
        self.remote = self.limiter._remote
        self.limiter._ask_sync = self.ask  # type: ignore[method-assign]

    @property
    def server_time(self) -> int:
        return self.start + self.moment

    def ask(self, operation: Any, key: str, cost: int, extra: str = "") -> tuple[Item, int]:
        """Make a trip for one caller."""
        batch = Batch(0.0)
        item, caller = batch.join(Request(self.remote, operation, key, cost, extra), None)
        self.send(batch)
        return item, caller.rank

    def send(self, batch: Batch, instance: str = "", instances_key: str | None = None) -> int:
        """Make a trip, settle the batch, and give the live instances."""
        if not self.remembers:
            self.remote.space.clear()
        keys, arguments = batch.encode()
        if instances_key is not None:
            keys.append(instances_key)
        words = map(int, self.evaluate(keys, [instance, *arguments]).split())
        server, instances = next(words), next(words)
        assert server == self.server_time
        batch.settle(words, server, 0)
        assert next(words, None) is None, "the reply says more than anybody reads"
        if not self.remembers:
            self.remote.space.clear()
        return instances

    def evaluate(self, keys: list[str], arguments: list[str | int]) -> bytes:
        """Run the script, with keys that have expired by now gone."""
        self.trips += 1
        seconds, microseconds = divmod(self.server_time, SECOND)
        gone = [name for name, end in self._ends.items() if end <= self.server_time]
        with self.client.pipeline(transaction=False) as pipeline:
            pipeline.hset(TIME, mapping={"seconds": str(seconds), "microseconds": str(microseconds)})
            pipeline.delete(LIVES, *gone)
            pipeline.evalsha(self._script, len(keys), *keys, *map(str, arguments))
            pipeline.hgetall(LIVES)
            for name in keys:
                pipeline.exists(name)
            _, _, reply, lives, *exist = pipeline.execute()
        for name in gone:
            self._ends.pop(name)
        for word, milliseconds in lives.items():
            self._live(word.decode(), int(milliseconds))
        for name, there in zip(keys, exist, strict=True):
            if not there:
                self._ends.pop(name, None)
                self.lives.pop(name, None)
            elif name not in self._ends:
                self.lives[name] = -1
        assert isinstance(reply, bytes)
        return reply

    def _live(self, name: str, milliseconds: int) -> None:
        self._ends.pop(name, None)
        self.lives[name] = milliseconds
        if milliseconds >= 0:
            self._ends[name] = self.server_time + milliseconds * 1_000

    def reserve(self, key: str, cost: int, longest: int) -> tuple[int | None, Answer]:
        longest = min(longest, self.limiter._longest)  # as the limiter does
        item, _ = self.ask("reserve", key, cost, str(longest))
        wait, decision = self.remote.reserved(item, longest)
        return wait, answer_of(decision)

    def requeue(self, key: str, back: int, costs: Sequence[int]) -> list[int]:
        item, _ = self.ask("requeue", key, back, " ".join(map(str, costs)))
        told = item.outcome
        assert isinstance(told, Told)
        return list(told.waits)

    # --- what the server holds ---

    def names(self, key: str) -> list[str]:
        """Give the names of `key` on the server: one for its numbers, one more for each log."""
        return self.remote.wire_keys(key)

    def text(self, key: str) -> str | None:
        """Give what the server holds of the numbers of `key`."""
        value = self.client.get(self.names(key)[0])
        assert value is None or isinstance(value, bytes)
        return None if value is None else value.decode()
