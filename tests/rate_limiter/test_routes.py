"""Which node is asked, and what follows from its answer: the rules, step by step, without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis.crc import key_slot

from resilience.rate_limiter.lines import Refused
from resilience.rate_limiter.routes import LONGEST_PAUSE, Ask, Learn, Routes, Slots, items, joined

A, B, C = ("10.0.0.1", 1), ("10.0.0.2", 2), ("10.0.0.3", 3)
KEYS = ["resilience:{2a}:name:key"]
SLOT = key_slot(KEYS[0].encode())
HALVES = [[0, 8191, [b"10.0.0.1", 1, b"id"]], [8192, 16383, [b"10.0.0.2", 2, b"id"], [b"replica", 9, b"id"]]]
OWNER, OTHER = (A, B) if SLOT < 8192 else (B, A)
ONE = ["", "g 1 1 1 1 1", "acquire", 1, "1", 1]
TWO = ["", "g 1 1 1 1 1", "acquire", 1, "1", 2]


class Story:
    """Plays the cluster: answers each step of a call, and keeps what was asked."""

    def __init__(self, routes: Routes, answer: Callable[[Any], Any], seconds: float = 10.0) -> None:
        self.routes = routes
        self.answer = answer
        self.left = seconds
        self.asked: list[Any] = []

    def call(self, keys: list[str] = KEYS, arguments: list[Any] = ONE) -> Any:
        return self._play(self.routes.call(keys, arguments, lambda: self.left))

    def addresses(self) -> list[tuple[str, int]]:
        return [step.address for step in self.asked if isinstance(step, Ask)]

    def _play(self, steps: Any) -> Any:
        answer: Any = None
        try:
            while True:
                step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
                answer = self._do(step)
        except StopIteration as end:
            return end.value

    def _do(self, step: Any) -> Any:
        self.asked.append(step)
        if isinstance(step, float):
            self.left -= step
            return None
        try:
            if isinstance(step, Learn):
                return self._play(self.routes.learn(lambda: self.left))
            if isinstance(step, Slots) and (found := self.answer(step)) is None:
                return HALVES
            return found if isinstance(step, Slots) else self.answer(step)
        except Exception as error:  # noqa: BLE001 - thrown into the steps
            return error


def answers(*one_by_one: Any) -> Callable[[Any], Any]:
    """Answer calls in turn; errors are raised; who has which slots is always known."""
    left = list(one_by_one)

    def answer(step: Any) -> Any:
        if isinstance(step, Slots):
            return None
        one = left.pop(0)
        if isinstance(one, Exception):
            step.sent = not isinstance(one, ConnectionRefusedError)
            raise one
        return one

    return answer


def test_the_owner_of_the_slot_is_found_once_and_asked() -> None:
    story = Story(Routes([A]), answers(b"1 -1 1", b"2 -1 1"))
    assert story.call() == b"1 -1 1"
    assert story.call() == b"2 -1 1"
    assert story.addresses() == [OWNER, OWNER]
    assert sum(isinstance(step, Slots) for step in story.asked) == 1
    assert story.routes.nodes == {A, B}


def test_who_moved_is_remembered() -> None:
    story = Story(Routes([A]), answers(Refused(f"MOVED {SLOT} 10.0.0.3:3"), b"ok", b"ok"))
    assert story.call() == b"ok"
    assert story.call() == b"ok"
    assert story.addresses() == [OWNER, C, C]
    assert not any(isinstance(step, float) for step in story.asked)
    assert C in story.routes.nodes


def test_who_is_on_the_way_is_asked_with_a_word_before_and_not_remembered() -> None:
    story = Story(Routes([A]), answers(Refused(f"ASK {SLOT} 10.0.0.3:3"), b"ok", b"ok"))
    assert story.call() == b"ok"
    assert story.call() == b"ok"
    assert [(step.address, step.asking) for step in story.asked if isinstance(step, Ask)] == [
        (OWNER, False),
        (C, True),
        (OWNER, False),
    ]


@pytest.mark.parametrize("host", ["", "?"])
def test_a_node_that_does_not_know_its_name_is_at_the_place_of_who_tells(host: str) -> None:
    story = Story(Routes([A]), answers(Refused(f"MOVED {SLOT} {host}:77"), b"ok"))
    story.call()
    assert story.addresses() == [OWNER, (OWNER[0], 77)]


def test_an_address_of_version_6_is_understood() -> None:
    story = Story(Routes([A]), answers(Refused(f"MOVED {SLOT} ::1:6381"), b"ok"))
    story.call()
    assert story.addresses() == [OWNER, ("::1", 6381)]


@pytest.mark.parametrize("code", ["CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN"])
def test_what_was_refused_is_sent_again_until_the_time_is_over(code: str) -> None:
    story = Story(Routes([A, B]), answers(*[Refused(f"{code} later")] * 1000), seconds=0.25)
    with pytest.raises(Refused, match=code):
        story.call()
    assert 0 < story.left <= LONGEST_PAUSE
    assert 5 <= len(story.addresses()) <= 20  # with longer and longer pauses


def test_what_was_refused_at_first_may_be_run_later() -> None:
    story = Story(Routes([A, B]), answers(*[Refused("CLUSTERDOWN later")] * 4, b"ok"))
    assert story.call() == b"ok"


def test_two_nodes_that_send_us_to_each_other_do_not_do_so_for_ever() -> None:
    there, back = Refused(f"MOVED {SLOT} {OTHER[0]}:{OTHER[1]}"), Refused(f"MOVED {SLOT} {OWNER[0]}:{OWNER[1]}")
    story = Story(Routes([A]), answers(*[there, back] * 500), seconds=0.25)
    with pytest.raises(Refused, match="MOVED"):
        story.call()
    assert len(story.addresses()) <= 20


def test_what_may_have_been_run_is_never_sent_again() -> None:
    """Not even to a new owner, who may have got it with the data of the old one."""
    slots: Any = [HALVES, [[0, 16383, [b"10.0.0.3", 3]]]]
    calls = answers(ConnectionResetError(), b"next call")
    story = Story(Routes([A]), lambda step: slots.pop(0) if isinstance(step, Slots) else calls(step))
    with pytest.raises(ConnectionResetError):
        story.call()
    assert story.addresses() == [OWNER]
    assert story.call() == b"next call"
    assert story.addresses() == [OWNER, C]


@pytest.mark.parametrize("code", ["OOM", "NOPERM", "ERR", "READONLY", "CROSSSLOT"])
def test_other_refusals_are_the_callers(code: str) -> None:
    story = Story(Routes([A]), answers(Refused(f"{code} no")))
    with pytest.raises(Refused, match=code):
        story.call()
    assert story.addresses() == [OWNER]


def test_a_node_that_was_replaced_while_it_was_down_is_no_error() -> None:
    """Nothing was sent: so who has the slot now is asked."""
    slots: Any = [HALVES, [[0, 16383, [b"10.0.0.3", 3]]]]
    calls = answers(ConnectionRefusedError(), b"ok")
    story = Story(Routes([A, B]), lambda step: slots.pop(0) if isinstance(step, Slots) else calls(step))
    assert story.call() == b"ok"
    assert story.addresses() == [OWNER, C]


def test_a_node_that_is_down_and_was_not_replaced_is_an_error_at_once() -> None:
    story = Story(Routes([A, B]), answers(ConnectionRefusedError()))
    with pytest.raises(ConnectionRefusedError):
        story.call()
    assert story.addresses() == [OWNER]
    assert not any(isinstance(step, float) for step in story.asked)
    asked = [step.address for step in story.asked if isinstance(step, Slots)]
    assert asked == [A, OTHER]  # not the one that is down, if another can tell


def test_first_nodes_that_do_not_know_are_passed_over_and_asked_last_from_then_on() -> None:
    def answer(step: Any) -> Any:
        if not isinstance(step, Slots):
            return b"ok"
        if step.address == A:
            raise TimeoutError
        return [] if step.address == C else HALVES  # C has not met the others yet

    story = Story(Routes([A, C, B]), answer, seconds=9.0)
    assert story.call() == b"ok"
    asked = [step for step in story.asked if isinstance(step, Slots)]
    assert [(step.address, step.seconds) for step in asked] == [(A, 3.0), (C, 4.5), (B, 9.0)]
    story.asked.clear()
    story.routes.suspect()
    assert story.call() == b"ok"
    assert [step.address for step in story.asked if isinstance(step, Slots)] == [B]


def test_all_first_nodes_down_is_an_error() -> None:
    def answer(step: Any) -> Any:
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        Story(Routes([A, B]), answer).call()


def test_a_slot_without_an_owner_is_waited_for() -> None:
    part = [one for one in HALVES if not int(one[0]) <= SLOT <= int(one[1])]  # type: ignore[call-overload]
    slots: Any = [part, part, HALVES]
    story = Story(Routes([A, B]), lambda step: slots.pop(0) if isinstance(step, Slots) else b"ok")
    assert story.call() == b"ok"
    slots[:] = [part] * 100
    story.routes.suspect()
    story.left = 0.25
    with pytest.raises(Refused, match=f"CLUSTERDOWN slot {SLOT} has no owner"):
        story.call()


def test_addresses_are_mapped_as_the_client_says() -> None:
    story = Story(Routes([A], lambda address: ("proxy", address[1] + 100)), answers(Refused(f"ASK {SLOT} x:3"), b"ok"))
    story.call()
    assert story.addresses() == [("proxy", OWNER[1] + 100), ("proxy", 103)]


# --- a batch that a moving slot cannot take ---


def test_a_batch_that_cannot_be_run_is_run_item_by_item() -> None:
    calls = answers(Refused("TRYAGAIN both"), b"7 -1 1 0 5", Refused(f"ASK {SLOT} 10.0.0.3:3"), b"8 -1 0 0 6")
    story = Story(Routes([A]), calls)
    assert story.call(["{2a}x", "{2a}y"], TWO) == b"7 -1 1 0 5 0 0 6"
    asked = [(step.address, step.keys) for step in story.asked if isinstance(step, Ask)]
    assert asked == [(OWNER, ["{2a}x", "{2a}y"]), (OWNER, ["{2a}x"]), (OWNER, ["{2a}y"]), (C, ["{2a}y"])]


def test_a_call_of_the_script_is_taken_apart_item_by_item() -> None:
    gcra, logs = "g 1 2 3 4 5", "g 1 2 3 4 5 l 10 20 l 30 40"
    arguments: list[str | int] = ["me 60000", gcra, "acquire", 1, "3", 2, logs, "reserve", 2, "99", 2]
    keys = ["a", "b", "c", "c\0log0", "c\0log1", "d", "d\0log0", "d\0log1", "instances"]
    assert list(items(keys, arguments)) == [
        (["a"], ["", gcra, "acquire", 1, "3", 1]),
        (["b"], ["", gcra, "acquire", 1, "3", 1]),
        (["c", "c\0log0", "c\0log1"], ["", logs, "reserve", 2, "99", 1]),
        (["d", "d\0log0", "d\0log1"], ["", logs, "reserve", 2, "99", 1]),
        (["instances"], ["me 60000"]),
    ]
    assert joined([b"100 -1 1 0 7", b"101 -1 0 0 8 9", b"102 4"]) == b"100 4 1 0 7 0 0 8 9"
