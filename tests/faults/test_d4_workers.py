"""D4 and D5: workers that crash or are restarted. There is one process in this version, so the rows are left out."""

from __future__ import annotations

from typing import Any

import pytest

REASON = "server.workers is 1 in this version: there is no parent that starts workers again"


@pytest.mark.parametrize(("id", "what"), [("D4", "a worker in a crash loop"), ("D5", "all workers restarted in turn")])
def test_d4_d5_workers(row: Any, id: str, what: str, config_path: Any) -> None:
    with row(id, what=what, unit="restarts", bound="others serve, 0 refused") as found:
        found.skip(REASON)
