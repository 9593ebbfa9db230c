"""The limiter that programs hold, on the embedded store: every way to ask, on asyncio, on trio and in plain code."""

from __future__ import annotations

import gc
import inspect
import pickle
import threading
from collections.abc import Awaitable, Callable
from typing import Any, cast

import anyio
import pytest

from resilience import ConfigurationError, RateLimitedError
from resilience.events import Event, LimitNear, LimitRejected, capture
from resilience.rate_limiter import Decision, MemoryStore, Quota, RateLimiter
from resilience.testing import VirtualClock

LONGEST = 10 * 366 * 86_400


class Both:
    """A limiter whose every method is asked in both ways; each has a limiter of its own, so both must say the same."""

    def __init__(self, quotas: Any, **options: Any) -> None:
        given: dict[str, Any] = {"name": "search", "wall_clock": anyio.current_time} | options
        self.sync = RateLimiter(quotas, clock=anyio.current_time, **given)
        self.asynchronous = RateLimiter(quotas, clock=anyio.current_time, **given)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def ask(*args: Any, **options: Any) -> Any:
            awaited = await getattr(self.asynchronous, name)(*args, **options)
            assert getattr(self.sync, f"{name}_sync")(*args, **options) == awaited
            return awaited

        return ask


def facts(decision: Decision) -> tuple[bool, int, float | None]:
    return decision.allowed, decision.remaining, decision.retry_after


def limiter(quotas: Any = "5/s", **options: Any) -> RateLimiter:
    """Make a limiter whose time stands still unless it is given a clock."""
    clock = options.pop("clock", None) or VirtualClock(autojump=False)
    given: dict[str, Any] = {"name": "search", "clock": clock, "wall_clock": clock} | options
    return RateLimiter(quotas, **given)


# --- asking ---


@pytest.mark.anyio
async def test_calls_are_admitted_until_the_limit_and_again_when_it_has_drained() -> None:
    both = Both("2/s")
    assert facts(await both.try_acquire("ann")) == (True, 1, None)
    assert facts(await both.try_acquire("ann")) == (True, 0, None)
    assert facts(await both.try_acquire("ann")) == (False, 0, 0.5)
    assert facts(await both.try_acquire("bob")) == (True, 1, None)
    await anyio.sleep(0.5)
    assert facts(await both.try_acquire("ann")) == (True, 0, None)


@pytest.mark.anyio
async def test_trying_takes_no_time() -> None:
    both = Both("1/hour")
    before = anyio.current_time()
    for _ in range(10):
        await both.try_acquire()
        await both.at_most()
        await both.peek()
        await both.refund()
        await both.reset()
        await both.block("ann", 5)
    assert anyio.current_time() == before


@pytest.mark.anyio
async def test_a_decision_tells_everything_about_an_admission() -> None:
    quota = Quota(10, 5, burst=4)
    decision = await Both(quota).try_acquire("ann", 3)
    assert decision == Decision(
        allowed=True,
        limit=10,
        remaining=1,
        retry_after=None,
        reset_after=1.5,
        quota=quota,
        source="memory",
        certain=True,
        never=False,
        granted=3,
    )
    assert bool(decision) is True


@pytest.mark.anyio
async def test_a_decision_tells_everything_about_a_refusal() -> None:
    both = Both("10/5s")
    await both.try_acquire("ann", 9)
    decision = await both.try_acquire("ann", 3)
    assert decision == Decision(
        allowed=False,
        limit=10,
        remaining=1,
        retry_after=1.0,
        reset_after=4.5,
        quota=Quota(10, 5),
        source="memory",
        certain=True,
        never=False,
        granted=0,
    )
    assert bool(decision) is False
    assert pickle.loads(pickle.dumps(decision)) == decision


@pytest.mark.anyio
async def test_as_much_as_there_is_is_granted() -> None:
    both = Both("10/s")
    assert (await both.at_most("ann", 4)).granted == 4
    assert (await both.at_most("ann", 100)).granted == 6
    refused = await both.at_most("ann", 100)
    assert (refused.allowed, refused.granted, refused.retry_after) == (False, 0, 0.1)
    assert (await both.at_most("bob")).granted == 1


@pytest.mark.anyio
async def test_a_look_tells_what_a_call_would_get() -> None:
    both = Both("3/s")
    assert facts(await both.peek("ann")) == (True, 3, None)
    assert (await both.peek("ann", 3)).granted == 0
    await both.try_acquire("ann", 3)
    assert facts(await both.peek("ann")) == (False, 0, 0.333334)
    assert (await both.peek("ann", 4)).never


@pytest.mark.anyio
async def test_what_was_not_used_is_given_back() -> None:
    both = Both("3/s")
    await both.try_acquire("ann", 3)
    back = await both.refund("ann", 2)
    assert (back.allowed, back.remaining, back.granted) == (True, 2, 0)
    assert (await both.refund("ann")).remaining == 3
    assert (await both.refund("nobody", 1_000)).remaining == 3


@pytest.mark.anyio
async def test_a_reset_key_is_as_new() -> None:
    both = Both("3/hour")
    await both.try_acquire("ann", 3)
    await both.block("ann", 50)
    assert await both.reset("ann") is None
    assert facts(await both.try_acquire("ann", 3)) == (True, 0, None)
    await both.reset("nobody")


@pytest.mark.anyio
async def test_a_blocked_key_is_refused_until_the_block_ends() -> None:
    both = Both("3/s")
    assert await both.block("ann", 7.5) is None
    assert facts(await both.try_acquire("ann")) == (False, 3, 7.5)
    assert facts(await both.peek("ann")) == (False, 3, 7.5)
    assert facts(await both.at_most("ann")) == (False, 3, 7.5)
    assert facts(await both.refund("ann")) == (False, 3, 7.5)
    assert facts(await both.try_acquire("bob")) == (True, 2, None)
    await anyio.sleep(7.5)
    assert facts(await both.try_acquire("ann")) == (True, 2, None)
    await both.block("ann", 7.5)
    await both.block("ann", 0)
    assert (await both.try_acquire("ann")).allowed


@pytest.mark.anyio
async def test_the_key_of_all_together_is_a_key_like_others() -> None:
    both = Both("2/s")
    assert (await both.try_acquire()).remaining == 1
    assert (await both.try_acquire("")).remaining == 0
    assert (await both.try_acquire("ann")).remaining == 1


@pytest.mark.anyio
async def test_a_limiter_is_a_context_manager_that_can_be_used_again() -> None:
    one = RateLimiter("1/hour", name="search", clock=anyio.current_time)
    async with one as entered:
        assert entered is one
        await one.try_acquire()
    await one.aclose()
    await one.aclose()
    assert not await one.try_acquire()


def test_the_default_clocks_are_real() -> None:
    one = RateLimiter([Quota(1, 86_400), Quota(5, 86_400, algorithm="fixed_window")], name="search")
    assert one.try_acquire_sync()
    refused = one.try_acquire_sync()
    assert not refused
    assert refused.retry_after == pytest.approx(86_400, abs=60)


def test_ways_in_sync_code_have_the_same_arguments() -> None:
    for name in ("try_acquire", "at_most", "peek", "refund", "reset", "block", "acquire"):
        parameters = [
            inspect.signature(getattr(RateLimiter, way)).parameters.values() for way in (name, f"{name}_sync")
        ]
        assert list(parameters[0]) == list(parameters[1])


# --- keys ---

ODD_KEYS: list[str | bytes] = [
    *(
        "",
        " ",
        "\n",
        "a\r\nSET x y\r\n",
        "{tag}",
        "{}",
        "}{",
        "a:b",
        "*",
        "\0",
        "\x00\xff",
        "ключ",
        "🔑",
        "\ud800",
        "\udcff",
    ),
    *("x" * 64, "x" * 65, "x" * 66, "é" * 64, "\ud800" * 100, "y" * 1_000_000),
    *(b"\xff\xfe", b"\x80" * 65, b"z" * 1_000_000),
]


def test_any_string_is_a_key_of_its_own() -> None:
    one = limiter("2/hour", store=MemoryStore(1_000))
    for _ in range(2):
        for key in ODD_KEYS:
            if key != b"\xff\xfe":
                assert one.try_acquire_sync(key), ascii(key)[:50]
    assert not any(one.try_acquire_sync(key) for key in ODD_KEYS if key != b"\xff\xfe")


def test_bytes_and_the_text_that_they_spell_are_one_key() -> None:
    one = limiter("2/hour")
    assert one.try_acquire_sync("schlüssel")
    assert one.try_acquire_sync("schlüssel".encode())
    assert not one.try_acquire_sync("schlüssel")


def test_long_keys_are_told_apart_and_found_again_by_every_method() -> None:
    one = limiter("2/hour")
    long = ["k" * 1_000 + end for end in "ab"]
    one.try_acquire_sync(long[0], 2)
    assert not one.peek_sync(long[0])
    assert one.peek_sync(long[1])
    one.refund_sync(long[0])
    assert one.at_most_sync(long[0], 5).granted == 1
    one.reset_sync(long[0])
    one.block_sync(long[0], 5)
    assert one.try_acquire_sync(long[0]).retry_after == 5
    with pytest.raises(RateLimitedError, match="blocked"):
        one.acquire_sync(long[0])


def test_a_long_key_is_not_kept(clock: VirtualClock) -> None:
    store = MemoryStore()
    one = limiter("2/hour", store=store, clock=clock)
    one.try_acquire_sync("k" * 1_000_000)
    one.block_sync("b" * 1_000_000, 50)
    sizes = [
        len(found) for found in gc.get_objects() if isinstance(found, dict) for found in found if isinstance(found, str)
    ]
    assert max(sizes) < 1_000_000


@pytest.mark.parametrize("key", [None, 5, 1.5, ("ann",), object(), bytearray(b"ann")])
@pytest.mark.parametrize("way", ["try_acquire", "at_most", "peek", "refund", "reset", "acquire"])
def test_what_is_no_key_is_refused(key: Any, way: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        getattr(limiter(), f"{way}_sync")(key)
    assert str(refused.value) == f"key must be a string or bytes, got {type(key).__name__!r}"


# --- costs ---

COSTS = [
    (-1, "must be at least 0, got -1"),
    (1_000_000_001, "must be at most 1,000,000,000, got 1000000001"),
    (10**30, f"must be at most 1,000,000,000, got {10**30}"),
    (True, "must be an int, got True"),
    (1.0, "must be an int, got 1.0"),
    ("1", "must be an int, got '1'"),
    (None, "must be an int, got None"),
]


@pytest.mark.parametrize(("cost", "rule"), COSTS)
@pytest.mark.parametrize("way", ["try_acquire", "at_most", "peek", "refund", "acquire"])
def test_a_cost_is_a_whole_number_of_units(cost: Any, rule: str, way: str) -> None:
    one = limiter()
    with pytest.raises(ConfigurationError) as refused:
        getattr(one, f"{way}_sync")("ann", cost)
    assert str(refused.value) == f"cost {rule}"
    assert one.peek_sync("ann").remaining == 5


@pytest.mark.anyio
@pytest.mark.parametrize(("cost", "rule"), COSTS)
@pytest.mark.parametrize("way", ["try_acquire", "at_most", "peek", "refund", "acquire"])
async def test_async_ways_refuse_the_same_costs(cost: Any, rule: str, way: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        await getattr(limiter(), way)("ann", cost)
    assert str(refused.value) == f"cost {rule}"


def test_the_largest_cost_can_never_pass_a_small_limit() -> None:
    decision = limiter().try_acquire_sync("ann", 1_000_000_000)
    assert (decision.never, decision.retry_after, decision.remaining) == (True, None, 5)
    assert limiter().at_most_sync("ann", 1_000_000_000).granted == 5


def test_a_subclass_of_int_is_a_cost() -> None:
    class Units(int):
        pass

    assert limiter().try_acquire_sync("ann", Units(3)).remaining == 2


@pytest.mark.parametrize(
    ("seconds", "rule"),
    [
        (-1, "must be at least 0, got -1"),
        (float("nan"), "must be finite, got nan"),
        (float("inf"), "must be finite, got inf"),
        (LONGEST + 1, "must be at most 3.16224e+08, got 316224001"),
        ("5", "must be a number, got '5'"),
        (None, "must be a number, got None"),
        (True, "must be a number, got True"),
    ],
)
def test_a_block_has_a_length(seconds: Any, rule: str) -> None:
    one = limiter()
    with pytest.raises(ConfigurationError) as refused:
        one.block_sync("ann", seconds)
    assert str(refused.value) == f"seconds {rule}"
    assert one.try_acquire_sync("ann")


def test_the_longest_block_holds() -> None:
    one = limiter()
    one.block_sync("ann", LONGEST)
    assert one.try_acquire_sync("ann").retry_after == LONGEST


# --- configuration ---


async def async_clock() -> float:
    return 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name must be a non-empty string, got ''"),
        ({"name": None}, "name must be a non-empty string, got None"),
        ({"fallback": "hope"}, "fallback must be one of share, open, closed, got 'hope'"),
        ({"fallback": None}, "fallback must be one of share, open, closed, got None"),
        ({"shadow": 1}, "shadow must be True or False, got 1"),
        ({"shadow": None}, "shadow must be True or False, got None"),
        ({"max_waiting": -1}, "max_waiting must be at least 0, got -1"),
        ({"max_waiting": 1.5}, "max_waiting must be an int, got 1.5"),
        ({"max_waiting": True}, "max_waiting must be an int, got True"),
        ({"clock": 5}, "clock must be a function, got 5"),
        ({"wall_clock": None}, "wall_clock must be a function, got None"),
        (
            {"store": "redis://user:secret@host"},
            "store must be a MemoryStore or a RedisStore, got 'str': wrap a URL or a client, RedisStore(...)",
        ),
        (
            {"store": MemoryStore},
            "store must be a MemoryStore or a RedisStore, got 'type': wrap a URL or a client, RedisStore(...)",
        ),
        ({"hash_keys": None}, "hash_keys must be True, False or a secret of bytes, got NoneType"),
        ({"hash_keys": "secret"}, "hash_keys must be True, False or a secret of bytes, got str"),
        ({"hash_keys": b""}, "hash_keys must be 1 to 64 bytes, or True or False, got 0 bytes"),
        ({"hash_keys": b"x" * 65}, "hash_keys must be 1 to 64 bytes, or True or False, got 65 bytes"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        RateLimiter("5/s", **({"name": "search"} | options))
    assert str(refused.value) == message


@pytest.mark.parametrize("clock", ["clock", "wall_clock"])
def test_a_clock_that_has_to_be_awaited_is_refused(clock: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{clock} must be a plain function, got the async "):
        RateLimiter("5/s", name="search", **cast("Any", {clock: async_clock}))


def test_quotas_are_checked_and_shown_in_their_order() -> None:
    assert limiter("1000/hour; 10/min").quotas == (Quota(10, 60), Quota(1_000, 3_600))
    with pytest.raises(ConfigurationError, match="quota must be such as"):
        limiter("many")
    with pytest.raises(TypeError):
        RateLimiter("5/s")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("max_keys", "spill", "message"),
    [
        (0, True, "max_keys must be at least 1, got 0"),
        (-5, True, "max_keys must be at least 1, got -5"),
        (10_000_001, True, "max_keys must be at most 10,000,000, got 10000001"),
        (None, True, "max_keys must be an int, got None"),
        (True, True, "max_keys must be an int, got True"),
        (10, 1, "spill must be True or False, got 1"),
        (10, None, "spill must be True or False, got None"),
    ],
)
def test_a_store_that_makes_no_sense_is_refused(max_keys: Any, spill: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        MemoryStore(max_keys, spill=spill)
    assert str(refused.value) == message


def test_a_limiter_shows_what_it_enforces_and_where() -> None:
    one = limiter("10/s burst 20; 100/min")
    assert repr(one) == "<RateLimiter 'search' 10 per 1 s burst 20; 100 per 60 s, in memory>"
    assert one.name == "search"


def test_a_store_shows_how_full_it_is() -> None:
    store = MemoryStore(7)
    assert repr(store) == "<MemoryStore 0 of 7 keys>"
    limiter(store=store).try_acquire_sync("ann")
    assert repr(store) == "<MemoryStore 1 of 7 keys>"
    assert len(store) == 1


def test_keys_are_not_shown() -> None:
    store = MemoryStore()
    one = limiter(store=store)
    one.try_acquire_sync("secret-of-ann", 4)
    with capture() as events:
        one.try_acquire_sync("secret-of-ann")
        refused = one.try_acquire_sync("secret-of-ann")
    with pytest.raises(RateLimitedError) as error:
        one.acquire_sync("secret-of-ann", timeout=0)
    assert events
    for shown in (one, store, refused, events, error.value, str(error.value), [event.as_dict() for event in events]):
        assert "secret" not in repr(shown)


# --- shadow mode ---


@pytest.mark.anyio
async def test_30_in_shadow_mode_everything_passes_and_is_told() -> None:
    both = Both("5/hour", shadow=True)
    await both.try_acquire("ann", 5)
    with capture(LimitRejected) as rejected:
        decision = await both.try_acquire("ann", 2)
    assert (decision.allowed, decision.source, decision.granted, decision.remaining) == (True, "shadow", 2, 0)
    assert [(event.reason, event.source) for event in rejected] == [("shadow", "memory")] * 2
    assert (await both.at_most("ann", 2)).granted == 2
    assert (await both.try_acquire("ann", 6)).never
    assert (await both.try_acquire("ann", 6)).allowed


@pytest.mark.anyio
async def test_in_shadow_mode_nobody_gets_less_than_asked_for() -> None:
    both = Both("5/hour", shadow=True)
    assert (await both.at_most("ann", 8)).granted == 8


@pytest.mark.anyio
async def test_shadow_mode_charges_what_would_have_passed() -> None:
    both = Both("5/hour", shadow=True)
    assert (await both.try_acquire("ann", 3)).source == "memory"
    assert (await both.try_acquire("ann", 3)).source == "shadow"
    assert (await both.try_acquire("ann", 2)).source == "memory"


# --- events ---


def heard(kind: type[Event], act: Callable[[], object]) -> list[dict[str, object]]:
    with capture(kind) as events:
        act()
    return [event.as_dict() for event in events]


def test_31_a_limit_is_near_when_less_than_a_fifth_is_left(clock: VirtualClock) -> None:
    one = limiter("5/hour", clock=clock)
    one.try_acquire_sync("ann", 2)
    with capture(LimitNear, LimitRejected) as events:
        for _ in range(5):
            one.try_acquire_sync("ann")
    assert [type(event).__name__ for event in events] == ["LimitNear", "LimitRejected", "LimitRejected"]
    near = events[0]
    assert isinstance(near, LimitNear)
    assert (near.name, near.remaining, near.limit, near.severity) == ("search", 0, 5, "debug")


@pytest.mark.parametrize(("used", "near"), [(15, False), (16, False), (17, True), (20, True)])
def test_nearness_is_that_of_the_burst(used: int, near: bool) -> None:
    one = limiter("100/hour burst 20")
    assert bool(heard(LimitNear, lambda: one.try_acquire_sync("ann", used))) == near


def test_looks_and_refunds_are_no_news() -> None:
    one = limiter("5/hour")
    one.try_acquire_sync("ann", 5)
    with capture() as events:
        one.peek_sync("ann")
        one.try_acquire_sync("ann", 0)
        one.refund_sync("ann")
        one.try_acquire_sync("ann", 0)
        one.reset_sync("ann")
        one.block_sync("ann", 5)
    assert events == []


def test_a_refusal_is_told_with_its_reason(clock: VirtualClock) -> None:
    clock.advance(12)
    one = limiter("5/10s", clock=clock)
    one.try_acquire_sync("ann", 5)
    (event,) = heard(LimitRejected, lambda: one.try_acquire_sync("ann"))
    expected = {
        "limit": 5,
        "per": 10,
        "retry_after": 2.0,
        "source": "memory",
        "reason": "limit",
        "name": "search",
        "at": 12.0,
    }
    assert {name: event[name] for name in expected} == expected
    (event,) = heard(LimitRejected, lambda: one.try_acquire_sync("ann", 6))
    assert (event["reason"], event["retry_after"]) == ("never", None)
    (event,) = heard(LimitRejected, lambda: one.at_most_sync("ann", 6))
    assert (event["reason"], event["retry_after"]) == ("limit", 2.0)
    one.block_sync("ann", 100)
    (event,) = heard(LimitRejected, lambda: one.try_acquire_sync("ann"))
    assert event["retry_after"] == 100.0


def test_under_several_rules_the_one_that_refuses_is_told() -> None:
    one = limiter("5/10s; 6/hour")
    one.try_acquire_sync("ann", 5)
    assert [(e["limit"], e["per"]) for e in heard(LimitRejected, lambda: one.try_acquire_sync("ann", 2))] == [
        (6, 3_600)
    ]


def test_a_sink_that_raises_harms_no_call() -> None:
    from resilience import subscribe

    def sink(_: Event) -> None:
        raise OSError

    one = limiter("1/hour")
    with subscribe(sink, LimitRejected, LimitNear):
        assert one.try_acquire_sync("ann")
        assert not one.try_acquire_sync("ann")


# --- limiters together ---


def test_limiters_of_one_name_on_one_store_share_their_limits() -> None:
    store = MemoryStore()
    one, other = limiter(store=store), limiter(store=store)
    assert one.try_acquire_sync("ann", 3)
    assert other.try_acquire_sync("ann").remaining == 1
    other.reset_sync("ann")
    assert one.peek_sync("ann").remaining == 5


def test_limiters_of_other_names_and_stores_do_not() -> None:
    store = MemoryStore()
    limiter(store=store).try_acquire_sync("ann", 5)
    assert limiter(store=store, name="other").peek_sync("ann").remaining == 5
    assert limiter(store=MemoryStore()).peek_sync("ann").remaining == 5
    assert limiter().peek_sync("ann").remaining == 5


def test_one_name_with_other_quotas_on_one_store_is_refused() -> None:
    store = MemoryStore()
    first = limiter("5/s; 10/min", store=store)
    limiter("10/min; 5/s", store=store)
    with pytest.raises(ConfigurationError) as refused:
        limiter("6/s", store=store)
    assert str(refused.value) == (
        "quotas of limiter 'search' must be those it has on this store already, 5 per 1 s; 10 per 60 s, got 6 per 1 s"
    )
    assert first.try_acquire_sync("ann")


@pytest.mark.parametrize(
    "quota",
    [Quota(1_000, 3_600), Quota(1_000, 86_400, algorithm="fixed_window"), Quota(1_000, 3_600, algorithm="sliding_log")],
    ids=str,
)
def test_threads_together_get_no_more_than_the_limit(quota: Quota) -> None:
    one = limiter(quota)
    granted: list[int] = []

    def ask() -> None:
        granted.append(sum(one.try_acquire_sync("ann", cost).granted for cost in [1, 2, 3] * 100))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 998 <= sum(granted) <= 1_000
