"""What the garbage collector need not look at: all that a process has once it is started.

A full collection walks through every object there is, some sixty thousand after the imports, for 20 to 30 ms in which
nobody gets an answer. Without them it takes 2, and the collector 1 instead of 2 % of the processor time under load.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG_OBJECTS: Final = 50_000
"""The collector looks at young objects when there are so many more than the last time. With Python's 700 it looks
through the requests in flight and the events on their way to a sink, none of which is garbage: 1.4 % of the processor
time of single events. 50,000 is more than all of these."""


def settle() -> None:
    """Keep what is there now, without what is garbage, out of later collections."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def settle_again() -> None:
    """Do the same after much was replaced, for 20 to 30 ms; nothing in a process that has not settled, as in a test.

    What was replaced and is garbage goes now. What is alive and becomes a cycle of garbage later goes the next time.
    """
    if gc.get_freeze_count():
        gc.unfreeze()
        settle()
