"""What the garbage collector need not look at, and how often it comes by.

A full collection walks through every object there is, some sixty thousand after the imports, for 20 to 30 ms in which
nobody gets an answer. Without those that a process has once it is started it takes 2.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG_OBJECTS: Final = 50_000
"""The collector comes by when so many more objects were made than went since it was there last. With Python's own 700
or 2,000 it looks through the requests in flight and the events on their way to a sink: 1.4 % of the processor time of
single events. 50,000 is more than all of these. Garbage that only it finds waits longer then: a connection leaves none
but where Tornado does, after a body that was cut off."""


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
