"""Asks a running gateway through its admin listener."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any, Final

from edge.api import EdgeError
from edge.config.model import Admin

TIMEOUT_SECS: Final = 60.0
ANSWER_BYTES: Final = 1 << 20


class AdminError(EdgeError):
    """The running gateway could not be asked, or refused."""

    def __init__(self, message: str, answer: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.answer = answer or {}
        """What it answered when it refused: it may say how far it came."""


def post(admin: Admin, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post to the first admin listener that can be reached and return its answer; `AdminError` otherwise.

    Once a request has been sent no other listener is tried: what it asked for may have been done.
    """
    unreachable: list[str] = []
    for address in admin.listen:
        connection = _connection(address)
        try:
            connection.connect()
        except OSError as error:
            unreachable.append(f"{address}: {error}")
            continue
        try:
            status, answer = _exchange(connection, admin.token, path, body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise AdminError(f"the gateway at {address} went away before it answered ({reason})") from error
        finally:
            connection.close()
        if status == 200:
            return answer
        raise AdminError(f"the gateway at {address} refused: {_reason(status, answer)}", answer)
    raise AdminError(f"the spool belongs to a gateway whose admin listener cannot be reached: {'; '.join(unreachable)}")


def _exchange(
    connection: http.client.HTTPConnection, token: str, path: str, body: dict[str, Any]
) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    connection.request("POST", path, json.dumps(body).encode(), headers)
    response = connection.getresponse()
    answer = json.loads(response.read(ANSWER_BYTES))
    return response.status, answer if isinstance(answer, dict) else {}


def _connection(address: str) -> http.client.HTTPConnection:
    if address.startswith("unix:"):
        return _UnixConnection(address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    # An address that means every interface cannot be connected to everywhere; its loopback can.
    everywhere = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    return http.client.HTTPConnection(everywhere.get(host, host), int(port), timeout=TIMEOUT_SECS)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _reason(status: int, answer: dict[str, Any]) -> str:
    details = answer.get("details")
    if isinstance(details, list) and details and isinstance(details[0], dict):
        return f"{status}: {details[0].get('field', '')} {details[0].get('message', '')}"
    return str(status)
