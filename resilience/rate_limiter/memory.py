"""The embedded store: one number for each key and quota, bounded for ever, and no amnesty at the bound."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final, TypeVar

from resilience.checks import check_int, shown
from resilience.clock import Clock
from resilience.errors import ConfigurationError
from resilience.forks import renew_locks_in_child

from .decision import SECONDS, Decision, Rule, Source, Standing, never, passed, refused, stand
from .fixed_window import FixedWindow
from .gcra import Gcra, longest_wait
from .quota import MICROSECONDS, Quota
from .sliding_log import SlidingLog
from .zones import offsets_of

T = TypeVar("T")

MAX_KEYS: Final = 10_000_000
MAX_LIMITERS: Final = 10_000
"""Names on one store: more of them are made from input, and should have been keys."""

_LOOKED_AT: Final = 2
"""Places that a new key looks at for one that is as new: garbage shrinks faster than it can be made."""
_CANDIDATES: Final = 8
"""Live keys of which the one that drains first is spilled."""
_ROWS: Final = 4
_ODD: Final = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)


def rules_of(quotas: Sequence[Quota]) -> tuple[Rule, ...]:
    """Prepare the arithmetic of each quota."""
    return tuple(_rule_of(quota) for quota in quotas)


def _rule_of(quota: Quota) -> Rule:
    if quota.algorithm == "fixed_window":
        return FixedWindow.of(quota, offsets_of(quota.timezone))
    return SlidingLog.of(quota) if quota.algorithm == "sliding_log" else Gcra.of(quota)


class MemoryStore:
    """Keeps the limits of this process in this process.

    Each key costs one number (a sliding log an entry per admitted call). A key that has drained is as new, and its
    place is taken by the next new key: no thread cleans up, and no call ever looks at all keys. When all places are
    taken by live keys, the one that drains first moves into a sketch of fixed size, which never forgets what a key
    owes. A flood of keys cannot buy anybody an amnesty; it may cost keys that share all their cells in the sketch
    some calls.

    One store may serve many limiters, threads and event loops.

    Args:
        max_keys: keys over all limiters on this store, 1 to 10,000,000. Default 10,000.
        spill: whether live keys that have to leave go into the sketch (4 rows of 2 x `max_keys` numbers of 8 bytes for
            each limiter that needs it, made when first needed); False forgets them.

    Raises:
        ConfigurationError: a value out of its range.
    """

    def __init__(self, max_keys: int = 10_000, *, spill: bool = True) -> None:
        check_int("max_keys", max_keys, most=MAX_KEYS)
        if not isinstance(spill, bool):
            raise ConfigurationError(f"spill must be True or False, got {shown(spill)}")
        self.max_keys = max_keys
        self.spill = spill
        # Guards all spaces and `_size`. Held around synchronous functions of ours only: no await, no sink, no function
        # of the user's runs under it. Reentrant, because the garbage collector may end a call inside it.
        self._lock = threading.RLock()
        self._spaces: dict[str, Space] = {}
        self._size = 0
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Start afresh in a forked child, keeping what was counted."""
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Count the keys that are held: the live ones, and drained ones whose place nobody has needed yet."""
        return self._size

    def __repr__(self) -> str:
        return f"<MemoryStore {self._size} of {self.max_keys} keys>"

    def space(self, name: str, quotas: Sequence[Quota], clock: Clock, wall_clock: Clock) -> Space:
        """Give the part of the store that belongs to the limiter `name`; limiters of one name share it.

        Raises:
            ConfigurationError: the name is in use with other quotas, or there are 10,000 names.
        """
        with self._lock:
            found = self._spaces.get(name)
            if found is None:
                if len(self._spaces) >= MAX_LIMITERS:
                    raise ConfigurationError(
                        f"limiters on one store must be at most {MAX_LIMITERS:,}: is a name made from input a key?"
                    )
                found = self._spaces[name] = Space(self, tuple(quotas), clock, wall_clock)
        if found.quotas != tuple(quotas):
            raise ConfigurationError(
                f"quotas of limiter {name!r} must be those it has on this store already, "
                f"{'; '.join(map(str, found.quotas))}, got {'; '.join(map(str, quotas))}"
            )
        return found


class _Sketch:
    """When keys that are no longer held will have drained: at the latest, and never too early.

    Each row has a cell for each key, which many keys share. A cell keeps the latest moment; the earliest over the rows
    is the answer. A moment that has passed is as good as an empty cell, so the sketch cleans itself.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._cells = array("d", bytes(8 * _ROWS * width))
        self._latest = -inf

    def write(self, key: object, at: int) -> None:
        self._latest = max(self._latest, at)
        for cell in self._places(key):
            if self._cells[cell] < at:
                self._cells[cell] = at

    def read(self, key: object, now: int) -> int:
        if self._latest <= now:
            return 0
        return int(min(self._cells[cell] for cell in self._places(key)))

    def _places(self, key: object) -> list[int]:
        mixed = hash(key) & 0xFFFFFFFFFFFFFFFF
        return [
            row * self._width + ((((mixed ^ (mixed >> 29)) * odd) & 0xFFFFFFFFFFFFFFFF) >> 20) % self._width
            for row, odd in enumerate(_ODD)
        ]


class Space:
    """The keys of one limiter: its ways to ask, to take and to give back.

    The state of a key is that of its rule, or a tuple of them under several quotas. Times are microseconds since the
    space was made, or of the wall for fixed windows.
    """

    def __init__(self, store: MemoryStore, quotas: tuple[Quota, ...], clock: Clock, wall_clock: Clock) -> None:
        self.quotas = quotas
        self.rules = rules_of(quotas)
        self.spilled = 0  # live keys that went into the sketch and were not told of yet
        self._store = store
        self.wall_offset = 0  # microseconds by which a shared store's wall clock is ahead of ours
        self._clock = clock
        self._wall_clock = wall_clock
        self._origin = clock()  # a clock that starts at 1.8e9 has no microseconds to lose
        aligned = tuple(isinstance(rule, FixedWindow) for rule in self.rules)
        self.aligned = aligned if True in aligned else ()
        """Which rules go by the wall clock; empty if none does."""
        self._single = self.rules[0] if len(self.rules) == 1 else None
        self._states: dict[str, Any] = {}
        self._ring: list[str] = []  # the same keys, for the hand that looks for drained ones
        self._hand = 0
        self._sketch: _Sketch | None = None
        self._blocks: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ring)

    # --- time ---

    def now(self) -> int:
        """Read the clock, in microseconds."""
        return int((self._clock() - self._origin) * MICROSECONDS)

    def wall(self) -> int:
        """Read the wall clock, in microseconds of the shared store's clock where there is one."""
        return int(self._wall_clock() * MICROSECONDS) + self.wall_offset

    def nows(self, now: int) -> list[int]:
        """Give the time that each rule goes by, at the moment `now`."""
        if not self.aligned:
            return [now] * len(self.rules)
        wall = self.wall()
        return [wall if aligned else now for aligned in self.aligned]

    # --- deciding ---

    def acquire(self, key: str, cost: int, source: Source = "memory") -> Decision:
        """Take `cost` units if every rule admits them; a refused call changes nothing, nor does a cost of 0."""
        rule = self._single
        if type(rule) is not Gcra or key in self._blocks:
            return self.at_once(key, cost, self.rules, source)
        # The common case, written out: one GCRA rule. `at_once` says the same for all rules.
        clock_now = int((self._clock() - self._origin) * 1e6)
        now = clock_now * rule.drain
        with self._store._lock:  # noqa: SLF001 - the store and its spaces are one machine
            state = self._states.get(key)
            if state is None:
                state = self._recall(key, clock_now)
                after = (state if state > now else now) + cost * rule.unit
                over = after - now - rule.capacity
                if over <= rule.slack and cost:
                    self._insert(key, after, clock_now)
            else:
                after = (state if state > now else now) + cost * rule.unit
                over = after - now - rule.capacity
                if over <= rule.slack:
                    self._states[key] = after
        quota, unit, drain = rule.quota, rule.unit, rule.drain
        if over <= rule.slack:
            remaining = (rule.slack - over) // unit
            reset_after = -((now - after) // drain) * SECONDS
            return _new(Decision, (True, quota.limit, remaining, None, reset_after, quota, source, True, False, cost))
        return self.at_once(key, cost, self.rules, source)

    def at_once(
        self, key: str, cost: int, rules: Sequence[Rule], source: Source, *, least: int | None = None
    ) -> Decision:
        """Take `cost` units by `rules`, or as many of them as there is room for if that is at least `least`."""
        now = self.now()
        nows = self.nows(now)
        with self._store._lock:  # noqa: SLF001 - as above
            states = self._load(key, now, nows)
            blocked = self._blocked(key, now)
            impossible = least is None and any(cost > rule.most for rule in rules)
            room = min(rule.room(state, at) for rule, state, at in zip(rules, states, nows, strict=True))
            taken = 0 if blocked or impossible else cost if room >= cost else 0
            if least is not None and not blocked:
                taken = min(cost, room)
            if taken:
                states = [
                    rule.charge(state, at, taken, at) for rule, state, at in zip(rules, states, nows, strict=True)
                ]
                self._save(key, states, now)
            asked = cost if least is None else least
            standings = stand(rules, states, nows, asked)
        if impossible:
            return never(rules, standings, source)
        if blocked or (taken < asked):
            return refused(standings, source, blocked=blocked)
        return passed(standings, taken, source)

    def peek(self, key: str, cost: int, rules: Sequence[Rule], source: Source) -> Decision:
        """Tell what `cost` units would get, and change nothing."""
        now = self.now()
        nows = self.nows(now)
        with self._store._lock:  # noqa: SLF001 - as above
            states = self._load(key, now, nows)
            blocked = self._blocked(key, now)
            standings = stand(rules, states, nows, cost)
        if any(cost > rule.most for rule in rules):
            return never(rules, standings, source)
        if blocked or any(one.wait for one in standings):
            return refused(standings, source, blocked=blocked)
        return passed(standings, 0, source)

    def reserve(
        self, key: str, cost: int, longest: int, rules: Sequence[Rule], source: Source
    ) -> tuple[int | None, Decision]:
        """Take `cost` units that pass within `longest` microseconds, and tell when; None and nothing if they do not."""
        now = self.now()
        nows = self.nows(now)
        with self._store._lock:  # noqa: SLF001 - as above
            states = self._load(key, now, nows)
            blocked = self._blocked(key, now)
            standings = stand(rules, states, nows, cost)
            if any(cost > rule.most for rule in rules):
                return None, never(rules, standings, source)
            wait = max(one.wait for one in standings)
            if blocked or wait > min(longest, *(longest_wait(rule.quota) for rule in rules)):
                return None, refused(standings, source, blocked=blocked)
            if cost:
                states = [
                    rule.charge(state, at, cost, at + wait)
                    for rule, state, at in zip(rules, states, nows, strict=True)
                ]
                self._save(key, states, now)
            return wait, passed(stand(rules, states, nows, cost), cost, source)

    def requeue(self, key: str, back: int, costs: Sequence[int], rules: Sequence[Rule]) -> list[int]:
        """Give `back` units and those of `costs` back, then reserve `costs` again in turn; tell the waits."""
        now = self.now()
        nows = self.nows(now)
        waits = []
        with self._store._lock:  # noqa: SLF001 - as above
            states = self._refunded(rules, self._load(key, now, nows), nows, back + sum(costs))
            for cost in costs:
                wait = max(rule.wait(state, at, cost) for rule, state, at in zip(rules, states, nows, strict=True))
                states = [
                    rule.charge(state, at, cost, at + wait)
                    for rule, state, at in zip(rules, states, nows, strict=True)
                ]
                waits.append(wait)
            self._save(key, states, now)
        return waits

    def refund(self, key: str, cost: int, rules: Sequence[Rule], source: Source) -> Decision:
        """Give `cost` units back."""
        now = self.now()
        nows = self.nows(now)
        with self._store._lock:  # noqa: SLF001 - as above
            if key in self._states or self._sketch is not None:
                self._save(key, self._refunded(rules, self._load(key, now, nows), nows, cost), now)
        return self.at_once(key, 0, rules, source)

    @staticmethod
    def _refunded(rules: Sequence[Rule], states: Sequence[Any], nows: Sequence[int], cost: int) -> list[Any]:
        return [rule.refund(state, at, cost) for rule, state, at in zip(rules, states, nows, strict=True)]

    def reset(self, key: str) -> None:
        """Make `key` as new, its block included."""
        now = self.now()
        with self._store._lock:  # noqa: SLF001 - as above
            self._blocks.pop(key, None)
            if key in self._states or self._sketch is not None:
                self._save(key, [rule.empty for rule in self.rules], now)

    def block(self, key: str, microseconds: int) -> None:
        """Refuse `key` for so long, whatever its limit has left; 0 ends a block."""
        if microseconds <= 0 and not self._blocks:
            return
        now = self.now()
        with self._store._lock:  # noqa: SLF001 - as above
            self._blocks.pop(key, None)
            if microseconds <= 0:
                return
            if len(self._blocks) >= self._store.max_keys:
                self._make_room_for_block(now)
            self._blocks[key] = now + microseconds

    def is_blocked(self, key: str) -> bool:
        """Tell whether somebody blocked `key`."""
        return self._blocked(key, self.now()) > 0

    def _make_room_for_block(self, now: int) -> None:
        for key in [key for key, until in self._blocks.items() if until <= now]:
            del self._blocks[key]
        if len(self._blocks) >= self._store.max_keys:  # all of them hold: the one that ends first ends now
            del self._blocks[min(self._blocks, key=self._blocks.__getitem__)]

    def _blocked(self, key: str, now: int) -> int:
        until = self._blocks.get(key) if self._blocks else None
        if until is None:
            return 0
        if until <= now:
            del self._blocks[key]
        return max(0, until - now)

    # --- what a shared store told ---

    def refusal(self, key: str, cost: int) -> Decision | None:
        """Give the refusal of `cost` that follows from what a shared store told of `key`; None if none does."""
        state = self._states.get(key)
        if key not in self._blocks:
            if state is None:
                return None
            rule = self._single
            if type(rule) is Gcra:  # the common case, decided without a lock: it is one read of one number
                if state + cost * rule.unit - self.now() * rule.drain <= rule.capacity + rule.slack:
                    return None
        now = self.now()
        nows = self.nows(now)
        with self._store._lock:  # noqa: SLF001 - as above
            states = self._load(key, now, nows)
            blocked = self._blocked(key, now)
            standings = stand(self.rules, states, nows, cost)
            refusing = any(
                one.wait and rule.refuses(state, cost)
                for one, rule, state in zip(standings, self.rules, states, strict=True)
            )
        return refused(standings, "blocked", blocked=blocked) if blocked or refusing else None

    def learn(self, key: str, states: Sequence[Any]) -> None:
        """Take over what a shared store said of `key`."""
        with self._store._lock:  # noqa: SLF001 - as above
            self._save(key, states, self.now())

    def standings(self, key: str, cost: int, now: int) -> list[Standing]:
        """Tell where the rules stand for a call of `cost`."""
        nows = self.nows(now)
        with self._store._lock:  # noqa: SLF001 - as above
            return stand(self.rules, self._load(key, now, nows), nows, cost)

    def clear(self) -> None:
        """Forget every key."""
        with self._store._lock:  # noqa: SLF001 - as above
            self._store._size -= len(self._ring)  # noqa: SLF001 - as above
            self._states.clear()
            self._ring.clear()
            self._blocks.clear()
            self._hand, self._sketch = 0, None

    def owe(self, key: str, cost: int, rules: Sequence[Rule]) -> None:
        """Take `cost` units unasked."""
        now = self.now()
        nows = self.nows(now)
        with self._store._lock:  # noqa: SLF001 - as above
            states = self._load(key, now, nows)
            charged = [rule.charge(state, at, cost, at) for rule, state, at in zip(rules, states, nows, strict=True)]
            self._save(key, charged, now)

    def keys(self) -> list[str]:
        """Give the keys that are held."""
        with self._store._lock:  # noqa: SLF001 - as above
            return list(self._ring)

    def levels(self, key: str) -> list[int]:
        """Give for each rule what `key` still owes."""
        now = self.now()
        nows = self.nows(now)
        with self._store._lock:  # noqa: SLF001 - as above
            states = self._load(key, now, nows)
            return [rule.level(state, at) for rule, state, at in zip(self.rules, states, nows, strict=True)]

    # --- keeping ---

    def _load(self, key: str, now: int, nows: Sequence[int]) -> Sequence[Any]:
        state = self._states.get(key, _ABSENT)
        if state is _ABSENT:
            states = self._recalled(key, now, nows)
        else:
            states = (state,) if self._single is not None else state
        return [rule.clamped(one, at) for rule, one, at in zip(self.rules, states, nows, strict=True)]

    def _save(self, key: str, states: Sequence[Any], now: int) -> None:
        state = states[0] if self._single is not None else tuple(states)
        if key in self._states:
            self._states[key] = state
        else:
            self._insert(key, state, now)

    def _insert(self, key: str, state: Any, now: int) -> None:
        """Keep a new key, in the place of a drained one if the hand meets one."""
        ring, store = self._ring, self._store
        for _ in range(min(_LOOKED_AT, len(ring))):
            if self._drains_in(ring[self._hand], now) <= 0:
                self._replace(key, state)
                return
            self._hand = (self._hand + 1) % len(ring)
        if store._size < store.max_keys:  # noqa: SLF001 - as above
            store._size += 1  # noqa: SLF001 - as above
            ring.append(key)
            self._states[key] = state
            return
        if ring:
            self._spill(now)
            self._replace(key, state)
        else:
            self._take_place(key, state, now)

    def _replace(self, key: str, state: Any) -> None:
        """Put a new key into the place that the hand points at."""
        del self._states[self._ring[self._hand]]
        self._ring[self._hand] = key
        self._states[key] = state
        self._hand = (self._hand + 1) % len(self._ring)

    def _spill(self, now: int) -> None:
        """Point the hand at the live key, of the next few, that drains first, and send it into the sketch."""
        ring = self._ring
        places = [(self._hand + step) % len(ring) for step in range(min(_CANDIDATES, len(ring)))]
        self._hand = min(places, key=lambda place: self._drains_in(ring[place], now))
        key = ring[self._hand]
        if self._drains_in(key, now) > 0:
            self._remember(key, now)

    def _remember(self, key: str, now: int) -> None:
        self.spilled += 1
        if not self._store.spill:
            return
        if self._sketch is None:
            self._sketch = _Sketch(2 * self._store.max_keys)
        nows = self.nows(now)
        for index, (rule, state, at) in enumerate(zip(self.rules, self._load(key, now, nows), nows, strict=True)):
            self._sketch.write((index, key), now + rule.drained(state, at))

    def _take_place(self, key: str, state: Any, now: int) -> None:
        """Take a place from the limiter on this store that has most keys: this one has none, and all are taken."""
        store = self._store
        largest = max(store._spaces.values(), key=len)  # noqa: SLF001 - as above
        largest._spill(largest.now())
        ring = largest._ring
        del largest._states[ring[largest._hand]]
        ring[largest._hand] = ring[-1]
        ring.pop()
        largest._hand = 0
        self._ring.append(key)
        self._states[key] = state

    def _recall(self, key: str, now: int) -> Any:
        """Give what a key that is not held owes, under one rule."""
        return self._recalled(key, now, self.nows(now))[0] if self._sketch is not None else self.rules[0].empty

    def _recalled(self, key: str, now: int, nows: Sequence[int]) -> list[Any]:
        sketch = self._sketch
        if sketch is None:
            return [rule.empty for rule in self.rules]
        ends = [max(0, sketch.read((index, key), now) - now) for index in range(len(self.rules))]
        return [
            rule.remembered(at + left, at) if left else rule.empty
            for rule, left, at in zip(self.rules, ends, nows, strict=True)
        ]

    def _drains_in(self, key: str, now: int) -> int:
        state = self._states[key]
        if self._single is not None:
            return self._single.drained(state, self.nows(now)[0])
        return max(
            rule.drained(one, at) for rule, one, at in zip(self.rules, state, self.nows(now), strict=True)
        )


_ABSENT: Final = object()
_new: Callable[..., Decision] = tuple.__new__
