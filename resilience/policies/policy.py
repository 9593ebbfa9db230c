"""What all policies have in common: they stand around a function, alone, stacked, or in a pipeline."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, ParamSpec, TypeVar, cast

from resilience.checks import check_name, code_of, is_async, shown
from resilience.errors import ConfigurationError
from resilience.stack import ADMITTED, Admission, dressed, layers_of, policies_of, signature_of

_plain: set[type] = set()
"""Types of results that are no awaitables: to ask a type for what it has not takes longer than a policy."""
_REMEMBERED: Final = 500  # of them; they live as long as the process

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Site:
    """Where a policy stands.

    Attributes:
        name: of the operation, in events and errors.
        origin: the function that was given to the user's decorator or call; the same however often that happens.
        inner: the policies between it and the function, outermost first.
        given: how many first arguments these add to the user's, as a pool does the connection.
    """

    name: str
    origin: object
    inner: tuple[Any, ...] = ()
    given: int = 0

    def signature(self) -> inspect.Signature | None:
        """Give the parameters that calls have here, None where they are not known."""
        return signature_of(cast("Callable[..., Any]", self.origin), self.given)

    @property
    def work(self) -> object:
        """The user's own function, under all that is stacked around it."""
        *_, work = layers_of(self.origin)
        return work


class Policy(ABC):
    """What stands around a function and decides whether, when and how often it is called.

    Every policy is a decorator, and has `call` for functions that are called once. Its state lives in the object: to
    use one object in two places is to share what it knows.

    Args:
        name: in events and errors; None takes the name of the pipeline, or of the function.
    """

    title: ClassVar[str]
    """What it is called in messages, such as "a retry"."""

    def __init__(self, name: str | None = None) -> None:
        if name is not None:
            check_name(name)
        self.name = name

    def __call__(self, function: F) -> F:
        """Put the policy around `function`, whose kind, types, name and docs it keeps.

        Raises:
            ConfigurationError: not a function, or one that the policy cannot stand around; or it stands around another
                policy where that makes no sense, or around itself.
        """
        check_wrappable(function, self.title)
        return cast("F", dressed(self.around(function, self._site(function)), function, self))

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function(*args, **kwargs)` through the policy; of an async function this gives an awaitable.

        Raises:
            ConfigurationError: as when it decorates.
        """
        check_wrappable(function, self.title)
        return cast("T", self.around(function, self._site(function))(*args, **kwargs))

    def admission(self) -> Admission:
        """Tell whether a call would be let in now, without taking anything."""
        return ADMITTED

    @abstractmethod
    def around(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        """Give a function that calls `function` through the policy, without its name and docs.

        Raises:
            ConfigurationError: it cannot stand there.
        """

    def _site(self, function: Callable[..., Any]) -> Site:
        return Site(self.name or operation_name(function), function, policies_of(function))


def operation_name(function: object) -> str:
    """Give the name of what is called, as events show it: never an argument."""
    code: Any = function
    while isinstance(code, functools.partial | functools.partialmethod):
        code = code.func
    name = getattr(code, "__qualname__", None) or type(code).__qualname__
    return f"{getattr(code, '__module__', None) or type(code).__module__}.{name}"


def check_wrappable(function: object, title: str) -> None:
    """Refuse what is no function, or whose call does not do the work yet.

    Raises:
        ConfigurationError: says what to do instead.
    """
    if isinstance(function, staticmethod | classmethod):
        raise ConfigurationError(f"{title} is for functions: put it below @{type(function).__name__}, not above")
    if isinstance(function, type) or not callable(function):
        raise ConfigurationError(
            f"{title} is for functions, got {shown(function)}: pass the function and its arguments, not its result"
        )
    code = code_of(function)
    if inspect.isasyncgenfunction(code) or (inspect.isgeneratorfunction(code) and not is_async(function)):
        raise ConfigurationError(
            f"{title} cannot be around the generator {shown(function)}: it would end before the first item. "
            "Put it around the function that uses up the items"
        )


def refuse_awaitable(result: object, title: str) -> None:
    """Refuse that a plain function gives an awaitable: the work would be done where nobody looks.

    Raises:
        ConfigurationError: says what to do instead.
    """
    kind = type(result)
    if kind in _plain:
        return
    if not hasattr(kind, "__await__"):
        if len(_plain) < _REMEMBERED:
            _plain.add(kind)
    elif isinstance(result, Awaitable):
        if inspect.iscoroutine(result):
            result.close()
        raise ConfigurationError(
            f"{title} got an awaitable from a plain function: declare it with async def, or pass the async function "
            "itself and its arguments"
        )
