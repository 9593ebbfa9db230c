"""The embedded store: bounded for ever, no sweep, and no amnesty for those who flood it with keys."""

from __future__ import annotations

import random
import sys
import threading
import tracemalloc
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from zlib import crc32

import pytest

from resilience import ConfigurationError, RateLimitedError
from resilience.events import KeysSpilled, capture
from resilience.rate_limiter import MemoryStore, Quota, RateLimiter
from resilience.rate_limiter import keys as keys_module
from resilience.rate_limiter import memory as memory_module
from resilience.testing import VirtualClock
from tests.rate_limiter.cases import log, window

ALGORITHMS = [Quota(10, 3_600), log(10, 3_600), window(10, 3_600)]
each_algorithm = pytest.mark.parametrize("quota", ALGORITHMS, ids=["gcra", "log", "window"])


@pytest.fixture(autouse=True)
def _the_same_hashes_in_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def hash_of(value: object) -> int:
        text = repr(value).encode()
        return crc32(text) << 32 | crc32(text[::-1], 7)

    monkeypatch.setattr(keys_module, "hash", hash_of, raising=False)


class Made:
    """Makes limiters on one store and one clock that stands still."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock

    def __call__(self, quotas: Any, store: MemoryStore, name: str = "search") -> RateLimiter:
        return RateLimiter(quotas, name=name, store=store, clock=self.clock, wall_clock=self.clock)


@pytest.fixture
def made(clock: VirtualClock) -> Made:
    return Made(clock)


def held(one: RateLimiter) -> set[str]:
    return set(one._space._keys.states)


# --- the bound ---


@each_algorithm
@pytest.mark.parametrize("spill", [True, False])
def test_no_flood_makes_a_store_larger_than_it_may_be(quota: Quota, spill: bool, made: Made) -> None:
    store = MemoryStore(50, spill=spill)
    one = made(quota, store)
    for number in range(500):
        one.try_acquire_sync(f"key{number}")
        made.clock.advance(0.1)
        assert len(store) == min(number + 1, 50)
        assert len(held(one)) == len(store)


def test_every_way_to_ask_keeps_to_the_bound(made: Made) -> None:
    store = MemoryStore(5)
    one = made("10/hour", store)
    for number in range(100):
        for way in ("try_acquire", "at_most", "peek", "refund", "reset"):
            getattr(one, f"{way}_sync")(f"{way}{number}")
        with suppress(RateLimitedError):
            one.acquire_sync(f"acquire{number}", timeout=0)
        one.block_sync(f"blocked{number}", 50)
        assert len(store) <= 5
        assert len(one._space.blocks) <= 5


def test_a_store_of_one_key_works(made: Made) -> None:
    one = made("2/hour", MemoryStore(1))
    assert [bool(one.try_acquire_sync(key)) for key in "abababab"] == [True] * 4 + [False] * 4


def test_looks_and_costs_of_nothing_take_no_place(made: Made) -> None:
    store = MemoryStore(5)
    one = made("10/hour", store)
    for number in range(10):
        one.peek_sync(f"{number}")
        one.try_acquire_sync(f"{number}", 0)
        one.at_most_sync(f"{number}", 0)
        one.try_acquire_sync(f"{number}", 11)
        one.refund_sync(f"{number}")
        one.reset_sync(f"{number}")
    assert len(store) == 0


def test_of_many_blocks_the_oldest_gives_way(made: Made) -> None:
    one = made("10/hour", MemoryStore(3))
    for seconds in (50, 10, 30):
        one.block_sync(f"{seconds}", seconds)
    one.block_sync("50", 40)  # anew: no longer the oldest
    one.block_sync("20", 20)
    assert [bool(one.peek_sync(key)) for key in ("50", "10", "30", "20")] == [False, True, False, False]


# --- cleaning up ---


def test_9_a_drained_key_gives_its_place_to_the_next_new_one(made: Made) -> None:
    store = MemoryStore(100)
    one = made("1/s", store)
    for at, key in [(0, "a"), (0.2, "b"), (0.8, "c")]:
        made.clock.advance(at - made.clock())
        assert one.try_acquire_sync(key)
    assert len(store) == 3
    made.clock.advance(1.1 - made.clock())
    assert [bool(one.peek_sync(key)) for key in "abc"] == [True, False, False]
    assert one.try_acquire_sync("d")
    assert held(one) == {"b", "c", "d"}
    made.clock.advance(1.5 - made.clock())
    assert one.try_acquire_sync("e")
    assert held(one) == {"c", "d", "e"}
    made.clock.advance(3)
    for key in "fgh":
        one.try_acquire_sync(key)
    assert held(one) == {"f", "g", "h"}


def test_drained_keys_behind_a_live_one_give_their_places_too(made: Made) -> None:
    store = MemoryStore(100)
    one = made("10/s; 1000/hour", store)
    one.try_acquire_sync("live", 10)
    for number in range(10):
        one.try_acquire_sync(f"old{number}")
    made.clock.advance(10)
    for number in range(10):
        one.try_acquire_sync(f"new{number}")
    assert len(store) <= 12
    assert "live" in held(one)


@each_algorithm
def test_a_small_store_decides_as_a_large_one_as_long_as_few_keys_are_live(quota: Quota, made: Made) -> None:
    """No more keys live at once than there are places: nothing is forgotten, nothing spilled."""
    quota = Quota(2, 6, algorithm=quota.algorithm)
    small, large = made(quota, MemoryStore(8)), made(quota, MemoryStore(10_000))
    chance = random.Random(3)
    with capture(KeysSpilled) as spilled:
        for _ in range(2_000):
            made.clock.advance(1)
            key = f"{chance.randrange(40)}"
            assert small.try_acquire_sync(key) == large.try_acquire_sync(key)
    assert spilled == []


def test_a_few_places_are_looked_at_and_never_all(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    drains = memory_module.Space._drains

    def counting(space: Any, state: Any, now: int) -> Any:
        looked.append(state)
        return drains(space, state, now)

    monkeypatch.setattr(memory_module.Space, "_drains", counting)
    one = made("1/hour", MemoryStore(2_000))
    for number in range(2_000):
        one.try_acquire_sync(f"{number}")
    assert len(looked) <= 2 * 2_000
    for number in range(100):
        looked.clear()
        one.try_acquire_sync(f"new{number}")
        assert len(looked) <= 2 + 8
        looked.clear()
        one.try_acquire_sync(f"{number}")
        one.peek_sync(f"new{number}")
        assert len(looked) <= 2 * (2 + 8)


class Counting(OrderedDict[str, int]):
    """Counts how often somebody goes through all of it."""

    sweeps = 0

    def items(self) -> Any:
        self.sweeps += 1
        return super().items()

    def __iter__(self) -> Iterator[str]:
        self.sweeps += 1
        return super().__iter__()


def test_at_the_bound_a_block_does_not_look_at_all_others(made: Made) -> None:
    one = made("1/hour", MemoryStore(100))
    one._space.blocks = blocks = Counting()
    for number in range(200):
        one.block_sync(f"{number}", 3_600)
    assert blocks.sweeps <= 10


# --- spilling ---


@each_algorithm
def test_a_key_that_had_to_leave_still_owes(quota: Quota, made: Made) -> None:
    one = made(quota, MemoryStore(10))
    one.try_acquire_sync("ann", 10)
    for number in range(200):
        one.try_acquire_sync(f"{number}", 10)
    assert "ann" not in held(one)
    refused = one.try_acquire_sync("ann")
    assert not refused
    assert not one.peek_sync("ann")
    assert not one.at_most_sync("ann")
    assert refused.retry_after is not None
    assert 0 < refused.retry_after <= 3_600
    made.clock.advance(3_600)
    assert one.try_acquire_sync("ann", 10)


@pytest.mark.parametrize(
    ("quota", "reset_after"), [(Quota(10, 3_600), 8 * 360), (Quota(7, 10, burst=10), 11.428572)], ids=str
)
def test_what_a_gcra_key_owes_is_known_exactly(quota: Quota, reset_after: float, made: Made) -> None:
    made.clock.advance(100)
    one = made(quota, MemoryStore(10))
    made.clock.advance(100)
    one.try_acquire_sync("ann", 7)
    for number in range(15):
        one.try_acquire_sync(f"{number}", 9)
    assert "ann" not in held(one)
    decision = one.try_acquire_sync("ann")
    assert (decision.remaining, decision.reset_after) == (2, reset_after)
    assert "ann" in held(one)


def test_each_rule_of_a_spilled_key_is_known(made: Made) -> None:
    one = made("10/min; 15/hour", MemoryStore(10))
    one.try_acquire_sync("ann", 10)
    for number in range(60):
        one.try_acquire_sync(f"{number}", 10)
    assert "ann" not in held(one)
    made.clock.advance(60)
    decision = one.peek_sync("ann", 5)
    assert (decision.allowed, decision.limit, decision.remaining) == (True, 15, 5)


def test_without_spilling_a_flood_is_an_amnesty(made: Made) -> None:
    one = made("10/hour", MemoryStore(10, spill=False))
    one.try_acquire_sync("ann", 10)
    for number in range(200):
        one.try_acquire_sync(f"{number}", 10)
    assert one.try_acquire_sync("ann", 10)


def test_the_key_that_drains_first_has_to_leave(made: Made) -> None:
    one = made("10/hour", MemoryStore(8))
    for cost in (9, 3, 8, 2, 7, 6, 5, 4):
        one.try_acquire_sync(f"{cost}", cost)
    one.try_acquire_sync("new", 10)
    assert held(one) == {"9", "3", "8", "7", "6", "5", "4", "new"}


def test_a_spilled_key_can_be_reset_and_given_back_to(made: Made) -> None:
    one = made("10/hour", MemoryStore(10))
    for key in ("ann", "bob"):
        one.try_acquire_sync(key, 10)
    for number in range(200):
        one.try_acquire_sync(f"{number}", 10)
    assert not held(one) & {"ann", "bob"}
    one.reset_sync("ann")
    assert one.try_acquire_sync("ann", 10)
    assert one.refund_sync("bob", 4).remaining == 4
    assert one.try_acquire_sync("bob", 4)


def test_a_lone_new_key_is_admitted_though_the_store_is_full(made: Made) -> None:
    one = made("1/hour", MemoryStore(100))
    for number in range(150):
        one.try_acquire_sync(f"flood{number}")
    assert sum(bool(one.try_acquire_sync(f"honest{number}")) for number in range(50)) >= 45


@pytest.mark.parametrize(("live", "honest_share"), [(240, 0.995), (600, 0.93)])
def test_a_rotation_of_keys_gets_what_is_legal_and_honest_keys_pass(live: int, honest_share: float, made: Made) -> None:
    """The bench of the notes: 10 at once and 1 a second for each key, 200 places."""
    attacked, honest = flood(made(Quota(60, 60, burst=10), MemoryStore(200)), made.clock, live)
    assert 0.9 <= attacked <= 1.0
    assert honest >= honest_share


def test_without_a_sketch_the_same_rotation_gets_all_that_it_asks_for(made: Made) -> None:
    attacked, _ = flood(made(Quota(60, 60, burst=10), MemoryStore(200, spill=False)), made.clock, 600)
    assert attacked == pytest.approx(40 / 30)


def flood(one: RateLimiter, clock: VirtualClock, live: int, seconds: int = 20) -> tuple[float, float]:
    """Let so many keys in turn ask for twice what they may; give their share of that, and how many new keys passed."""
    admitted = honest = asked = 0
    for _ in range(seconds * 2):
        clock.advance(0.5)
        for number in range(live):
            admitted += bool(one.try_acquire_sync(f"attack{number}"))
            if number % 20 == 0:
                asked += 1
                honest += bool(one.try_acquire_sync(f"honest{asked}"))
    ideal = live * min(seconds * 2, 10 + seconds)
    return admitted / ideal, honest / asked


def test_the_sketch_cleans_itself(made: Made) -> None:
    one = made("10/min", MemoryStore(10))
    for number in range(300):
        one.try_acquire_sync(f"{number}", 10)
    made.clock.advance(60)
    assert all(one.try_acquire_sync(f"{number}", 10) for number in range(10))


# --- what is told of it ---


def test_live_keys_that_had_to_leave_are_counted_and_told_once_a_second(made: Made) -> None:
    one = made("10/hour", MemoryStore(10))
    with capture(KeysSpilled) as events:
        for number in range(10):
            one.try_acquire_sync(f"{number}")
        assert events == []
        one.try_acquire_sync("10")
        assert [event.count for event in events] == [1]
        for number in range(11, 20):
            one.try_acquire_sync(f"{number}")
        made.clock.advance(0.9)
        one.try_acquire_sync("20")
        assert [event.count for event in events] == [1]
        made.clock.advance(0.1)
        one.try_acquire_sync("21")
    assert [event.count for event in events] == [1, 11]
    assert (events[0].name, events[0].severity) == ("search", "warning")


def test_drained_keys_that_leave_are_no_news(made: Made) -> None:
    one = made("10/s", MemoryStore(10))
    with capture(KeysSpilled) as events:
        for number in range(100):
            one.try_acquire_sync(f"{number}")
            made.clock.advance(0.1)
    assert events == []


def test_keys_that_leave_by_other_ways_are_told_too(made: Made) -> None:
    one = made([Quota(10, 3_600), log(10, 3_600)], MemoryStore(3))
    with capture(KeysSpilled) as events:
        for number in range(5):
            one.at_most_sync(f"{number}", 2)
            made.clock.advance(1)
    assert sum(event.count for event in events) == 2


# --- several limiters ---


def test_limiters_share_the_places_of_their_store(made: Made) -> None:
    store = MemoryStore(20)
    limiters = [made("10/hour", store, name) for name in ("a", "b", "c")]
    for number in range(50):
        for one in limiters:
            assert one.try_acquire_sync(f"{number}")
            assert len(store) <= 20
    assert sum(len(held(one)) for one in limiters) == len(store) == 20


def test_a_limiter_that_comes_late_gets_a_place_and_takes_nobodys_debt(made: Made) -> None:
    store = MemoryStore(20)
    first = made("10/hour", store, "first")
    for number in range(20):
        first.try_acquire_sync(f"{number}", 10)
    second = made("10/hour", store, "second")
    assert second.try_acquire_sync("ann", 10)
    assert held(second) == {"ann"}
    assert len(held(first)) == 19
    assert not any(first.try_acquire_sync(f"{number}") for number in range(20))
    assert not second.try_acquire_sync("ann")
    assert len(store) == 20


def test_a_drained_key_that_gives_up_its_place_is_no_news(made: Made) -> None:
    store = MemoryStore(3)
    first, second = made("10/s", store, "first"), made("10/s", store, "second")
    for number in range(3):
        first.try_acquire_sync(f"{number}")
    made.clock.advance(10)
    with capture(KeysSpilled) as events:
        second.try_acquire_sync("ann")
        first.try_acquire_sync("bob")
    assert events == []


def test_a_limiter_whose_keys_are_forgotten_gives_all_places_back(made: Made) -> None:
    store = MemoryStore(10)
    one, other = made("10/hour", store, "one"), made("10/hour", store, "other")
    for number in range(15):
        one.try_acquire_sync(f"{number}", 10)
    other.try_acquire_sync("ann")
    one._space.clear()
    assert len(store) == 1
    assert all(one.try_acquire_sync(f"{number}", 10) for number in range(9))
    assert len(store) == 10


def test_a_limiter_that_lost_all_its_places_can_go_on(made: Made) -> None:
    store = MemoryStore(1)
    one, other = made("2/hour", store, "one"), made("2/hour", store, "other")
    decisions = [bool(which.try_acquire_sync("ann")) for _ in range(4) for which in (one, other)]
    assert decisions == [True] * 4 + [False] * 4


def test_limiters_with_clocks_of_their_own_share_a_store() -> None:
    store = MemoryStore(4)
    clocks = [VirtualClock(autojump=False, start=start) for start in (0, 1.8e9)]
    one, other = (RateLimiter("1/hour", name=f"{clock()}", store=store, clock=clock) for clock in clocks)
    for number in range(4):
        one.try_acquire_sync(f"{number}")
    assert other.try_acquire_sync("ann")
    assert not one.try_acquire_sync("0")
    assert not any(one.try_acquire_sync(f"{number}") for number in range(4))


def test_there_are_only_so_many_names(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "MAX_LIMITERS", 3)
    store = MemoryStore()
    for name in ("a", "b", "c", "a"):
        made("1/s", store, name)
    with pytest.raises(ConfigurationError) as refused:
        made("1/s", store, "d")
    assert str(refused.value) == "limiters on one store must be at most 3: is a name made from input a key?"
    assert made("1/s", store, "c").try_acquire_sync()


# --- threads ---


@pytest.fixture
def switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def storm(work: Callable[[random.Random], None]) -> None:
    errors: list[BaseException] = []

    def run(seed: int) -> None:
        try:
            work(random.Random(seed))
        except BaseException as error:  # noqa: BLE001 - shown by the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.usefixtures("switch_often")
@each_algorithm
def test_in_a_storm_of_threads_nobody_gets_too_much_and_the_bound_holds(quota: Quota, made: Made) -> None:
    store = MemoryStore(20)
    limiters = [made(quota, store, name) for name in ("a", "b")]
    granted: Counter[tuple[int, str]] = Counter()
    lock = threading.Lock()

    def work(chance: random.Random) -> None:
        for _ in range(400):
            which, key, cost = chance.randrange(2), f"{chance.randrange(40)}", chance.randint(1, 3)
            decision = limiters[which].try_acquire_sync(key, cost)
            with lock:
                granted[which, key] += decision.granted
            assert len(store) <= 20
            limiters[which].peek_sync(key)
            limiters[which].block_sync("nobody", chance.randrange(2))

    storm(work)
    assert max(granted.values()) <= 10
    assert sum(granted.values()) > 300
    assert sum(len(held(one)) for one in limiters) == len(store)


@pytest.mark.usefixtures("switch_often")
def test_in_a_storm_what_is_given_back_is_there_again(made: Made) -> None:
    one = made("1000/hour; 1000000/day", MemoryStore(10))

    def work(chance: random.Random) -> None:
        for _ in range(300):
            cost = chance.randint(1, 5)
            if one.try_acquire_sync("ann", cost):
                one.refund_sync("ann", cost)
            one.try_acquire_sync(f"{chance.randrange(3)}")

    storm(work)
    assert one.peek_sync("ann").remaining == 1_000


# --- memory ---


@pytest.fixture
def memory() -> Iterator[Callable[[], int]]:
    """Gives the bytes that were taken since the test began, and are still held."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_a_key_costs_little_and_keys_beyond_the_bound_cost_nothing(made: Made, memory: Callable[[], int]) -> None:
    names = [f"user-{number:05d}" for number in range(8_000)]
    one = made("100/hour", MemoryStore(2_000))

    def ask(first: int, last: int) -> int:
        before = memory()
        for name in names[first:last]:
            one.try_acquire_sync(name)
        return memory() - before

    sketch = 4 * 2 * 2_000 * 8
    assert ask(0, 2_000) <= 2_000 * 200
    assert ask(2_000, 4_000) <= sketch + 2_000 * 100  # the table is laid out anew once, when it begins to change
    assert ask(4_000, 8_000) <= 10_000


def test_a_store_that_spills_nothing_has_no_sketch(made: Made, memory: Callable[[], int]) -> None:
    one = made("100/hour", MemoryStore(10_000_000))
    before = memory()
    one.try_acquire_sync("ann")
    assert memory() - before < 20_000
