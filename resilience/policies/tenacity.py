"""tenacity's objects as vocabulary: which errors, how long, when to stop. Its engine is not used.

They are asked on the failure path only. tenacity is not imported here: who passes its objects has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from resilience.checks import is_async, shown
from resilience.errors import ConfigurationError


def is_tenacitys(value: object, kind: str) -> bool:
    """Tell whether `value` is an object of tenacity: `kind` is "retry", "wait" or "stop"."""
    # Not as an attribute of the package: `tenacity.retry` is the decorator.
    base = getattr(sys.modules.get(f"tenacity.{kind}"), f"{kind}_base", None)
    return base is not None and isinstance(value, base)


def never_stops(stop: object) -> bool:
    """Tell whether it is the stop object that always says no."""
    return stop is getattr(sys.modules.get("tenacity"), "stop_never", None)


def check_retry_object(retry: Any) -> None:
    """Refuse what cannot be asked about a failure at once.

    Raises:
        ConfigurationError: it awaits, or it judges results, which are not seen here.
    """
    tenacity = sys.modules["tenacity"]
    if is_async(retry):
        raise ConfigurationError(f"on must be a plain tenacity retry object, got the async {shown(retry)}")
    on_results = tuple(
        getattr(tenacity, name) for name in ("retry_if_result", "retry_if_not_result") if hasattr(tenacity, name)
    )
    pending = [retry]
    while pending:
        one = pending.pop()
        if isinstance(one, on_results):
            raise ConfigurationError(f"on must judge errors, got {shown(one)}: pass its predicate as retry_result")
        pending.extend(getattr(one, "retries", ()))


def new_state(function: Callable[..., Any], attempt: int, began: float) -> Any:
    """Give a state as tenacity's objects are asked with after `attempt` attempts; without the call's arguments."""
    import tenacity  # noqa: PLC0415 - only those who pass its objects need it

    state = tenacity.RetryCallState(retry_object=None, fn=function, args=(), kwargs={})  # type: ignore[arg-type]  # nobody's engine
    state.attempt_number = attempt
    state.start_time = began
    return state


def set_outcome(state: Any, error: BaseException | None, result: object, now: float) -> None:
    """Say in a state how the attempt ended."""
    if error is None:
        state.set_result(result)
    else:
        state.set_exception((type(error), error, error.__traceback__))
    state.outcome_timestamp = now
