"""How the ASGI peers are served: uvicorn on uvloop and httptools, one process, nothing logged for a request."""

from __future__ import annotations

from typing import Any

import uvicorn

KEEP_ALIVE_SECS = 3600
"""Idle connections are measured, so none may be closed meanwhile."""


def serve(app: Any, port: int) -> None:
    """Serve until SIGTERM."""
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_SECS,
    )
