"""Locks after a fork: one that another thread held in the parent would stay held in the child for ever."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class LockOwner(Protocol):
    """An object that can make its locks anew."""

    def renew_locks(self) -> None:
        """Replace every lock, and what was half done under it."""
        ...


_owners: WeakSet[LockOwner] = WeakSet()


def renew_locks_in_child(owner: LockOwner) -> None:
    """Have `owner.renew_locks()` called in every forked child, for as long as `owner` lives."""
    _owners.add(owner)


def _renew_all() -> None:
    for owner in list(_owners):
        owner.renew_locks()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_renew_all)
