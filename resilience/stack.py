"""Which policies stand around a function: each that wraps it notes itself, so that an outer one can look inwards."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_NOTED = "__policies__"
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_checks: list[Callable[[tuple[Any, ...]], None]] = []
_DEEPEST = 100  # wrappers: what claims to wrap itself, or makes up attributes, must not be followed for ever


class Admission(NamedTuple):
    """Whether a call would be let in now; asking takes nothing and counts nowhere.

    Attributes:
        allowed: whether.
        retry_after: seconds until it would be, None where no time is known.
        reason: why not, such as "circuit_open"; None where it is allowed.
    """

    allowed: bool
    retry_after: float | None = None
    reason: str | None = None


ADMITTED = Admission(allowed=True)


def policies_of(function: object) -> tuple[Any, ...]:
    """Give the policies around `function`, outermost first. `functools.wraps` between them hides none."""
    while isinstance(function, functools.partial):
        function = function.func
    noted = getattr(function, _NOTED, ())
    return noted if isinstance(noted, tuple) else ()


def layers_of(function: object) -> Iterator[Any]:
    """Give `function` and what it wraps, one in the other: of partials, methods, and what `functools.wraps` made."""
    for _ in range(_DEEPEST):
        yield function
        if isinstance(function, functools.partial):
            function = function.func
        else:
            function = getattr(function, "__wrapped__", getattr(function, "__func__", None))
            if function is None:
                return


def dressed(wrapper: Callable[..., Any], function: Callable[..., Any], policy: object) -> Any:
    """Give `wrapper` the name, docs and attributes of `function`, and note `policy` as the outermost around it.

    Raises:
        ConfigurationError: the policy makes no sense around one that is there already.
    """
    around = (policy, *policies_of(function))
    for check in _checks:
        check(around)
    dressed: Any = functools.update_wrapper(wrapper, function)
    setattr(dressed, _NOTED, around)
    return dressed


def check_stacks_with(check: Callable[[tuple[Any, ...]], None]) -> None:
    """Have every stack of policies checked, outermost first, whoever adds to it: a breaker knows no other policies."""
    _checks.append(check)


def signature_of(function: Callable[..., Any], given: int = 0) -> inspect.Signature | None:
    """Give the signature that callers see, if there is one: without its first `given` parameters, which others give."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions in C have none
        return None
    parameters = list(signature.parameters.values())
    while given and parameters and parameters[0].kind in _BY_PLACE:
        del parameters[0]
        given -= 1
    return signature.replace(parameters=parameters)
