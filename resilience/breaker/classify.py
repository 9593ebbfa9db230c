"""What an exception says about the callee: one place for every way in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from enum import Enum
from typing import TypeAlias

from resilience.errors import RejectedError, type_name

from .config import CircuitBreakerConfig, ExceptionFilter


class Verdict(Enum):
    """What the end of a call says about the callee."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"
    """Nothing: it is as if the call had not been made."""
    CANCELLED = "cancelled"
    """Nothing if it was quick; that the callee is slow, if it was slow. Outer timeouts look like this."""


# An attribute of an Enum class is slow to look up on Python 3.11, and these are asked about with every call.
SUCCESS, FAILURE, NEUTRAL, CANCELLED = Verdict

PredicateFailure: TypeAlias = tuple[str, str]
"""The field of the configuration, and the name of the type that its function raised."""

Judge: TypeAlias = Callable[[BaseException], tuple[Verdict, PredicateFailure | None]]


def make_judge(config: CircuitBreakerConfig) -> Judge:
    """Give the function that judges exceptions as `config` says.

    A group is judged by its leaves: a failure if any leaf is one, else a success if any is, else neutral if any is;
    cancelled only if nothing but cancellations is in it. Anyio's task groups raise such groups as a matter of routine.

    A function of the user that raises counts the call as failed: to guess that all is well would hide an outage.
    """
    ignored = _matcher("ignore", config.ignore)
    failed = _matcher("failure_on", config.failure_on)
    counted_rejections = _named_rejections(config.failure_on)

    def judge_leaf(error: BaseException) -> Verdict:
        if is_cancellation(error):
            return CANCELLED
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            return NEUTRAL
        if isinstance(error, RejectedError) and not isinstance(error, counted_rejections):
            return NEUTRAL  # an inner policy of ours refused: the callee was not even asked
        if ignored(error):
            return NEUTRAL
        if failed(error):
            return FAILURE
        # Anything beyond Exception that nobody named ends a program or a test; it is no answer of the callee.
        return SUCCESS if isinstance(error, Exception) else NEUTRAL

    def judge(error: BaseException) -> tuple[Verdict, PredicateFailure | None]:
        try:
            if not isinstance(error, BaseExceptionGroup):
                return judge_leaf(error), None
            return _judge_group(error, judge_leaf), None
        except _PredicateRaised as raised:
            return FAILURE, raised.failure

    return judge


def _judge_group(group: BaseExceptionGroup[BaseException], judge: Callable[[BaseException], Verdict]) -> Verdict:
    found = set()
    for leaf in _leaves(group):
        verdict = judge(leaf)
        if verdict is FAILURE:
            return FAILURE  # whatever else is in it
        found.add(verdict)
    return next(verdict for verdict in (SUCCESS, NEUTRAL, CANCELLED) if verdict in found)


class _PredicateRaised(Exception):  # noqa: N818 - a signal within this file, not an error of anybody's
    def __init__(self, failure: PredicateFailure) -> None:
        self.failure = failure


def _matcher(field: str, given: ExceptionFilter) -> Callable[[BaseException], bool]:
    if isinstance(given, type | tuple):
        return lambda error: isinstance(error, given)

    def ask(error: BaseException) -> bool:
        try:
            return bool(given(error))
        except Exception as raised:  # noqa: BLE001 - a user's function may raise anything
            raise _PredicateRaised((field, type_name(raised))) from None

    return ask


def _named_rejections(failure_on: ExceptionFilter) -> tuple[type[BaseException], ...]:
    """Give the types by which our own rejections were counted in on purpose; `Exception` is no such purpose."""
    kinds = failure_on if isinstance(failure_on, tuple) else (failure_on,)
    return tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, RejectedError))


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    pending: list[BaseException] = [group]  # a list, not recursion: a group may be nested deeper than the stack
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            yield error


def is_cancellation(error: BaseException) -> bool:
    """Tell whether `error` is asyncio's or trio's cancellation, without importing either."""
    return any(
        # With a default: another thread may be in the middle of importing the module.
        isinstance(error, getattr(sys.modules.get(module), kind, ()))
        for module, kind in (("asyncio", "CancelledError"), ("trio", "Cancelled"))
    )
