"""Every test of HTTP runs on both servers."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["fast", "tornado"])
def http_server(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
