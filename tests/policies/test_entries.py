from __future__ import annotations

from resilience.policies.entries import Entries


def test_a_result_that_comes_again_replaces_the_first() -> None:
    """Two loops may compute the same at the same time."""
    entries = Entries(10, 5)
    entries.put("f", "a", 1, 0)
    entries.put("f", "b", 2, 1)
    entries.put("f", "a", 3, 2)
    assert len(entries) == 2
    entries.sweep(11, 5)
    assert len(entries) == 1
    found = entries.get("f", "a", 11)
    assert found is not None
    assert found.value == 3
    entries.forget("a")
    assert len(entries) == 0
    assert not entries._functions


def test_a_new_entry_sweeps_few_of_the_old() -> None:
    entries = Entries(10, 1000)
    for number in range(1000):
        entries.put("f", number, number, 0)
    entries.put("f", "new", 0, 20)
    assert len(entries) == 999
    entries.put("f", "newer", 0, 20)
    assert len(entries) == 998
