"""What a limiter answers, and how the rules of a limiter come to one answer. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from .quota import MICROSECONDS, Quota

_new = tuple.__new__  # a third of the time of a named tuple's own

Source: TypeAlias = Literal["redis", "memory", "fallback", "blocked", "shadow"]


class Decision(NamedTuple):
    """Whether a call may pass, and what is known of the limit. True if it may.

    Under several quotas the one that matters is told: the one with the longest wait when the call is refused, the one
    with least left when it passes.

    Attributes:
        allowed: whether the call may pass.
        limit: the quota's units per period.
        remaining: units of cost that could pass right now, after this call.
        retry_after: seconds after which the call is not refused again while nobody else asks; None when it passed, when
            it can never pass, or when no time is known.
        reset_after: seconds until everything that was used has drained.
        quota: the quota that matters.
        source: who decided: "redis" (the shared store), "memory" (the embedded one), "fallback" (this process alone,
            because the shared store is out of reach), "blocked" (this process, from a denial of the shared store that
            still holds), "shadow" (refused, but only observed).
        certain: False if the call may have been charged in the shared store although the answer never came.
        never: the cost exceeds what can ever pass at once.
        granted: units that the caller may use: the cost, 0, or what `at_most` could get; in shadow mode all of them.
    """

    allowed: bool
    limit: int
    remaining: int
    retry_after: float | None
    reset_after: float
    quota: Quota
    source: Source
    certain: bool = True
    never: bool = False
    granted: int = 0

    def __bool__(self) -> bool:
        return self.allowed


class Rule(Protocol):
    """The arithmetic of one quota over a state that it alone understands; see `gcra.Gcra`.

    `now` and `at` are whole microseconds, `units` are units of cost.
    """

    @property
    def quota(self) -> Quota:
        """Give what it enforces."""

    @property
    def empty(self) -> Any:
        """Give the state of a key that was never seen."""

    @property
    def unit(self) -> int:
        """Give what a unit of cost weighs in a state."""

    @property
    def most(self) -> int:
        """Give the largest cost that can ever pass."""

    def shared(self, instances: int) -> Rule:
        """Give the share of one of so many instances."""

    def room(self, state: Any, now: int) -> int:
        """Give the units that can pass now."""

    def wait(self, state: Any, now: int, units: int) -> int:
        """Give the microseconds until `units` can pass."""

    def charge(self, state: Any, now: int, units: int, at: int) -> Any:
        """Add `units` that pass at the moment `at`."""

    def refund(self, state: Any, now: int, units: int) -> Any:
        """Take `units` back."""

    def withdraw(self, state: Any, now: int, units: int) -> Any:
        """Take back `units` that were reserved last and have not passed."""

    def drained(self, state: Any, now: int) -> int:
        """Give the microseconds until the key is as new."""

    def clamped(self, state: Any, now: int) -> Any:
        """Give `state`, unless it is nothing that this rule ever writes."""

    def remembered(self, at: int, now: int) -> Any:
        """Give the state of a key that is as new at the moment `at`."""

    def level(self, state: Any, now: int) -> int:
        """Give what is used and has not drained."""

    def spec(self, wall: int) -> str:
        """Give the rule in the words of the script."""

    def refuses(self, state: Any, cost: int) -> bool:
        """Tell whether `state`, told by a shared store, is enough to answer a refusal of `cost` here."""

    def told(self, reply: Iterator[int], now: int, cost: int) -> tuple[Any, Standing]:
        """Read what the script told."""


class Standing(NamedTuple):
    """Where one rule stands after a decision: units that could pass, microseconds to wait, microseconds to reset."""

    quota: Quota
    room: int
    wait: int
    drained: int


def stand(rules: Sequence[Rule], states: Sequence[Any], nows: Sequence[int], cost: int) -> list[Standing]:
    """Tell where each rule stands, for a call of `cost`."""
    return [
        Standing(rule.quota, rule.room(state, now), rule.wait(state, now, cost), rule.drained(state, now))
        for rule, state, now in zip(rules, states, nows, strict=True)
    ]


def passed(standings: Sequence[Standing], granted: int, source: Source) -> Decision:
    """Build the answer to a call that may pass."""
    one = min(standings, key=_room) if len(standings) > 1 else standings[0]
    reset_after = one.drained / MICROSECONDS
    quota = one.quota
    return _new(Decision, (True, quota.limit, one.room, None, reset_after, quota, source, True, False, granted))


def refused(standings: Sequence[Standing], source: Source, *, blocked: int = 0, late: int = 0) -> Decision:
    """Build the answer to a call that may not pass.

    Args:
        standings: where the rules stand.
        source: who decides.
        blocked: microseconds for which somebody blocked the key.
        late: microseconds by which the moment of the decision was rounded up.
    """
    one = max(standings, key=_wait) if len(standings) > 1 else standings[0]
    wait = max(one.wait + late, blocked)
    reset_after = one.drained / MICROSECONDS
    return Decision(False, one.quota.limit, one.room, wait / MICROSECONDS, reset_after, one.quota, source)


def never(rules: Sequence[Rule], standings: Sequence[Standing], source: Source) -> Decision:
    """Build the answer to a call whose cost can never pass."""
    smallest = min(range(len(rules)), key=lambda index: rules[index].most)
    one = standings[smallest]
    return Decision(
        False, one.quota.limit, one.room, None, one.drained / MICROSECONDS, one.quota, source, certain=True, never=True
    )


def _room(one: Standing) -> int:
    return one.room


def _wait(one: Standing) -> int:
    return one.wait
