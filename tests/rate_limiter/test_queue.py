"""The queue by itself: who stands behind whom, and who moves up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from resilience.rate_limiter.waiting import Queue, Waiter


class Bench:
    """A queue whose requests to move up are kept, and answered by the test."""

    def __init__(self, most: int | None = None) -> None:
        self.asked: list[tuple[str, int, list[int]]] = []
        self.answer: Callable[[Sequence[int]], None] = print
        self.woken: list[float] = []
        self.queue = Queue(lambda: 0.0, most, self.requeue)
        self.later: list[Callable[[], object]] | None = None

    def soon(self, close_up: Callable[[], object]) -> None:
        if self.later is None:
            close_up()
        else:
            self.later.append(close_up)

    def requeue(self, key: str, back: int, costs: Sequence[int], moved: Callable[[Sequence[int]], None]) -> None:
        self.asked.append((key, back, list(costs)))
        self.answer = moved

    def enter(self, key: str, slot: float, cost: int = 1) -> Waiter:
        waiter = Waiter(cost, slot, lambda: self.woken.append(slot), self.soon)
        self.queue.enter(key, waiter)
        return waiter


def test_those_behind_are_those_with_later_slots_whoever_came_first() -> None:
    bench = Bench()
    bench.enter("a", 3, cost=30)
    first = bench.enter("a", 1, cost=10)
    bench.enter("a", 2, cost=20)
    bench.enter("b", 4, cost=40)
    bench.queue.leave("a", first, passed=False)
    assert bench.asked == [("a", 10, [20, 30])]


def test_those_who_leave_together_make_those_behind_move_once() -> None:
    bench = Bench()
    bench.later = []
    waiters = [bench.enter("a", slot, cost=slot) for slot in (1, 2, 3, 4, 5)]
    for place in (3, 1):
        bench.queue.leave("a", waiters[place], passed=False)
    other = bench.enter("b", 1)
    bench.queue.leave("b", other, passed=False)
    assert bench.asked == [("b", 1, [])]  # behind it was nobody
    for close_up in bench.later:
        close_up()
    assert bench.asked[1:] == [("a", 6, [3, 5])]


def test_those_with_the_slot_of_one_who_left_move_too() -> None:
    bench = Bench()
    first, _, third = bench.enter("a", 7), bench.enter("a", 7, cost=2), bench.enter("a", 7, cost=3)
    bench.queue.leave("a", third, passed=False)
    bench.queue.leave("a", first, passed=False)
    assert bench.asked == [("a", 3, []), ("a", 1, [2])]


def test_who_passed_moves_nobody() -> None:
    bench = Bench()
    first, _ = bench.enter("a", 1), bench.enter("a", 2)
    bench.queue.leave("a", first, passed=True)
    assert bench.asked == []


def test_who_left_already_does_not_leave_again() -> None:
    bench = Bench()
    one = bench.enter("a", 1)
    bench.queue.leave("a", one, passed=True)
    bench.queue.leave("a", one, passed=False)
    assert bench.asked == []


def test_nobody_moves_back() -> None:
    bench = Bench()
    first, second, third = bench.enter("a", 1), bench.enter("a", 2), bench.enter("a", 3)
    bench.queue.leave("a", first, passed=False)
    bench.answer([2_500_000, 1_000_000])
    assert (second.slot, third.slot) == (2, 1)
    assert bench.woken == [3]


def test_places_are_counted() -> None:
    bench = Bench(most=2)
    assert [bench.queue.claim() for _ in range(3)] == [True, True, False]
    bench.queue.release()
    assert len(bench.queue) == 1
    assert bench.queue.claim()
