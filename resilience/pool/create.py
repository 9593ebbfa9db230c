"""Pools from URLs."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, Final, TypeAlias, TypeVar

import anyio

from resilience.breaker import CircuitBreaker
from resilience.checks import check_function, hint, is_async, shown
from resilience.clock import Clock
from resilience.errors import ConfigurationError

from .adapters.adapter import Adapter
from .adapters.address import parse_scheme
from .budget import Budget
from .config import PoolConfig
from .engine import PermanentErrors, either
from .pool import ConnectionPool

C = TypeVar("C")

Factory: TypeAlias = Callable[..., Adapter[Any]]

_KNOWN: Final = {
    "postgresql": ("postgres_asyncpg:asyncpg_adapter", "asyncpg", "postgres"),
    "postgres": ("postgres_asyncpg:asyncpg_adapter", "asyncpg", "postgres"),
    "postgresql+asyncpg": ("postgres_asyncpg:asyncpg_adapter", "asyncpg", "postgres"),
    "postgresql+psycopg": ("postgres_psycopg:psycopg_adapter", "psycopg", "postgres"),
    "redis": ("redis:redis_adapter", "redis", ""),
    "rediss": ("redis:redis_adapter", "redis", ""),
    "valkey": ("redis:redis_adapter", "redis", ""),
    "valkeys": ("redis:redis_adapter", "redis", ""),
    "sqlite": ("sqlite:sqlite_adapter", "aiosqlite", "sqlite"),
    "tcp": ("tcp:tcp_adapter", "anyio", ""),
}
"""Scheme: module and function, the package it needs, and the extra that has it."""

_registered: dict[str, Factory] = {}


def register_adapter(scheme: str, factory: Factory) -> None:
    """Let `create_pool` understand URLs of one more scheme.

    Args:
        scheme: what is before "://", in any case.
        factory: a plain function that makes an `Adapter` from a URL. It is called with the URL and the keyword
            argument `connect_options`, a mapping; further keyword arguments are options that its users may give to
            `create_pool`.

    Raises:
        ConfigurationError: the scheme has an adapter already, or one of the arguments is none.
    """
    _check_scheme(scheme)
    check_function("factory", factory)
    scheme = scheme.lower()
    if scheme in _KNOWN or _registered.get(scheme, factory) is not factory:
        raise ConfigurationError(f"scheme must not have an adapter yet, got {shown(scheme)}")
    _registered[scheme] = factory


def _check_scheme(scheme: object) -> None:
    if not isinstance(scheme, str) or not scheme or "://" in scheme:
        raise ConfigurationError(f"scheme must be what is before '://' in a URL, got {shown(scheme)}")


def create_pool(
    url: str,
    *,
    name: str | None = None,
    config: PoolConfig | None = None,
    on_connect: Callable[[Any], Awaitable[object]] | None = None,
    connect_options: Mapping[str, Any] | None = None,
    breaker: CircuitBreaker | None = None,
    budget: Budget | None = None,
    permanent_errors: PermanentErrors = (),
    clock: Clock = time.monotonic,
    rng: random.Random | None = None,
    **options: Any,
) -> ConnectionPool[Any]:
    """Make a pool of a known driver's connections: checked, reset, closed, and given up for lost as they need it.

        async with create_pool("postgresql://app@db/shop", max_size=20) as pool:
            async with pool.acquire() as connection:
                await connection.fetchval("SELECT 1")

    The driver's own pool, retries and connect timeout are off: this pool decides.

    Args:
        url: `postgresql://` (asyncpg), `postgresql+psycopg://`, `redis://` and `rediss://` (a client with one
            connection), `sqlite:///file` (aiosqlite), `tcp://host:port` (a stream of anyio), or a scheme of
            `register_adapter`.
        name: in events, errors and logs; None: scheme, host and path of the URL, and never its user or password.
        config: see `PoolConfig`.
        on_connect: an async function that prepares each new connection, once.
        connect_options: for the driver's own function that connects.
        breaker: guards connecting, see `ConnectionPool`.
        budget: what this pool and others may have together, see `Budget`.
        permanent_errors: errors of connecting that shall reach a caller at once, beside those that no attempt can cure:
            a type, a tuple of types, or a plain function of the exception. `ConnectionRefusedError`, say, for callers
            who would rather know that a server is down than wait for it.
        clock: monotonic seconds.
        rng: for jitter.
        options: fields of `PoolConfig`, and options of the adapter, such as psycopg's `reset_query`.

    Returns:
        A `ConnectionPool[asyncpg.Connection]`, and so on: the URL is read too late for a type checker, so annotate it.

    Raises:
        ConfigurationError: an unknown scheme, a driver that is not installed, or a part of the URL or an option that
            makes no sense.
    """
    scheme = parse_scheme(url)
    factory = _find_factory(scheme)
    if connect_options is not None and not isinstance(connect_options, Mapping):
        raise ConfigurationError(f"connect_options must be a mapping, got {shown(type(connect_options).__name__)}")
    if on_connect is not None and not is_async(on_connect):
        raise ConfigurationError(f"on_connect must be an async function, got {shown(on_connect)}")
    overrides, own = _sort_options(options, factory)
    adapter = factory(url, connect_options=dict(connect_options or {}), **own)
    if not isinstance(adapter, Adapter):
        raise ConfigurationError(
            f"the factory of {scheme}:// must give an Adapter, got {shown(type(adapter).__name__)}"
        )
    for field, value in adapter.fixed.items():
        if overrides.setdefault(field, value) != value:
            raise ConfigurationError(f"{field} must be {value} with {adapter.name}, got {shown(overrides[field])}")
    return ConnectionPool(
        adapter.connect if on_connect is None else _prepared(adapter, on_connect),
        close=adapter.close,
        check=adapter.check,
        reset=adapter.reset,
        is_closed=adapter.is_closed,
        name=adapter.name if name is None else name,
        config=config,
        breaker=breaker,
        budget=budget,
        permanent_errors=either(adapter.permanent_errors, permanent_errors),
        clock=clock,
        rng=rng,
        **overrides,
    )


def _find_factory(scheme: str) -> Factory:
    if scheme in _registered:
        return _registered[scheme]
    if scheme not in _KNOWN:
        raise _unknown_scheme(scheme)
    place, package, extra = _KNOWN[scheme]
    module, _, function = place.partition(":")
    try:
        factory: Factory = getattr(import_module(f".adapters.{module}", __package__), function)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != package:
            raise  # not about the driver; psycopg without libpq names nothing
        raise ConfigurationError(f"{scheme}:// needs the package {package}: {_installed_by(extra)}") from error
    return factory


def _unknown_scheme(scheme: str) -> ConfigurationError:
    by_extra: dict[str, list[str]] = {}
    for one, (_, _, extra) in _KNOWN.items():
        by_extra.setdefault(extra, []).append(f"{one}://")
    known = "; ".join(f"{', '.join(schemes)} ({_installed_by(extra)})" for extra, schemes in by_extra.items())
    more = "".join(f"; {one}://" for one in _registered)
    # Cut, because a URL that is none may begin with anything.
    return ConfigurationError(
        f"url must begin with one of: {known}{more}; got {shown(scheme[:20])}. register_adapter adds more"
    )


def _installed_by(extra: str) -> str:
    return f"pip install anyio-resilience{f'[{extra}]' if extra else ''}"


def _sort_options(options: Mapping[str, Any], factory: Factory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell the pool's options from the adapter's."""
    parameters = signature(factory).parameters.values()
    own = {one.name for one in parameters if one.kind is Parameter.KEYWORD_ONLY} - {"connect_options"}
    takes_all = any(one.kind is Parameter.VAR_KEYWORD for one in parameters)
    fields = PoolConfig.__dataclass_fields__
    for option in options:
        if option not in fields and option not in own and not takes_all:
            known = [*fields, *sorted(own)]
            raise ConfigurationError(
                f"{option} must be one of {', '.join(known)}, or an item of connect_options{hint(option, known)}"
            )
    overrides = {option: value for option, value in options.items() if option in fields}
    return overrides, {option: value for option, value in options.items() if option not in fields}


def _prepared(adapter: Adapter[C], on_connect: Callable[[C], Awaitable[object]]) -> Callable[[], Awaitable[C]]:
    async def connect() -> C:
        connection = await adapter.connect()
        try:
            await on_connect(connection)
        except BaseException:
            # What closing it raises says less than why it could not be prepared.
            with suppress(Exception), anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSE_TIMEOUT):
                closed = adapter.close(connection)
                if isinstance(closed, Awaitable):
                    await closed
            raise
        return connection

    return connect


_CLOSE_TIMEOUT: Final = 5.0
"""Seconds for a connection that could not be prepared; the pool's default."""
