"""How a connection pool behaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from resilience.checks import check_function, check_int, check_number, hint, shown
from resilience.errors import ConfigurationError

MAX_SIZE: Final = 100_000
MAX_SECONDS: Final = 10 * 366 * 86_400.0
"""Ten years."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """How a pool sizes itself, how patient it is, and how it keeps its connections well.

    Checked on creation; immutable; equal when all fields are equal. Durations are seconds, 0 to ten years.

    Args:
        min_size: connections that are kept open, 0 to `max_size`. They are opened in the background.
        max_size: connections at a time, 1 to 100,000.
        max_waiting: callers that may wait at a time, 0 or more; None: no limit.
        headroom: connections that only callers with a priority above 0 get, 0 to `max_size` - 1: with 10 and a headroom
            of 4, jobs of priority 0 use at most 6, however many they are.
        acquire_timeout: for a caller to get a connection, checking and connecting included; None waits for ever.
        connect_timeout: for one attempt to connect.
        check_timeout: for one health check; a check that takes longer has failed.
        reset_timeout: for one reset after use; a reset that takes longer has failed.
        close_timeout: for one connection to close; after that it is let go.
        max_lifetime: age at which a connection is replaced, idle or not; each one's is up to 5 % less, so that they do
            not all go at once. None: no limit.
        max_idle: idle time after which a connection beyond `min_size` is closed; None: never.
        keepalive: idle time after which a connection is checked, one at a time; None: never.
        check_after_idle: a connection that was seen alive less than so long ago is lent without a check; 0 checks
            always, None never. Half a second to a second is what a busy pool does not feel and a restart does not
            survive (HikariCP and pgx measured the same).
        max_uses: borrowings after which a connection is replaced, at least 1; None: no limit.
        reuse: "lifo" lends the connection that came back last, so that the rest grows idle and can be closed; "fifo"
            the one that has been idle longest, so that none does.
        close_grace: how long `close` waits for borrowed connections before it closes them under their borrowers.
        max_connecting: attempts to connect at a time, at least 1.
        reconnect_base: pause after the first failed attempt; doubles with each further one, with full jitter.
        reconnect_cap: longest pause: a server that is back is noticed within so long.
        reconnect_give_up: how long no attempt may succeed before `on_reconnect_failed` is called, once per outage. The
            pool goes on trying while callers wait.
        on_reconnect_failed: a plain function without arguments.
        leak_after: how long a connection may be held before it is told as a suspected leak; None: never.
        grow: "cost" opens another connection only if those who wait would not be served within one connect time by what
            is there; "demand" opens one for each caller who waits.
        prewarm: the most connections that may be opened ahead of a remembered peak; None: the feature is off.
        debug: check the pool's books after each step, and raise if they do not add up.

    Raises:
        ConfigurationError: names the field, the value and the rule.
    """

    min_size: int = 0
    max_size: int = 10
    max_waiting: int | None = None
    headroom: int = 0
    acquire_timeout: float | None = 30.0
    connect_timeout: float = 10.0
    check_timeout: float = 5.0
    reset_timeout: float = 5.0
    close_timeout: float = 5.0
    max_lifetime: float | None = 3_600.0
    max_idle: float | None = 600.0
    keepalive: float | None = None
    check_after_idle: float | None = 1.0
    max_uses: int | None = None
    reuse: Literal["lifo", "fifo"] = "lifo"
    close_grace: float = 10.0
    max_connecting: int = 4
    reconnect_base: float = 0.1
    reconnect_cap: float = 3.0
    reconnect_give_up: float = 300.0
    on_reconnect_failed: Callable[[], object] | None = None
    leak_after: float | None = None
    grow: Literal["cost", "demand"] = "cost"
    prewarm: int | None = None
    debug: bool = False

    def __post_init__(self) -> None:
        check_bounds(self.min_size, self.max_size)
        check_int("headroom", self.headroom, least=0, most=self.max_size - 1)
        for field in (*_COUNTS, *_POSITIVE, *_NOT_NEGATIVE):
            value = getattr(self, field)
            if value is None and field in _OPTIONAL:
                continue
            if field in _COUNTS:
                check_int(field, value, least=_COUNTS[field])
            elif field in _POSITIVE:
                check_number(field, value, above=0, most=MAX_SECONDS)
            else:
                check_number(field, value, least=0, most=MAX_SECONDS)
        if self.reconnect_cap < self.reconnect_base:
            raise ConfigurationError(
                f"reconnect_cap must be at least reconnect_base, {self.reconnect_base:g}, got {self.reconnect_cap:g}"
            )
        _check_one_of("reuse", self.reuse, ("lifo", "fifo"))
        _check_one_of("grow", self.grow, ("cost", "demand"))
        if self.on_reconnect_failed is not None:
            check_function("on_reconnect_failed", self.on_reconnect_failed)
        _check_one_of("debug", self.debug, (True, False))


_COUNTS: Final = {"max_connecting": 1, "max_uses": 1, "max_waiting": 0, "prewarm": 0}
_POSITIVE: Final = (
    "connect_timeout",
    "check_timeout",
    "reset_timeout",
    "close_timeout",
    "max_lifetime",
    "max_idle",
    "keepalive",
    "leak_after",
    "reconnect_base",
    "reconnect_cap",
)
_NOT_NEGATIVE: Final = (
    "close_grace",
    "reconnect_give_up",
    "acquire_timeout",
    "check_after_idle",
)
_OPTIONAL: Final = {
    "max_uses",
    "max_waiting",
    "prewarm",
    "max_lifetime",
    "max_idle",
    "keepalive",
    "leak_after",
    "acquire_timeout",
    "check_after_idle",
}


def check_bounds(min_size: int, max_size: int) -> None:
    """Refuse what cannot be a pool's smallest and largest size.

    Raises:
        ConfigurationError: names the field, the value and the rule.
    """
    check_int("max_size", max_size, most=MAX_SIZE)
    check_int("min_size", min_size, least=0)
    if min_size > max_size:
        raise ConfigurationError(f"min_size must be at most max_size, {max_size}, got {shown(min_size)}")


def _check_one_of(field: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise ConfigurationError(f"{field} must be one of {', '.join(map(repr, known))}, got {shown(value)}")


def merged(config: PoolConfig, overrides: Mapping[str, Any]) -> PoolConfig:
    """Give `config` with some fields replaced; unknown names are refused by name.

    Raises:
        ConfigurationError: not a configuration, no such field, or a value that makes no sense.
    """
    if not isinstance(config, PoolConfig):
        raise ConfigurationError(f"config must be a PoolConfig, got {shown(config)}")
    for field in overrides:
        if field not in PoolConfig.__dataclass_fields__:
            known = PoolConfig.__dataclass_fields__
            raise ConfigurationError(f"{field} must be a field of PoolConfig: {', '.join(known)}{hint(field, known)}")
    return replace(config, **overrides) if overrides else config
