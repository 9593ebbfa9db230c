"""A decision in the words of HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from resilience import ConfigurationError
from resilience.rate_limiter import Decision, Quota, rate_limit_headers, retry_after_header

ADMITTED = Decision(True, 100, 42, None, 17.2, Quota(100, 60), "memory", granted=1)
REFUSED = Decision(False, 100, 0, 2.5, 58.9, Quota(100, 60), "redis")
NEVER = Decision(False, 100, 3, None, 58.9, Quota(100, 60), "redis", never=True)


def test_an_admission_tells_the_limit_and_what_is_left() -> None:
    assert rate_limit_headers(ADMITTED) == {
        "RateLimit-Policy": '"default";q=100;w=60',
        "RateLimit": '"default";r=42;t=18',
    }


def test_a_refusal_tells_when_to_come_back() -> None:
    assert rate_limit_headers(REFUSED) == {
        "RateLimit-Policy": '"default";q=100;w=60',
        "RateLimit": '"default";r=0;t=3',
        "Retry-After": "3",
    }


def test_what_can_never_pass_is_not_asked_back() -> None:
    assert rate_limit_headers(NEVER) == {
        "RateLimit-Policy": '"default";q=100;w=60',
        "RateLimit": '"default";r=3;t=59',
    }


def test_the_older_draft_has_three_headers() -> None:
    assert rate_limit_headers(ADMITTED, version="draft-06") == {
        "RateLimit-Limit": "100",
        "RateLimit-Remaining": "42",
        "RateLimit-Reset": "18",
    }
    assert rate_limit_headers(REFUSED, version="draft-06") == {
        "RateLimit-Limit": "100",
        "RateLimit-Remaining": "0",
        "RateLimit-Reset": "3",
        "Retry-After": "3",
    }


@pytest.mark.parametrize("name", ["a", "per-user", "api.v1_search:burst/2", "x" * 64])
def test_a_policy_has_a_name(name: str) -> None:
    headers = rate_limit_headers(ADMITTED, name=name)
    assert headers["RateLimit-Policy"].startswith(f'"{name}";')
    assert headers["RateLimit"].startswith(f'"{name}";')


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 65,
        'a"b',
        "a b",
        "a\r\nSet-Cookie: x",
        "a;b",
        "é",
        "a\n",
        None,
    ],
)
def test_a_name_that_would_break_a_header_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        rate_limit_headers(ADMITTED, name=name)
    assert str(refused.value) == f"name must be 1 to 64 letters, digits and _.:/-, got {name!r}"


@pytest.mark.parametrize("version", ["draft-12", "", None, 11])
def test_an_unknown_version_is_refused(version: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        rate_limit_headers(ADMITTED, version=version)
    assert str(refused.value) == f"version must be 'draft-11' or 'draft-06', got {version!r}"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.000001, "1"), (0.5, "1"), (1.0, "1"), (1.000001, "2"), (3_600.0, "3600")]
)
def test_times_are_whole_seconds_and_never_too_early(seconds: float, shown: str) -> None:
    refused = REFUSED._replace(retry_after=seconds)
    assert retry_after_header(refused) == {"Retry-After": shown}
    assert rate_limit_headers(refused)["RateLimit"].endswith(f";t={shown}")


def test_only_a_refusal_with_a_time_has_retry_after() -> None:
    assert retry_after_header(ADMITTED) == {}
    assert retry_after_header(NEVER) == {}
    assert retry_after_header(ADMITTED._replace(source="shadow", retry_after=3.0)) == {}


def test_a_window_of_less_than_a_second_is_shown_as_one() -> None:
    decision = ADMITTED._replace(quota=Quota(5, 0.25), limit=5, reset_after=0.0)
    assert rate_limit_headers(decision) == {"RateLimit-Policy": '"default";q=5;w=1', "RateLimit": '"default";r=42;t=0'}
