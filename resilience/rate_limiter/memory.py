"""The embedded store: one number for each key and quota, bounded for ever, and no amnesty at the bound."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final, TypeAlias

from resilience.checks import check_int, shown
from resilience.clock import Clock
from resilience.errors import ConfigurationError
from resilience.events import KeysSpilled

from .decision import Decision, Rule, Source, Standing, never, passed, refused, stand
from .fixed_window import FixedWindow
from .gcra import Gcra, longest_wait
from .keys import Capacity, Keys
from .quota import MICROSECONDS, Quota
from .sliding_log import SlidingLog
from .telling import Teller
from .zones import offsets_of

MAX_KEYS: Final = 10_000_000
MAX_LIMITERS: Final = 10_000
"""Names on one store: more of them are made from input, and should have been keys."""


Terms: TypeAlias = tuple[Any, ...]
"""What `Space.acquire` needs of one GCRA rule, or nothing."""


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
        self._capacity = Capacity(max_keys, spill=spill)
        self._spaces: dict[str, Space] = {}

    def __len__(self) -> int:
        """Count the keys that are held: the live ones, and drained ones whose place nobody has needed yet."""
        return self._capacity.size

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self)} of {self._capacity.max_keys} keys>"

    def space(
        self, name: str, quotas: Sequence[Quota], clock: Clock, wall_clock: Clock, teller: Teller | None
    ) -> Space:
        """Give the part of the store that belongs to the limiter `name`; limiters of one name share it.

        Raises:
            ConfigurationError: the name is in use with other quotas, or there are 10,000 names.
        """
        with self._capacity:
            found = self._spaces.get(name)
            if found is None:
                if len(self._spaces) >= MAX_LIMITERS:
                    raise ConfigurationError(
                        f"limiters on one store must be at most {MAX_LIMITERS:,}: is a name made from input a key?"
                    )
                found = self._spaces[name] = Space(self._capacity, tuple(quotas), clock, wall_clock, teller)
        if found.quotas != tuple(quotas):
            raise ConfigurationError(
                f"quotas of limiter {name!r} must be those it has on this store already, "
                f"{'; '.join(map(str, found.quotas))}, got {'; '.join(map(str, quotas))}"
            )
        return found


class Space:
    """The keys of one limiter: its ways to ask, to take and to give back.

    The state of a key is that of its rule, or a tuple of them under several quotas. Times are microseconds since the
    space was made, or of the wall for fixed windows.
    """

    def __init__(
        self,
        capacity: Capacity,
        quotas: tuple[Quota, ...],
        clock: Clock,
        wall_clock: Clock,
        teller: Teller | None,
    ) -> None:
        self.quotas = quotas
        self.rules = rules_of(quotas)
        self._told_at = -inf
        self._teller = teller
        self._capacity = capacity
        self.wall_offset = 0  # microseconds by which a shared store's wall clock is ahead of ours
        self._clock = clock
        self._wall_clock = wall_clock
        self._origin = clock()  # a clock that starts at 1.8e9 has no microseconds to lose
        aligned = tuple(isinstance(rule, FixedWindow) for rule in self.rules)
        self.aligned = aligned if True in aligned else ()
        """Which rules go by the wall clock; empty if none does."""
        self._single = self.rules[0] if len(self.rules) == 1 else None
        self._gcra = self._single if isinstance(self._single, Gcra) else None
        self._keys = Keys(capacity, self.now, self._drains)
        self._states = self._keys.states
        self.blocks: OrderedDict[str, int] = OrderedDict()
        self._terms = self.terms(self.rules)

    def terms(self, rules: Sequence[Rule]) -> Terms:
        """Have at hand what most calls need, one look-up instead of ten: one GCRA rule. Empty for other rules."""
        rule = rules[0]
        if len(rules) > 1 or not isinstance(rule, Gcra):
            return ()
        sizes = rule.drain, rule.unit, rule.capacity, rule.capacity + rule.slack, rule.horizon
        return self._clock, self._origin, self._states, self._capacity, rule.quota, rule.quota.limit, *sizes

    # --- time ---

    def now(self) -> int:
        """Read the clock, to the nearest microsecond: neat times are not to lose one to the last bit of a float."""
        return int((self._clock() - self._origin) * MICROSECONDS + 0.5)

    def _read(self) -> tuple[int, list[int], int]:
        """Read the clocks: the moment, the time that each rule goes by, and by how much it was rounded up, 0 or 1.

        A refusal waits for that microsecond too: who waits exactly `retry_after` must not come too early by a rounding.
        """
        exact = (self._clock() - self._origin) * MICROSECONDS
        now = int(exact + 0.5)
        late = now - int(exact + 0.1)
        if not self.aligned:
            return now, [now] * len(self.rules), late
        exact = self._wall_clock() * MICROSECONDS
        wall = int(exact + 0.5)
        late = max(late, wall - int(exact + 0.1))
        wall += self.wall_offset
        return now, [wall if aligned else now for aligned in self.aligned], late

    def wall(self) -> int:
        """Read the wall clock, in microseconds of the shared store's clock where there is one."""
        return self.own_wall() + self.wall_offset

    def own_wall(self) -> int:
        """Read the wall clock of this process, in microseconds."""
        return int(self._wall_clock() * MICROSECONDS + 0.5)

    def nows(self, now: int) -> list[int]:
        """Give the time that each rule goes by, at the moment `now`."""
        if not self.aligned:
            return [now] * len(self.rules)
        wall = self.wall()
        return [wall if aligned else now for aligned in self.aligned]

    # --- deciding ---

    def acquire(
        self, key: str, cost: int, source: Source = "memory", rules: Sequence[Rule] = (), terms: Terms = ()
    ) -> Decision:
        """Take `cost` units if every rule admits them; a refused call changes nothing, nor does a cost of 0.

        Args:
            key: whose limit it is.
            cost: units.
            source: who decides.
            rules: by which rules; empty for the limiter's own.
            terms: what `terms` gave for these rules.
        """
        terms = terms or self._terms
        if not terms or cost == 0 or (self.blocks and key in self.blocks):
            return self.at_once(key, cost, rules or self.rules, source)
        # The common case, written out: one GCRA rule. `at_once` says the same for all rules.
        clock, origin, states, capacity, quota, limit, drain, unit, size, ceiling, horizon = terms
        micros = int((clock() - origin) * 1e6 + 0.5)
        now = micros * drain
        need = cost * unit
        level = -1
        # Without the lock, which takes as long as all the rest: from here to the state's change there is no call and no
        # jump back, so that no other thread comes in between, and `busy` says that none is in the middle of anything.
        if not capacity.busy:
            try:
                state = states[key]
            except KeyError:
                pass
            else:
                level = (state - now if state > now else 0) + need
                if level <= ceiling:
                    states[key] = now + level
        if level < 0:
            level = self._take(key, need, now, micros, ceiling)
        if level <= ceiling:
            reset_after = (level + drain - 1) // drain / MICROSECONDS
            return _new(
                Decision, (True, limit, (ceiling - level) // unit, None, reset_after, quota, source, True, False, cost)
            )
        before = level - need
        if before > horizon or need > size:
            return self.at_once(key, cost, rules or self.rules, source)
        remaining = (ceiling - before) // unit if before < ceiling else 0
        retry_after = (level - size + drain - 1) // drain / MICROSECONDS
        reset_after = (before + drain - 1) // drain / MICROSECONDS
        return _new(Decision, (False, limit, remaining, retry_after, reset_after, quota, source, True, False, 0))

    def _take(self, key: str, need: int, now: int, micros: int, ceiling: int) -> int:
        """Do the same for a key that is not held, or beside other threads; gives the level with `need` added."""
        with self._capacity:
            state = self._states.get(key)
            new = state is None
            if state is None:
                state = self._recalled(0, key, micros, micros)
            level: int = max(0, state - now) + need
            if level <= ceiling:
                if new:
                    self._keys.insert(key, now + level, micros)
                else:
                    self._states[key] = now + level
        if self._keys.spilled:
            self.tell_spilled()
        return level

    def tell_spilled(self) -> None:
        """Tell how many live keys had to leave since this was last told, once a second at the most."""
        now = self._clock()
        if self._teller is None or not KeysSpilled.sinks or now - self._told_at < 1.0:
            return
        with self._capacity:
            count, self._keys.spilled, self._told_at = self._keys.spilled, 0, now
        if count:
            self._teller.tell(KeysSpilled, count=count)

    def at_once(
        self, key: str, cost: int, rules: Sequence[Rule], source: Source, *, least: int | None = None
    ) -> Decision:
        """Take `cost` units by `rules`, or as many of them as there is room for if that is at least `least`."""
        if len(rules) == 1 and least is None:
            return self._at_once(key, cost, rules[0], source)
        now, nows, late = self._read()
        with self._capacity:
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
        if self._keys.spilled:
            self.tell_spilled()
        if impossible:
            return never(rules, standings, source)
        if blocked or (taken < asked):
            return refused(standings, source, blocked=blocked, late=late)
        return passed(standings, taken, source)

    def _at_once(self, key: str, cost: int, rule: Rule, source: Source) -> Decision:
        """Do the same for one rule, and without the lists that several need: in half the time."""
        now, (at,), late = self._read()
        with self._capacity:
            (state,) = self._load(key, now, [at])
            blocked = self._blocked(key, now)
            impossible = cost > rule.most
            allowed = not blocked and not impossible and rule.room(state, at) >= cost
            if allowed and cost:
                state = rule.charge(state, at, cost, at)
                self._keys.put(key, state, now)
            wait = 0 if allowed else rule.wait(state, at, cost)
            standing = [Standing(rule.quota, rule.room(state, at), wait, rule.drained(state, at))]
        if self._keys.spilled:
            self.tell_spilled()
        if allowed:
            return passed(standing, cost, source)
        return never([rule], standing, source) if impossible else refused(standing, source, blocked=blocked, late=late)

    def peek(self, key: str, cost: int, rules: Sequence[Rule], source: Source) -> Decision:
        """Tell what `cost` units would get, and change nothing."""
        now, nows, late = self._read()
        with self._capacity:
            states = self._load(key, now, nows)
            blocked = self._blocked(key, now)
            standings = stand(rules, states, nows, cost)
        if any(cost > rule.most for rule in rules):
            return never(rules, standings, source)
        if blocked or (cost and any(one.wait for one in standings)):
            return refused(standings, source, blocked=blocked, late=late)
        return passed(standings, 0, source)

    def reserve(
        self, key: str, cost: int, longest: int, rules: Sequence[Rule], source: Source
    ) -> tuple[int | None, Decision]:
        """Take `cost` units that pass within `longest` microseconds, and tell when; None and nothing if they do not."""
        now, nows, late = self._read()
        with self._capacity:
            states = self._load(key, now, nows)
            blocked = self._blocked(key, now)
            standings = stand(rules, states, nows, cost)
            if any(cost > rule.most for rule in rules):
                return None, never(rules, standings, source)
            wait = max(one.wait for one in standings)
            if blocked or wait > min(longest, *(longest_wait(rule.quota) for rule in rules)):
                return None, refused(standings, source, blocked=blocked, late=late)
            if cost:
                states = [
                    rule.charge(state, at, cost, at + wait) for rule, state, at in zip(rules, states, nows, strict=True)
                ]
                self._save(key, states, now)
            return wait, passed(stand(rules, states, nows, cost), cost, source)

    def requeue(self, key: str, back: int, costs: Sequence[int], rules: Sequence[Rule]) -> list[int]:
        """Give `back` units and those of `costs` back, then reserve `costs` again in turn; tell the waits."""
        now = self.now()
        nows = self.nows(now)
        waits = []
        with self._capacity:
            states: list[Any] = [
                rule.withdraw(state, at, back + sum(costs))
                for rule, state, at in zip(rules, self._load(key, now, nows), nows, strict=True)
            ]
            for cost in costs:
                wait = max(rule.wait(state, at, cost) for rule, state, at in zip(rules, states, nows, strict=True))
                states = [
                    rule.charge(state, at, cost, at + wait) for rule, state, at in zip(rules, states, nows, strict=True)
                ]
                waits.append(wait)
            self._save(key, states, now)
        return waits

    def refund(self, key: str, cost: int, rules: Sequence[Rule], source: Source) -> Decision:
        """Give `cost` units back."""
        now = self.now()
        nows = self.nows(now)
        with self._capacity:
            if key in self._states or self._keys.recalls:
                self._save(key, self._refunded(rules, self._load(key, now, nows), nows, cost), now)
        return self.at_once(key, 0, rules, source)

    @staticmethod
    def _refunded(rules: Sequence[Rule], states: Sequence[Any], nows: Sequence[int], cost: int) -> list[Any]:
        return [rule.refund(state, at, cost) for rule, state, at in zip(rules, states, nows, strict=True)]

    def reset(self, key: str) -> None:
        """Make `key` as new, its block included."""
        now = self.now()
        with self._capacity:
            self.blocks.pop(key, None)
            if key in self._states or self._keys.recalls:
                self._save(key, [rule.empty for rule in self.rules], now)

    def block(self, key: str, microseconds: int) -> None:
        """Refuse `key` for so long, whatever its limit has left; 0 ends a block."""
        if microseconds <= 0 and not self.blocks:
            return
        now = self.now()
        with self._capacity:
            self.blocks.pop(key, None)
            if microseconds <= 0:
                return
            if len(self.blocks) >= self._capacity.max_keys:
                self.blocks.popitem(last=False)  # the oldest gives way
            self.blocks[key] = now + microseconds

    def blocked_for(self, key: str) -> int:
        """Give the microseconds for which `key` is still blocked; 0 if it is not."""
        now = self.now()
        with self._capacity:
            return self._blocked(key, now)

    def _blocked(self, key: str, now: int) -> int:
        until = self.blocks.get(key) if self.blocks else None
        if until is None:
            return 0
        if until <= now:
            del self.blocks[key]
        return max(0, until - now)

    # --- what a shared store told ---

    def refusal(self, key: str, cost: int) -> Decision | None:
        """Give the refusal of `cost` that follows from what a shared store told of `key`; None if none does."""
        if key not in self.blocks:
            state = self._states.get(key)
            if state is None or cost == 0:
                return None
            rule = self._gcra  # the common case, decided without a lock: it is one read of one number
            if rule is not None:
                now = int((self._clock() - self._origin) * MICROSECONDS + 0.5)
                if state + cost * rule.unit - now * rule.drain <= rule.capacity + rule.slack:
                    return None
        now, nows, late = self._read()
        with self._capacity:
            states = self._load(key, now, nows)
            blocked = self._blocked(key, now)
            known = all(rule.refuses(state, cost) for rule, state in zip(self.rules, states, strict=True))
            standings = stand(self.rules, states, nows, cost)
        # What is remembered of a log does not always tell how long this cost would have to wait.
        if not known or not (blocked or (cost and any(one.wait for one in standings))):
            return None
        if any(cost > rule.most for rule in self.rules):
            return never(self.rules, standings, "blocked")
        return refused(standings, "blocked", blocked=blocked, late=late)

    def learn(self, key: str, state: Any) -> None:
        """Take over what a shared store said of `key`: the state of its rule, or a tuple of them."""
        states = self._states
        if not self._capacity.busy and key in states:  # without the lock, as in `acquire`
            states[key] = state
            return
        now = self.now()
        gcra = self._gcra
        if gcra is not None and state <= now * gcra.drain and not self._keys.recalls:
            return  # all of it drained on the way here: nothing is to be remembered, and no place taken for it
        with self._capacity:
            self._keys.put(key, state, now)

    def standings(self, key: str, cost: int, now: int) -> list[Standing]:
        """Tell where the rules stand for a call of `cost`."""
        nows = self.nows(now)
        with self._capacity:
            return stand(self.rules, self._load(key, now, nows), nows, cost)

    def clear(self) -> None:
        """Forget every key."""
        with self._capacity:
            self._keys.clear()
            self.blocks.clear()

    def owe(self, key: str, cost: int, rules: Sequence[Rule]) -> None:
        """Take `cost` units unasked."""
        now = self.now()
        rule = rules[0]
        if self._single is not None and isinstance(rule, Gcra):  # the common case, written out
            stretched = now * rule.drain
            with self._capacity:
                state = self._states.get(key, 0)
                self._keys.put(key, (max(stretched, state)) + cost * rule.unit, now)
            return
        nows = self.nows(now)
        with self._capacity:
            states = self._load(key, now, nows)
            charged = [rule.charge(state, at, cost, at) for rule, state, at in zip(rules, states, nows, strict=True)]
            self._save(key, charged, now)

    def names(self) -> list[str]:
        """Give the keys that are held."""
        with self._capacity:
            return self._keys.names()

    def levels(self, key: str) -> list[int]:
        """Give for each rule what `key` still owes."""
        now = self.now()
        nows = self.nows(now)
        with self._capacity:
            states = self._load(key, now, nows)
            return [rule.level(state, at) for rule, state, at in zip(self.rules, states, nows, strict=True)]

    def take(self, key: str) -> list[int]:
        """Give for each rule what `key` still owes, and forget it."""
        with self._capacity:
            levels = self.levels(key)
            self.reset(key)
        return levels

    # --- keeping ---

    def _load(self, key: str, now: int, nows: Sequence[int]) -> list[Any]:
        state = self._states.get(key, _ABSENT)
        if state is _ABSENT:
            return [self._recalled(index, key, now, at) for index, at in enumerate(nows)]
        states: Sequence[Any] = (state,) if self._single is not None else state
        loaded = [rule.clamped(one, at) for rule, one, at in zip(self.rules, states, nows, strict=True)]
        if any(new is not old and new != old for new, old in zip(loaded, states, strict=True)):
            self._save(key, loaded, now)  # a clock stepped back: from here on, once, and not at each look again
        return loaded

    def _save(self, key: str, states: Sequence[Any], now: int) -> None:
        self._keys.put(key, states[0] if self._single is not None else tuple(states), now)

    def _recalled(self, index: int, key: str, now: int, at: int) -> Any:
        """Give what a key that is not held owes under one rule, whose time is `at`."""
        left = self._keys.recall(key, index, now)
        rule = self.rules[index]
        return rule.remembered(at + left, at) if left else rule.empty

    def _drains(self, state: Any, now: int) -> list[int]:
        if self._gcra is not None:  # the common case
            return [self._gcra.drained(state, now)]
        states = (state,) if self._single is not None else state
        return [rule.drained(one, at) for rule, one, at in zip(self.rules, states, self.nows(now), strict=True)]


_ABSENT: Final = object()
_new: Callable[..., Decision] = tuple.__new__
