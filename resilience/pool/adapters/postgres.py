"""What the adapters of PostgreSQL's drivers share."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlencode

from .adapter import refuse_options
from .address import Address, parse_address

PERMANENT: Final = ("0A", "22", "28", "3D", "42")
"""Classes of SQLSTATE that last: not supported, bad value of a setting, authentication, unknown database, no privilege
or unknown setting. "Too many connections" (53) and "starting up" (57) pass."""
_DECIDED_IN_URL: Final = {"connect_timeout": "the pool's connect_timeout"}
DECIDED: Final = {
    **dict.fromkeys(("dsn", "conninfo", "host", "port", "user", "password", "database", "dbname"), "the URL"),
    **dict.fromkeys(("timeout", "connect_timeout"), "the pool's connect_timeout"),
    "loop": "the running program",
}


def parse_url(url: str) -> tuple[Address, str, str | None]:
    """Give where a URL leads, the URL for the driver, and the password that the driver gets apart from it.

    No error of a driver's parser can show the password then.

    Raises:
        ConfigurationError: a part of the URL that makes no sense.
    """
    address = parse_address(url)
    refuse_options(address.query, _DECIDED_IN_URL, "url")
    query = dict(address.query)
    password = query.pop("password", address.password)
    user = "" if address.user is None else f"{quote(address.user, safe='')}@"
    # A host may be the folder of a Unix socket, with its slashes encoded.
    hosts = ",".join(
        f"{f'[{host}]' if ':' in host else quote(host, safe='')}{f':{port}' if port else ''}"
        for host, port in address.hosts
    )
    options = f"?{urlencode(query, quote_via=quote)}" if query else ""
    return address, f"postgresql://{user}{hosts}/{quote(address.path, safe='')}{options}", password
