"""How often Python looks for garbage: hardly ever while a program starts.

A start imports and builds half a million objects that stay. To look through them again and again, in the hope
that some are garbage, takes half a second of a worker's start and a quarter of the time to an error.
"""

from __future__ import annotations

import gc

AT_START = 1_000_000
"""New objects after which garbage is looked for while a program starts."""

USUAL = (700, 10, 10)
"""Python's own thresholds. In a training they matter: garbage may hold tensors."""


def seldom() -> None:
    """Look for garbage seldom from now on; to be called before what is large is imported."""
    gc.set_threshold(AT_START)


def keep_imports() -> None:
    """Never look through what has been imported: it stays. To be called before there are tensors."""
    if gc.get_threshold()[0] == AT_START:
        gc.freeze()


def as_usual() -> None:
    """The start is over. Without a `seldom` before it nothing changes: this process is not ours alone."""
    if gc.get_threshold()[0] == AT_START:
        gc.set_threshold(*USUAL)


def at_end() -> None:
    """This process ends: what it has gives its memory back anyway."""
    gc.freeze()
