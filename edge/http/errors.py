"""What the rooms of the HTTP side raise when a request is refused for more than its events."""

from __future__ import annotations

from edge.api import EdgeError


class RequestError(EdgeError):
    """A refusal in the words of the contract: a status, and the one detail of the answer.

    `field` names a header, a query parameter or `body`; `message` reads after it. No value of the request is in either.
    """

    def __init__(self, status: int, code: str, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.status = status
        self.code = code
        self.field = field
        self.message = message
