from __future__ import annotations

import time

import pytest

from edge.near_names import NearNames

NAMES = NearNames(("user_id", "event_time", "experiments", "platform"))


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("user_id", "user_id"),
        ("userid", "user_id"),
        ("User-Id", "user_id"),
        ("usr_id", "user_id"),
        ("uuser_id", "user_id"),
        ("usre_id", "user_id"),
        ("uzer_id", "user_id"),
        ("eventTme", "event_time"),
        ("platforms", "platform"),
        ("plattform", "platform"),
        ("latform", "platform"),
    ],
)
def test_near_names_finds_one_slip(sent: str, meant: str) -> None:
    assert NAMES.get(sent) == meant


@pytest.mark.parametrize("sent", ["", "u", "id", "usid", "time", "_", "form", "ß", "\x00", "user_id" * 100])
def test_near_names_finds_nothing_far_off(sent: str) -> None:
    assert NAMES.get(sent) is None


def test_near_names_costs_little_for_any_name() -> None:
    hostile = ["a" * length for length in range(30)] * 30 + ["İ" * 20, "x" * 1_000_000, "_" * 1_000_000]
    start = time.process_time()
    for name in hostile:
        NAMES.get(name)
    assert time.process_time() - start < 0.1
