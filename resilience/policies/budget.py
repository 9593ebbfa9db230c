"""How many calls may be extra: a share of those under way, for retries and hedges together."""

from __future__ import annotations

import threading
from contextvars import ContextVar, Token
from typing import TypeAlias

from resilience.checks import check_int, check_number
from resilience.forks import renew_locks_in_child

_Counted: TypeAlias = "tuple[RetryBudget, ...]"

_counted: ContextVar[_Counted] = ContextVar("resilience_counted", default=())
"""The budgets that count the call under way: a retry and a hedge inside of it that share one are one call."""


class RetryBudget:
    """Keeps retries and hedges to a share of the calls under way, so that they cannot multiply an outage.

    One budget may serve several policies, in any number of tasks and threads: so they share the load that they put on a
    dependency.

    Args:
        ratio: extra attempts per call under way, from 0 to 1. Default 0.2.
        floor: extra attempts that are always allowed, >= 0: services with few calls retry too. Default 3.

    Raises:
        ConfigurationError: a value out of its range.

    Source: the retry budgets of Envoy (a share of what is active, with a minimum).
    """

    def __init__(self, ratio: float = 0.2, floor: int = 3) -> None:
        check_number("ratio", ratio, least=0, most=1)
        check_int("floor", floor, least=0)
        self.ratio = ratio
        self.floor = floor
        self._calls = self._extra = 0
        # Guards both counts; held for arithmetic only. Reentrant: in the middle of it the garbage collector may close a
        # call, which gives back here. So nothing is called between reading a count and writing it.
        self._lock = threading.RLock()
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Begin anew in a forked child: the calls under way are the parent's."""
        self._lock = threading.RLock()
        self._calls = self._extra = 0

    @property
    def calls(self) -> int:
        """How many calls are under way."""
        return self._calls

    @property
    def extra(self) -> int:
        """How many retries and hedges are under way."""
        return self._extra

    def __repr__(self) -> str:
        return f"<RetryBudget {self._extra} of {self._most()} extra, {self._calls} calls under way>"

    def begin_call(self) -> None:
        """Note that a call began; `end_call` must follow."""
        with self._lock:
            self._calls += 1

    def end_call(self) -> None:
        """Note that a call is over."""
        with self._lock:
            if self._calls:  # a forked child may end what its parent began
                self._calls -= 1

    def take(self) -> bool:
        """Take the right to one extra attempt, if there is one; `give_back` must follow then."""
        with self._lock:
            if self._extra >= self._most():
                return False
            self._extra += 1
            return True

    def give_back(self) -> None:
        """Give the right back: the attempt is over, or was never made."""
        with self._lock:
            if self._extra:
                self._extra -= 1

    def _most(self) -> int:
        # 25 calls at 0.2 are 5.000000000000001 elsewhere: rounding must not cost one.
        return max(self.floor, int(self.ratio * self._calls + 1e-9))


def enter(budget: RetryBudget) -> Token[_Counted] | None:
    """Count a call, unless a policy around it has done so; `leave` must follow."""
    around = _counted.get()
    if any(one is budget for one in around):
        return None
    budget.begin_call()
    return _counted.set((*around, budget))


def leave(budget: RetryBudget, token: Token[_Counted] | None) -> None:
    """End what `enter` has begun."""
    if token is not None:
        budget.end_call()
        try:  # noqa: SIM105 - as in `calls.leave_call`
            _counted.reset(token)
        except ValueError:  # as there
            pass
