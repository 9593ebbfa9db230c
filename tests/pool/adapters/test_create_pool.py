"""Pools from URLs: what is understood, what is refused and how, and that no password is ever told."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from typing import Any

import anyio
import pytest

from resilience.errors import ConfigurationError
from resilience.events import capture
from resilience.pool import Adapter, ConnectionPool, PoolConfig, create, create_pool, register_adapter
from resilience.pool.adapters.address import parse_address
from resilience.testing import VirtualClock

SECRET = "Tr0ub4dor"


@pytest.mark.parametrize(
    ("url", "part"),
    [
        (f"postgresql://u:{SECRET}/x@host/db", "host before the path"),
        (f"postgresql://u:{SECRET}#x@host/db", "fragment"),
        (f"postgresql://u:{SECRET}?x=y@host/db", "host before the path"),
        (f"postgresql://u:{SECRET}@x@host:port/db", "port"),
        (f"postgresql://u:{SECRET}@host:0/db", "port"),
        (f"postgresql://u:{SECRET}@host:65536/db", "port"),
        (f"postgresql://u:{SECRET}@host:9999999999/db", "port"),
        (f"postgresql://u:{SECRET}@:5432/db", "host"),
        (f"postgresql://u:{SECRET}@[::1/db", "IPv6"),
        (f"postgresql://u:{SECRET} @host/db", "spaces"),
        (f"postgresql://u:{SECRET}@host/db?sslmode", "query"),
        (f"postgresql://u:{SECRET}@host/db?a=1&a=2", "once"),
        (f"postgresql://u:{SECRET}@host/db?connect_timeout=1", "connect_timeout"),
        (f"postgresql+psycopg://u:{SECRET}@host/db?nonsense=1", "libpq"),
        (f"redis://u:{SECRET}@host/name", "database"),
        (f"redis://u:{SECRET}@host,other/0", "one host"),
        (f"redis://u:{SECRET}@", "one host"),
        (f"redis://u:{SECRET}@host?max_connections=3", "max_connections"),
        (f"redis://u:{SECRET}@host?nonsense=3", "nonsense"),
        (f"redis://u:{SECRET}@host?socket_timeout=soon", "query"),
        (f"sqlite://u:{SECRET}@host/file", "host"),
        (f"tcp://u:{SECRET}@host:80", "user"),
        (f"tcp://:{SECRET}@host:80", "password"),
        ("tcp://host", "port"),
        ("tcp://host:80/path", "path"),
        ("tcp://host:80?a=b", "query"),
        (f"mysql://u:{SECRET}@host/db", "begin with"),
        (SECRET, "scheme"),
        (f"://{SECRET}", "scheme"),
        (b"redis://host", "string"),
    ],
)
def test_a_bad_url_is_refused_by_the_name_of_its_part_and_nothing_else_of_it_is_told(url: Any, part: str) -> None:
    with pytest.raises(ConfigurationError, match=part) as refusal:
        create_pool(url)
    assert SECRET not in "".join(traceback.format_exception(refusal.value))


def test_an_unknown_scheme_is_told_the_known_ones_and_how_to_install_them() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        create_pool("mysql://host/db")
    told = str(refusal.value)
    for scheme in (
        "postgresql://",
        "postgres://",
        "postgresql+psycopg://",
        "redis://",
        "rediss://",
        "sqlite://",
        "tcp://",
    ):
        assert scheme in told
    assert "pip install anyio-resilience[postgres]" in told
    assert "pip install anyio-resilience[sqlite]" in told
    assert "'mysql'" in told
    assert "register_adapter" in told


@pytest.mark.parametrize(
    ("url", "module", "package", "extra"),
    [
        ("postgresql://host/db", "postgres_asyncpg", "asyncpg", "postgres"),
        ("postgresql+psycopg://host/db", "postgres_psycopg", "psycopg", "postgres"),
        ("sqlite:///file", "sqlite", "aiosqlite", "sqlite"),
    ],
)
def test_a_missing_driver_is_told_with_the_extra_that_has_it(
    url: str, module: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"resilience.pool.adapters.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=rf"{package}: pip install anyio-resilience\[{extra}\]"):
        create_pool(url)


def test_a_driver_that_is_broken_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "resilience.pool.adapters.sqlite", raising=False)
    monkeypatch.setitem(sys.modules, "resilience.pool.adapters.address", None)
    with pytest.raises(ImportError):
        create_pool("sqlite:///file")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (f"postgresql://app:{SECRET}@db.example:5433/shop?application_name=x", "postgresql://db.example:5433/shop"),
        (f"postgres://app:{SECRET}@one:1,two/shop", "postgres://one:1,two/shop"),
        ("postgresql://[::1]:5433/shop", "postgresql://[::1]:5433/shop"),
        (f"POSTGRESQL+psycopg://app:{SECRET}@db/shop", "postgresql+psycopg://db/shop"),
        (f"redis://:{SECRET}@cache/3", "redis://cache/3"),
        (f"rediss://u:{SECRET}@cache", "rediss://cache"),
        ("sqlite:///shop.db", "sqlite:///shop.db"),
        ("sqlite:////var/shop.db?mode=ro", "sqlite:////var/shop.db"),
        ("sqlite://", "sqlite:///:memory:"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("tcp://127.0.0.1:80", "tcp://127.0.0.1:80"),
    ],
)
def test_a_pool_is_named_after_the_place_without_user_password_and_query(url: str, name: str) -> None:
    pool = create_pool(url)
    assert pool.name == name
    assert SECRET not in repr(pool)
    assert create_pool(url, name="db").name == "db"


def test_the_parts_of_a_url_are_decoded() -> None:
    address = parse_address("postgresql://a%40b:p%2Fq%3A@%2Frun%2Fpg/my%20db?application_name=a%26b")
    assert (address.user, address.password) == ("a@b", "p/q:")
    assert address.hosts == (("/run/pg", None),)
    assert address.path == "my db"
    assert address.query == {"application_name": "a&b"}
    assert "p/q" not in repr(address)
    assert parse_address("redis://:@host").password == ""
    assert parse_address("redis://host").password is None


@pytest.mark.parametrize(
    ("url", "options", "told"),
    [
        ("postgresql://host/db", {"max_sise": 3}, "max_sise must be one of .*did you mean max_size"),
        ("postgresql://host/db", {"reset_query": "DISCARD ALL"}, "reset_query must be one of"),
        ("postgresql://host/db", {"max_size": 0}, "max_size must be at least 1"),
        ("postgresql://host/db", {"connect_options": {"timeout": 1}}, "pool's connect_timeout decides"),
        ("postgresql://host/db", {"connect_options": {"password": SECRET}}, "the URL decides"),
        ("postgresql://host/db", {"connect_options": {"comand_timeout": 1}}, "did you mean command_timeout"),
        ("postgresql://host/db", {"connect_options": 3}, "connect_options must be a mapping"),
        ("postgresql://host/db", {"on_connect": print}, "on_connect must be an async function"),
        ("postgresql+psycopg://host/db", {"reset_query": " "}, "reset_query must be a statement"),
        ("postgresql+psycopg://host/db", {"reset_query": 3}, "reset_query must be a statement"),
        ("postgresql+psycopg://host/db", {"connect_options": {"password": SECRET}}, "the URL decides"),
        ("postgresql+psycopg://host/db", {"connect_options": {"nonsense": "1"}}, "libpq"),
        ("redis://host", {"connect_options": {"retry": None}}, "must not set retry"),
        ("redis://host", {"connect_options": {"nonsense": 1}}, "nonsense"),
        ("sqlite:///file", {"connect_options": {"uri": True}}, "must not set uri"),
        ("sqlite:///file", {"connect_options": {"nonsense": 1}}, "arguments of sqlite3.connect"),
        ("sqlite:///:memory:?mode=ro", {}, "no query"),
        ("sqlite:///:memory:", {"max_size": 2}, "max_size must be 1"),
        ("sqlite:///:memory:", {"max_lifetime": 60}, "max_lifetime must be None"),
        ("tcp://host:80", {"connect_options": {"remote_host": "x"}}, "the URL decides"),
        ("tcp://host:80", {"connect_options": {"tsl": True}}, "did you mean tls"),
    ],
)
def test_options_that_make_no_sense_are_refused_when_the_pool_is_made(
    url: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told) as refusal:
        create_pool(url, **options)
    assert SECRET not in "".join(traceback.format_exception(refusal.value))


def test_options_of_the_pool_are_fields_of_its_configuration_or_a_configuration() -> None:
    config = PoolConfig(max_size=7, max_idle=5)
    pool = create_pool("tcp://127.0.0.1:80", config=config, max_size=8)
    assert pool.config == PoolConfig(max_size=8, max_idle=5)
    assert create_pool("sqlite:///:memory:", config=config).config.max_size == 1


# --- adapters of others ---


class Link:
    """A connection of nobody's driver."""

    def __init__(self) -> None:
        self.was_closed = self.is_prepared = False


def link_adapter(url: str, *, connect_options: Mapping[str, Any], flavour: str = "plain") -> Adapter[Link]:
    async def connect() -> Link:
        if connect_options.get("broken"):
            raise PermissionError("no")
        return Link()

    async def close(link: Link) -> None:
        link.was_closed = True

    return Adapter(
        name=f"{flavour} link",
        connect=connect,
        close=close,
        check=lambda _: True,
        reset=lambda _: None,
        permanent_errors=lambda error: isinstance(error, PermissionError),
    )


@pytest.fixture(autouse=True)
def _own_schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create, "_registered", {})


@pytest.mark.anyio
async def test_a_registered_scheme_makes_pools_with_its_own_options() -> None:
    register_adapter("Link", link_adapter)
    register_adapter("link", link_adapter)  # again is of no consequence
    pool: ConnectionPool[Link] = create_pool("link://anywhere", flavour="sweet", max_size=2)
    assert pool.name == "sweet link"
    async with pool, pool.acquire() as link:
        assert not link.was_closed
    assert link.was_closed
    with pytest.raises(ConfigurationError, match="did you mean flavour"):
        create_pool("link://anywhere", flavor="sweet")
    with pytest.raises(ConfigurationError, match="link://"):
        create_pool("unknown://anywhere")


@pytest.mark.anyio
async def test_permanent_errors_of_an_adapter_reach_the_caller_at_once_and_unchanged(clock: VirtualClock) -> None:
    register_adapter("link", link_adapter)
    async with create_pool("link://x", connect_options={"broken": True}, clock=anyio.current_time) as pool:
        began = anyio.current_time()
        with pytest.raises(PermissionError):
            async with pool.acquire():
                pass
        assert anyio.current_time() == began


@pytest.mark.anyio
async def test_on_connect_prepares_each_connection_and_one_that_it_fails_is_closed() -> None:
    register_adapter("link", link_adapter)
    seen: list[Link] = []

    async def prepare(link: Link) -> None:
        seen.append(link)
        link.is_prepared = True
        if len(seen) == 1:
            raise ValueError("not yet")

    async with create_pool("link://x", on_connect=prepare, clock=anyio.current_time) as pool:
        async with pool.acquire() as link:
            assert link.is_prepared
        assert [one.was_closed for one in seen] == [True, False]


def test_a_scheme_has_one_adapter() -> None:
    register_adapter("link", link_adapter)
    with pytest.raises(ConfigurationError, match="'link'"):
        register_adapter("link", lambda url, *, connect_options: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigurationError, match="'redis'"):
        register_adapter("redis", link_adapter)
    with pytest.raises(ConfigurationError, match="scheme"):
        register_adapter("link://", link_adapter)
    with pytest.raises(ConfigurationError, match="factory"):
        register_adapter("other", 3)  # type: ignore[arg-type]


def test_a_factory_must_give_an_adapter() -> None:
    register_adapter("link", lambda url, *, connect_options: 3)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigurationError, match="must give an Adapter, got 'int'"):
        create_pool("link://x")


def test_a_factory_may_take_whatever_it_likes() -> None:
    def greedy(url: str, *, connect_options: Mapping[str, Any], **anything: Any) -> Adapter[Link]:
        assert anything == {"one": 1}
        return link_adapter(url, connect_options=connect_options)

    register_adapter("link", greedy)
    assert create_pool("link://x", one=1, max_size=3).config.max_size == 3


# --- secrets ---


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg", "redis", "rediss"])
async def test_no_password_is_told_when_nothing_listens(scheme: str) -> None:
    """In no event, error, repr or traceback."""
    with capture() as events:
        async with create_pool(f"{scheme}://app:{SECRET}@127.0.0.1:1/0", reconnect_base=0.01) as pool:
            with pytest.raises(TimeoutError) as refusal:
                async with pool.acquire(timeout=0.2):
                    pass
    assert refusal.value.__cause__ is not None
    told = "".join(traceback.format_exception(refusal.value)) + repr(pool) + repr(events)
    assert "127.0.0.1:1" in told
    assert SECRET not in told
