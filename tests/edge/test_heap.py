from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from edge.config import load
from edge.exits import EXIT_OK
from edge.heap import YOUNG_OBJECTS, settle, settle_again
from edge.process import Process

DEFAULT = gc.get_threshold()


class Node:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.set_threshold(*DEFAULT)


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


def test_garbage_that_comes_later_is_found_seldom_but_without_being_asked_for() -> None:
    settle()
    seen = weakref.ref(Node())
    kept = [[number] for number in range(YOUNG_OBJECTS // 2)]
    assert seen() is not None
    kept += [[number] for number in range(YOUNG_OBJECTS // 2 + 1)]
    assert seen() is None


def test_garbage_is_not_kept() -> None:
    seen = weakref.ref(Node())
    settle()
    assert seen() is None


def test_process_that_has_not_settled_stays_as_it_is() -> None:
    settle_again()
    assert gc.get_freeze_count() == 0


async def test_gateway_has_settled_when_it_says_that_it_listens(config_path: Any, registry: Any) -> None:
    process = Process(load(config_path(), registry, {}), registry, {})
    frozen: list[int] = []

    def announce(_: object) -> None:
        frozen.append(gc.get_freeze_count())
        process.stop()

    assert await process.serve(announce) == EXIT_OK
    assert frozen[0] > 0
