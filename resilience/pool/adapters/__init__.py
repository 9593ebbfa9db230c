"""How known drivers connect, close, check and reset: one file each, loaded when a pool of its kind is made."""

from __future__ import annotations

from .adapter import Adapter

__all__ = ["Adapter"]
