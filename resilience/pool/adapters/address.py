"""URLs of servers, taken apart without ever showing a password.

No value of a URL is repeated in an error: where a password was not percent-encoded, any other part may be a piece of
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, quote, unquote

from resilience.checks import shown
from resilience.errors import ConfigurationError

_HINT: Final = "in a user or password, write : / ? # [ ] @ % in percent-encoding, see urllib.parse.quote"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a URL leads.

    Attributes:
        scheme: in lower case.
        hosts: host and port, as often as they are named; the port is None where none is.
        user, password: decoded, None where there is none.
        path: decoded, without the first slash.
        query: its decoded names and values.
    """

    scheme: str
    hosts: tuple[tuple[str, int | None], ...]
    user: str | None = field(repr=False)
    password: str | None = field(repr=False)
    path: str
    query: Mapping[str, str] = field(repr=False)

    def __str__(self) -> str:
        """Tell the place: without user, password and query."""
        hosts = ",".join(
            f"{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}" for host, port in self.hosts
        )
        return f"{self.scheme}://{hosts}{f'/{quote(self.path)}' if self.path else ''}"

    def one_host(self, default_port: int | None = None) -> tuple[str, int]:
        """Give the only host, and its port.

        Raises:
            ConfigurationError: there is none, or there are several; or no port, and no default either.
        """
        if len(self.hosts) != 1:
            how_many = "several" if self.hosts else "none"
            raise ConfigurationError(f"url must name one host, as in {self.scheme}://host:port, got {how_many}")
        host, port = self.hosts[0]
        port = port or default_port
        if port is None:
            raise ConfigurationError(f"url must name a port, as in {self.scheme}://host:port")
        return host, port


def parse_scheme(url: object) -> str:
    """Give the scheme of a URL in lower case.

    Raises:
        ConfigurationError: not a string, or without "://".
    """
    if not isinstance(url, str):
        raise ConfigurationError(f"url must be a string, got {shown(type(url).__name__)}")
    scheme, separator, _ = url.partition("://")
    if not separator or not scheme:
        raise ConfigurationError("url must begin with a scheme, as in postgresql://host/database")
    return scheme.lower()


def parse_address(url: str) -> Address:
    """Take a URL apart.

    Raises:
        ConfigurationError: names the part that makes no sense.
    """
    scheme = parse_scheme(url)
    rest = url.partition("://")[2]
    if any(character.isspace() or not character.isprintable() for character in rest):
        raise ConfigurationError(f"url must have no spaces or control characters ({_HINT})")
    if "#" in rest:
        raise ConfigurationError(f"url must have no fragment ({_HINT})")
    rest, _, query = rest.partition("?")
    place, _, path = rest.partition("/")
    credentials, has_credentials, hosts = place.rpartition("@")
    user, has_password, password = credentials.partition(":")
    if "@" in query or (hosts and "@" in path):
        raise ConfigurationError(f"url must have its host before the path and the query ({_HINT})")
    return Address(
        scheme=scheme,
        hosts=tuple(_parse_host(host) for host in hosts.split(",")) if hosts else (),
        user=unquote(user) if has_credentials and user else None,
        password=unquote(password) if has_password else None,
        path=unquote(path),
        query=_parse_query(query),
    )


def _parse_host(text: str) -> tuple[str, int | None]:
    if text.startswith("["):
        host, closed, after = text[1:].partition("]")
        colon, port = after[:1], after[1:]
        if not closed or colon not in {"", ":"}:
            raise ConfigurationError("url must have an IPv6 host in brackets, as in [::1]:5432")
    else:
        host, colon, port = text.partition(":")
    host = unquote(host)
    if not host or any(character in host for character in "@[]?#"):
        raise ConfigurationError(f"url must name a host, as in scheme://host:port ({_HINT})")
    return host, _parse_port(port) if colon and port else None


def _parse_port(text: str) -> int:
    port = int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0
    if not 1 <= port <= 65_535:
        raise ConfigurationError(f"url must have a port from 1 to 65,535 ({_HINT})")
    return port


def _parse_query(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True) if text else []
    except ValueError:
        raise ConfigurationError(f"url must have a query of name=value pairs ({_HINT})") from None
    query = dict(pairs)
    if len(query) < len(pairs):
        raise ConfigurationError("url must name each option of its query once")
    return query
