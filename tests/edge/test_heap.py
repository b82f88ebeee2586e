from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from edge.heap import settle, settle_again


class Node:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_there_is_not_looked_at_again_until_it_is_replaced() -> None:
    node = Node()
    seen = weakref.ref(node)
    settle()
    del node
    gc.collect()
    assert seen() is not None
    settle_again()
    assert seen() is None
    assert gc.get_freeze_count() > 0


def test_garbage_is_not_kept() -> None:
    seen = weakref.ref(Node())
    settle()
    assert seen() is None


def test_process_that_has_not_settled_stays_as_it_is() -> None:
    settle_again()
    assert gc.get_freeze_count() == 0
