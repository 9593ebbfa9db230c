"""Policies in a row, as one: checked, explained, and changed while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import MethodType
from typing import Any, ClassVar, ParamSpec, Self, TypeVar, cast
from weakref import WeakSet

from resilience.breaker import CircuitBreaker, CircuitBreakerConfig
from resilience.checks import check_function, is_async, shown
from resilience.clock import Clock
from resilience.errors import ConfigurationError, type_name
from resilience.events import ConfigReloaded, ConfigReloadFailed, emit
from resilience.forks import renew_locks_in_child
from resilience.pool import ConnectionPool
from resilience.stack import ADMITTED, Admission, signature_of

from .cache import Cache
from .calls import Call, current_call, leave_call
from .course import single_leaf, stop_reason_of
from .explain import explain
from .lint import Finding, find
from .order import check_order
from .outcome import Outcome
from .policy import Policy, Site, check_wrappable, refuse_awaitable
from .retry import Retry
from .standard import NOT_GIVEN, standard_policies
from .story import Memory
from .timeout import Deadline, Timeout

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Pipeline(Policy):
    """Policies in a row around a function, the first outermost; itself a policy.

        protected = Pipeline(Deadline(2.0), Retry(3), breaker, Timeout(0.5), name="payments")

        @protected
        async def pay(order: Order) -> Receipt: ...

    Policies are those of `resilience.policies`, a `CircuitBreaker`, a `RateLimiter.bound(...)`, a `ConnectionPool` or
    its `inject` (the function then gets a connection as its first argument), and other pipelines, whose policies count
    as if they stood here. `Pipeline.standard` puts them in the usual order.

    Args:
        policies: outermost first; at least one.
        name: of the operation, in the events of all policies that have no name of their own; None takes the function's.
        clock: monotonic seconds, for the duration of outcomes.

    Raises:
        ConfigurationError: no policy at all, an object that is none, the same one twice, or an order without sense.

    Cancellation: as each of the policies has it.
    """

    kind: ClassVar[str] = "pipeline"
    title: ClassVar[str] = "a pipeline"

    def __init__(self, *policies: Any, name: str | None = None, clock: Clock = time.monotonic) -> None:
        super().__init__(name)
        check_function("clock", clock)
        self._clock = clock
        self._policies = _checked(policies)
        self._memory = Memory()
        self._mounts: WeakSet[_Mount] = WeakSet()
        self.renew_locks()
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Make the lock anew in a forked child."""
        # Guards policies and mounts, while functions are decorated and policies replaced; calls know nothing of it.
        # Policies of others are asked under it: reentrant, for they may decorate something.
        self._lock = threading.RLock()

    @classmethod
    def standard(
        cls,
        *,
        name: str | None = None,
        fallback: Any = NOT_GIVEN,
        deadline: Deadline | float | None = None,
        cache: Cache | float | None = None,
        shed: Any = None,
        retry: Retry | int | None = None,
        hedge: Any = None,
        breaker: CircuitBreaker | CircuitBreakerConfig | str | bool | None = None,
        limiter: Any = None,
        bulkhead: Any = None,
        pool: Any = None,
        timeout: Timeout | float | None = None,
    ) -> Self:
        """Put policies in the usual order; each is a policy or its short form, None leaves it out.

        Args:
            name: of the pipeline.
            fallback: a `Fallback`, a value (also None), or a function that gives it.
            deadline: a `Deadline`, or seconds for the call with all its attempts.
            cache: a `Cache`, or seconds for which results are kept (the latest 1,000).
            shed: a `LoadShed` or a `Throttle`.
            retry: a `Retry`, or a number of attempts.
            hedge: a `Hedge`.
            breaker: a `CircuitBreaker`; the name of one in `circuit_breakers`; True or a configuration: the one there
                with the pipeline's name.
            limiter: `limiter.bound(...)`, a `RateLimiter`, or quotas such as "10/second", kept in memory.
            bulkhead: a `Bulkhead` or an `AdaptiveLimit`, or a number of concurrent calls.
            pool: a `ConnectionPool`: the function gets a connection as its first argument.
            timeout: a `Timeout`, or seconds for one attempt.

        Raises:
            ConfigurationError: none given, or one that is neither.
        """
        given = {
            "fallback": fallback,
            "deadline": deadline,
            "cache": cache,
            "shed": shed,
            "retry": retry,
            "hedge": hedge,
            "breaker": breaker,
            "limiter": limiter,
            "bulkhead": bulkhead,
            "pool": pool,
            "timeout": timeout,
        }
        return cls(*standard_policies(name, given), name=name)

    @property
    def policies(self) -> tuple[Any, ...]:
        """The policies, outermost first, those of nested pipelines included."""
        return self._policies

    def __repr__(self) -> str:
        inside = " > ".join(repr(policy) for policy in self._policies)
        return f"<Pipeline {'' if self.name is None else f'{self.name!r} '}{inside}>"

    def around(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        """Give a function that calls `function` through all policies.

        Raises:
            ConfigurationError: one of the policies cannot stand around it.
        """
        with self._lock:
            mount = self._mounted(function, site)
            self._mounts.add(mount)
        return mount.make(self._memory)

    def __call__(self, function: F) -> F:
        """Put the policies around `function`, whose kind, types, name and docs it keeps.

        A function that gets a connection from a pool in here loses its first parameter, for frameworks that look; to
        type checkers it keeps it: write `@pipeline` above `@pool.inject` where that matters.

        Raises:
            ConfigurationError: not a function, or one that a policy cannot stand around; or the policies make no sense
                around those that are there already.
        """
        wrapper: Any = super().__call__(function)
        given = _given_by(self._policies)
        if given:
            wrapper.__signature__ = signature_of(function, given)
        return cast("F", wrapper)

    def call(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call `function(*args, **kwargs)` through the policies; of an async function this gives an awaitable.

        Arguments are not checked by types here, for a pool in the pipeline adds the first one.

        Raises:
            ConfigurationError: as when it decorates.
        """
        check_wrappable(function, self.title)
        called = self._mounted(function, self._site(function)).make(self._memory)
        return cast("T", called(*args, **kwargs))

    def _mounted(self, function: Callable[..., Any], site: Site) -> _Mount:
        mount = _Mount(function, replace(site, name=self.name or site.name))
        mount.inner = mount.built(self._policies)
        return mount

    def call_outcome(self, function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call `function(*args, **kwargs)` through the policies and give an `Outcome`, awaitable if it is async.

        Errors of the callee, rejections and timeouts are in it. Cancellations and what is no `Exception` are raised.

        Raises:
            ConfigurationError: as when it decorates.
        """
        check_wrappable(function, self.title)
        counter = _Counter(function)
        mount = self._mounted(counter.make(), self._site(function))
        chain, call = mount.inner, Call(mount.site.work, self._memory)
        if is_async(function):
            return self._outcome(chain, call, counter, args, kwargs)
        began = self._clock()
        token = current_call.set(call)
        try:
            result = chain(*args, **kwargs)
            refuse_awaitable(result, self.title)
        except Exception as error:  # noqa: BLE001 - that is what an outcome is for
            return self._failed(call, counter, error, began)
        finally:
            leave_call(token)
        return self._succeeded(call, counter, result, began)

    async def _outcome(
        self,
        chain: Callable[..., Awaitable[Any]],
        call: Call,
        counter: _Counter,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Outcome:
        began = self._clock()
        token = current_call.set(call)
        try:
            result = await chain(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - as above
            return self._failed(call, counter, error, began)
        finally:
            leave_call(token)
        return self._succeeded(call, counter, result, began)

    def _succeeded(self, call: Call, counter: _Counter, value: Any, began: float) -> Outcome:
        reason = call.stop_reason or "success"
        return Outcome(True, value, None, reason, counter.calls, self._clock() - began, call.id)

    def _failed(self, call: Call, counter: _Counter, error: Exception, began: float) -> Outcome:
        return Outcome(False, None, error, _reason(call, error), counter.calls, self._clock() - began, call.id)

    def admission(self) -> Admission:
        """Tell whether a call would be let in by all policies now; the first that refuses is heard."""
        for policy in self._policies:
            admission = cast("Admission", policy.admission()) if hasattr(policy, "admission") else ADMITTED
            if not admission.allowed:
                return admission
        return ADMITTED

    # --- what people read ---

    def explain(self) -> str:
        """Tell in a few lines what the pipeline does: its policies in order, and the worst case of one call."""
        return explain(self.name, self._policies)

    def lint(self) -> list[Finding]:
        """Find what will not do what it seems to, the worst first; an empty list if there is nothing."""
        return find(self._policies)

    def explain_call(self, call_id: str) -> str:
        """Tell what happened to one call: its failed attempts, waits, rejections and timeouts, with their times.

        Args:
            call_id: of an `Outcome` or an `AttemptFailed`. The last 1,000 events of the pipeline are remembered.
        """
        return self._memory.story(call_id)

    # --- what people change ---

    def reload(self, *policies: Any) -> None:
        """Put other policies in place, also around the functions that are decorated already.

        Calls under way end with the policies that they began with. State lives in the objects: a policy that is given
        again keeps what it knows. Tells `ConfigReloaded`. A pipeline that this one was put into does not follow: it has
        taken over the policies of then.

        Raises:
            ConfigurationError: as when a pipeline is made, or for one of the functions; the old policies stay in place,
                and `ConfigReloadFailed` is told.
        """
        try:
            with self._lock:
                checked = _checked(policies)
                built = [(mount, mount.built(checked)) for mount in self._mounts]
                self._policies = checked
                for mount, inner in built:
                    mount.inner = inner
        except Exception as error:
            if ConfigReloadFailed.sinks:
                reason = str(error) if isinstance(error, ConfigurationError) else type_name(error)
                emit(ConfigReloadFailed(self.name or "pipeline", self._clock(), reason=reason))
            raise
        if ConfigReloaded.sinks:
            emit(ConfigReloaded(self.name or "pipeline", self._clock(), policies=len(checked)))


class _Mount:
    """A pipeline around one function: what is called now, and may be another chain with the next call."""

    def __init__(self, function: Callable[..., Any], site: Site) -> None:
        self.function = function
        self.site = site
        self.inner = function

    def built(self, policies: tuple[Any, ...]) -> Callable[..., Any]:
        """Give the function with these policies around it."""
        check_order((*policies, *self.site.inner))
        chain, site = self.function, self.site
        for policy in reversed(policies):
            if isinstance(policy, ConnectionPool):
                chain = policy.inject(chain)
            else:
                name = getattr(policy, "name", None) or self.site.name
                chain = policy.around(chain, replace(site, name=name))
            site = replace(site, inner=(policy, *site.inner), given=site.given + _given_by((policy,)))
        return chain

    def make(self, memory: Memory) -> Callable[..., Any]:
        """Give what is called, with whatever chain is there then."""
        return self._make_async(memory) if is_async(self.function) else self._make_sync(memory)

    def _make_async(self, memory: Memory) -> Callable[..., Awaitable[Any]]:
        work = self.site.work

        async def piped(*args: Any, **kwargs: Any) -> Any:
            token = current_call.set(Call(work, memory))
            try:
                return await self.inner(*args, **kwargs)
            finally:
                leave_call(token)

        return piped

    def _make_sync(self, memory: Memory) -> Callable[..., Any]:
        work = self.site.work

        def piped(*args: Any, **kwargs: Any) -> Any:
            token = current_call.set(Call(work, memory))
            try:
                result = self.inner(*args, **kwargs)
            finally:
                leave_call(token)
            refuse_awaitable(result, "a pipeline")
            return result

        return piped


class _Counter:
    """Counts how often a function is called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def make(self) -> Callable[..., Any]:
        if is_async(self.function):

            async def counted(*args: Any, **kwargs: Any) -> Any:
                self.calls += 1
                return await self.function(*args, **kwargs)

            return counted

        def counted_sync(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return self.function(*args, **kwargs)

        return counted_sync


def _checked(policies: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give the policies with those of nested pipelines among them, in an order that makes sense."""
    if not policies:
        raise ConfigurationError("policies must not be empty: a pipeline of nothing does nothing")
    flat: list[Any] = []
    for policy in policies:
        flat.extend(policy.policies if isinstance(policy, Pipeline) else [_policy(policy)])
    check_order(tuple(flat))
    return tuple(flat)


def _policy(given: Any) -> Any:
    if isinstance(given, MethodType) and isinstance(given.__self__, ConnectionPool) and given.__name__ == "inject":
        return given.__self__
    if isinstance(given, type) or not (hasattr(given, "around") or isinstance(given, ConnectionPool)):
        raise ConfigurationError(
            "policies must be policies such as Retry(3), a CircuitBreaker, limiter.bound(), pool.inject, "
            f"got {shown(given)}"
        )
    return given


def _reason(call: Call, error: Exception) -> str:
    if call.stop_reason is not None and call.stop_reason != "success":
        return call.stop_reason
    return stop_reason_of(single_leaf(error))


def _given_by(policies: tuple[Any, ...]) -> int:
    """Count the arguments that policies add in front of the user's."""
    return sum(isinstance(policy, ConnectionPool) for policy in policies)
