"""The attempts of a retry around one function, in async and in sync code: one loop, with await and without."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from typing import Any, Final

import anyio
import anyio.lowlevel

from resilience import deadline
from resilience.errors import type_name
from resilience.events import AttemptFailed, PolicyHookFailed, RetryStopped, RetrySuppressed, emit

from .budget import enter, leave
from .calls import Call, current_call, note_reason, seconds_left
from .course import Course, Failed, Rules, Step, ask
from .discard import discard, discard_async
from .policy import Site, refuse_awaitable
from .unchanged import raise_unchanged

_NOTE: Final = "resilience: "


class Attempts:
    """Calls a function as often as the rules have it.

    The first attempt is written out, for nearly all calls need no other.
    """

    def __init__(self, rules: Rules, function: Callable[..., Any], site: Site) -> None:
        self._rules = rules
        self._function = function
        self._site = site
        self._work = site.work

    def make_async(self) -> Callable[..., Awaitable[Any]]:
        """Give the function with its attempts, of an async function."""
        function, clock, budget = self._function, self._rules.clock, self._rules.budget
        judges_results = self._rules.retry_result is not None

        async def retried(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            failed: Failed | None = None
            try:
                result = await function(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - it is judged, and raised again if it is not tried again
                failed = Failed(error)
            else:
                if not judges_results or not self._is_unwanted(result):
                    return result
                failed = Failed(None, result)
            try:
                return await self._go_on(args, kwargs, began, failed)
            finally:
                failed = None  # its error holds this frame: together they would wait for the garbage collector

        if budget is None:
            return retried

        async def budgeted(*args: Any, **kwargs: Any) -> Any:
            token = enter(budget)
            try:
                return await retried(*args, **kwargs)
            finally:
                leave(budget, token)

        return budgeted

    def make_sync(self) -> Callable[..., Any]:
        """Give the function with its attempts, of a plain function."""
        function, clock, budget = self._function, self._rules.clock, self._rules.budget
        judges_results = self._rules.retry_result is not None

        def retried(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            failed: Failed | None = None
            try:
                result = function(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - as above
                failed = Failed(error)
            else:
                refuse_awaitable(result, "a retry")
                if not judges_results or not self._is_unwanted(result):
                    return result
                failed = Failed(None, result)
            try:
                return self._go_on_sync(args, kwargs, began, failed)
            finally:
                failed = None  # as above

        if budget is None:
            return retried

        def budgeted(*args: Any, **kwargs: Any) -> Any:
            token = enter(budget)
            try:
                return retried(*args, **kwargs)
            finally:
                leave(budget, token)

        return budgeted

    async def _go_on(self, args: tuple[Any, ...], kwargs: dict[str, Any], began: float, failed: Failed) -> Any:
        """Decide after each attempt, and make the next."""
        course = self._course(began)
        sleep = self._rules.sleep or anyio.sleep
        last = failed  # of the callee
        try:
            while True:
                step = self._decide(course, failed, seconds_left())
                if step.delay is None:
                    return self._end(course, step.stop_reason, last)
                try:
                    if failed.error is None:
                        await discard_async(failed.result)
                    # Without a pause a cancellation is noticed all the same.
                    await (sleep(step.delay) if step.delay else anyio.lowlevel.checkpoint())
                    failed = await self._attempt(args, kwargs)
                finally:
                    self._give_back(step)
                if failed.error is None and not self._is_unwanted(failed.result):
                    self._tell_end(course, "success")
                    return failed.result
                last = _more_telling(last, failed)
        finally:
            del last, failed  # as above

    def _go_on_sync(self, args: tuple[Any, ...], kwargs: dict[str, Any], began: float, failed: Failed) -> Any:
        course = self._course(began)
        sleep = self._rules.sleep or time.sleep
        last = failed
        try:
            while True:
                step = self._decide(course, failed, deadline.seconds_left())
                if step.delay is None:
                    return self._end(course, step.stop_reason, last)
                try:
                    if failed.error is None:
                        discard(failed.result)
                    if step.delay:
                        sleep(step.delay)
                    failed = self._attempt_sync(args, kwargs)
                finally:
                    self._give_back(step)
                if failed.error is None and not self._is_unwanted(failed.result):
                    self._tell_end(course, "success")
                    return failed.result
                last = _more_telling(last, failed)
        finally:
            del last, failed

    async def _attempt(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Failed:
        try:
            return Failed(None, await self._function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - as above
            return Failed(error)

    def _attempt_sync(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Failed:
        try:
            result = self._function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - as above
            return Failed(error)
        refuse_awaitable(result, "a retry")
        return Failed(None, result)

    def _course(self, began: float) -> Course:
        call = current_call.get() or Call()
        return Course(self._rules, self._function, call, began, self._tell_hook)

    def _is_unwanted(self, result: object) -> bool:
        if self._rules.retry_result is None:
            return False
        try:
            return ask(self._rules.retry_result, result, bool) is True
        except Exception as error:  # noqa: BLE001 - the user's function may raise anything: the result is kept
            self._tell_hook("retry_result", error)
            return False

    def _decide(self, course: Course, failed: Failed, remaining: float) -> Step:
        """Decide, ask the policies inside, take from the budget, and tell."""
        now = self._rules.clock()
        step = course.after(failed, now, time.time(), remaining)
        for policy in self._site.inner:
            if step.delay is not None and hasattr(policy, "admission"):
                step = course.admitted(step, policy.admission(), remaining)
        budget = self._rules.budget
        if step.delay is not None and step.paid and budget is not None and not budget.take():
            step = Step(None, "budget")
            if RetrySuppressed.sinks:
                emit(RetrySuppressed(self._site.name, now, reason="budget"))
        try:
            self._tell_failure(course, failed, step, remaining)
        except BaseException:  # a sink lets a Ctrl-C through: nobody is left who would give back
            self._give_back(step)
            raise
        return step

    def _give_back(self, step: Step) -> None:
        if step.delay is not None and step.paid and self._rules.budget is not None:
            self._rules.budget.give_back()

    def _end(self, course: Course, reason: str, last: Failed) -> Any:
        """Return the last result, or raise the callee's last error with its note."""
        self._tell_end(course, reason)
        if last.error is None:
            return last.result
        try:
            _note(last.error, _NOTE + course.story(reason, self._rules.clock() - course.began))
            raise_unchanged(last.error, last.error.__traceback__)
        finally:
            del last

    def _tell_failure(self, course: Course, failed: Failed, step: Step, remaining: float) -> None:
        if failed.rejection is not None:
            return  # the callee was not asked, and who refused has told it
        if AttemptFailed.sinks:
            now = self._rules.clock()
            emit(
                AttemptFailed(
                    self._site.name,
                    now,
                    attempt=course.attempt,
                    max_attempts=self._rules.attempts,
                    delay=step.delay,
                    elapsed=now - course.began,
                    remaining=None if abs(remaining) == inf else remaining,
                    error_type="unwanted_result" if failed.error is None else type_name(failed.error),
                    call_id=course.call.id,
                )
            )

    def _tell_end(self, course: Course, reason: str) -> None:
        note_reason(reason, self._work)
        if RetryStopped.sinks:
            # The course knows nothing of the attempt that succeeded.
            attempts = course.attempt + (reason == "success")
            emit(RetryStopped(self._site.name, self._rules.clock(), stop_reason=reason, attempts=attempts))

    def _tell_hook(self, hook: str, error: BaseException) -> None:
        if PolicyHookFailed.sinks:
            emit(PolicyHookFailed(self._site.name, self._rules.clock(), hook=hook, error_type=type_name(error)))


def _more_telling(last: Failed, failed: Failed) -> Failed:
    """Give what the caller gets to see: what the callee raised says more than that somebody refused to ask it again."""
    callee_raised = last.error is not None and last.rejection is None
    return last if failed.rejection is not None and callee_raised else failed


def _note(error: BaseException, text: str) -> None:
    """Leave one note: an error that is raised again and again would collect them."""
    with suppress(Exception):  # a type of its own may forbid it: the error itself matters more
        notes = [note for note in getattr(error, "__notes__", []) if not str(note).startswith(_NOTE)]
        error.__notes__ = [*notes, text]
