"""Calling again what failed: when it may help, as long as it may help, and never in a crowd."""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Callable
from typing import Any, ClassVar

from resilience.checks import check_function, check_int, check_number, is_async, is_exception_types, shown
from resilience.clock import Clock
from resilience.errors import ConfigurationError

from .attempts import Attempts
from .backoff import MAX_SECONDS, Backoff
from .budget import RetryBudget
from .course import Rules
from .policy import Policy, Site
from .tenacity import check_retry_object, is_tenacitys
from .writes import refuse_write


class Retry(Policy):
    """Calls again what failed, with growing pauses, as long as another attempt may help.

    The first attempt costs next to nothing: whatever is decided is decided after a failure. The error that comes out is
    always the callee's own last one, the same object, with one note that tells what was tried and why it ended.

        @Retry(5, on=(ConnectionError, TimeoutError), wait=Backoff(base=0.2))
        async def fetch(url: str) -> bytes: ...

    Never tried again, unless named in `on`: cancellations; rejections of our own policies (an open circuit, a full
    bulkhead), since the callee was not asked; mistakes of the program (TypeError, AttributeError, NameError,
    NotImplementedError, AssertionError, ImportError, ConfigurationError, PoolUsageError). A group of errors is tried
    again if each of its errors is.

    Nobody sleeps in vain: a pause that would end after the deadline around the call (a `Deadline`, or anyio's
    `fail_after`), or before a circuit inside this retry closes, is not begun.

    Args:
        attempts: the first included, >= 1; None has no limit, and needs `stop`. Default 3.
        on: errors that are tried again: a type, a tuple of types, a predicate, or a retry object of tenacity (which is
            asked about errors alone). Default Exception.
        retry_result: predicate(result): True is tried again. Results that are thrown away are closed by their `aclose`
            or `close`, once. When no attempt pleases, the last result is returned.
        wait: pauses: a `Backoff`, seconds >= 0, a function of the attempt's number (from 1), or a wait object of
            tenacity. Default `Backoff()`: from 0.1 s, doubled, at most 10 s, full jitter.
        stop: a stop object of tenacity; None leaves it to `attempts`.
        budget: a `RetryBudget` that each retry is taken from, before the pause; shared by all who use the object.
        wait_for_admission: seconds: when a policy inside refuses and says for how long, and it is no longer than this,
            wait for it (and up to a tenth more) and try again. None, the default, gives up at once.
        retry_after: function(error) giving what the server asked for: seconds, a date, the text of a Retry-After
            header, or None. A pause is never shorter; if it were longer than the cap of `wait`, the call ends.
        idempotent: whether it is safe to do the work twice; False is refused, as is a function marked as `writes`.
        clock: monotonic seconds, for the times that are told.
        rng: draws the jitter; None is the system's, which forked workers do not share.
        sleep: pauses: an async function for async callees, a plain one for others; None is anyio's, and time's.
        name: in events; None is the name of the pipeline, or of the function.

    Raises:
        ConfigurationError: a value that makes no sense.

    Cancellation: passes through at once, also during a pause; the attempt's budget is given back.
    """

    kind: ClassVar[str] = "retry"
    title: ClassVar[str] = "a retry"

    def __init__(
        self,
        attempts: int | None = 3,
        *,
        on: Any = Exception,
        retry_result: Callable[[Any], bool] | None = None,
        wait: Any = Backoff(),  # noqa: B008 - frozen
        stop: Any = None,
        budget: RetryBudget | None = None,
        wait_for_admission: float | None = None,
        retry_after: Callable[[Any], object] | None = None,
        idempotent: bool = True,
        clock: Clock = time.monotonic,
        rng: random.Random | None = None,
        sleep: Callable[[float], Any] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        _check_when(attempts, stop)
        _check_what(on, retry_result, retry_after)
        _check_wait(wait, wait_for_admission)
        if budget is not None and not isinstance(budget, RetryBudget):
            raise ConfigurationError(f"budget must be a RetryBudget, got {shown(budget)}")
        if idempotent is not True:
            raise ConfigurationError(
                f"idempotent must be True, got {shown(idempotent)}: a retry does the work twice. Make it safe to "
                "repeat (an idempotency key), or leave the retry out"
            )
        check_function("clock", clock)
        if rng is not None:
            check_function("rng.random", getattr(rng, "random", None))
        if sleep is not None and not callable(sleep):
            raise ConfigurationError(f"sleep must be a function, got {shown(sleep)}")
        self.rules = Rules(
            attempts=attempts,
            on=on,
            retry_result=retry_result,
            wait=wait,
            stop=stop,
            budget=budget,
            wait_for_admission=wait_for_admission,
            retry_after=retry_after,
            clock=clock,
            rng=rng or random.SystemRandom(),
            sleep=sleep,
        )

    def __repr__(self) -> str:
        return f"<Retry {'without limit' if self.rules.attempts is None else self.rules.attempts} attempts>"

    @property
    def budget(self) -> RetryBudget | None:
        """What retries are taken from."""
        return self.rules.budget

    def around(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        """Give a function that calls `function` again when that may help.

        Raises:
            ConfigurationError: the function is marked as a write, or `sleep` is not of its kind.
        """
        refuse_write(site.origin, self.title)
        sleep = self.rules.sleep
        if sleep is not None and is_async(sleep) is not is_async(function):
            kind = "an async" if is_async(function) else "a plain"
            raise ConfigurationError(f"sleep must be {kind} function as {site.name} is, got {shown(sleep)}")
        attempts = Attempts(self.rules, function, site)
        return attempts.make_async() if is_async(function) else attempts.make_sync()


def _check_when(attempts: object, stop: object) -> None:
    if inspect.isroutine(attempts):  # a decorator without its parentheses
        raise ConfigurationError(f"attempts must be an int, got {shown(attempts)}: write @Retry() around a function")
    if attempts is not None:
        check_int("attempts", attempts)
    elif stop is None:
        raise ConfigurationError("attempts must be an int, got None: without a limit it needs stop")
    if stop is not None:
        if not is_tenacitys(stop, "stop"):
            raise ConfigurationError(f"stop must be a stop object of tenacity, got {shown(stop)}")
        check_function("stop", stop)


def _check_what(on: Any, retry_result: object, retry_after: object) -> None:
    if is_tenacitys(on, "retry"):
        check_retry_object(on)
    elif not is_exception_types(on):
        if not callable(on):
            raise ConfigurationError(
                "on must be an exception type, a tuple of them, a predicate, or a retry object of tenacity, "
                f"got {shown(on)}"
            )
        check_function("on", on)
    elif isinstance(on, tuple) and not on:
        raise ConfigurationError("on must name at least one error, got ()")
    else:
        for kind in on if isinstance(on, tuple) else (on,):
            _check_kind(kind)
    if retry_result is not None:
        check_function("retry_result", retry_result)
    if retry_after is not None:
        check_function("retry_after", retry_after)


def _check_kind(kind: type[BaseException]) -> None:
    if issubclass(kind, BaseExceptionGroup):
        raise ConfigurationError(f"on must name errors, got {kind.__name__}: a group is judged by the errors in it")
    if not issubclass(kind, Exception) and kind is not BaseException:
        raise ConfigurationError(f"on must name errors, got {kind.__name__}, which ends a task or the program")


def _check_wait(wait: Any, wait_for_admission: object) -> None:
    if not isinstance(wait, Backoff):
        if callable(wait):
            check_function("wait", wait)
        elif isinstance(wait, int | float):
            check_number("wait", wait, least=0, most=MAX_SECONDS)
        else:
            raise ConfigurationError(
                "wait must be a Backoff, seconds, a function of the attempt's number, or a wait object of tenacity, "
                f"got {shown(wait)}"
            )
    if wait_for_admission is not None:
        check_number("wait_for_admission", wait_for_admission, least=0, most=MAX_SECONDS)
