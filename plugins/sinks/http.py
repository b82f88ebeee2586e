"""The sink `http`."""

from __future__ import annotations

import asyncio
import gzip
import re
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from voluptuous import In, Invalid, Optional, Required

from edge.api import Batch, ComponentRegistry, PermanentError, RetryableError, Sink, hookimpl

from ..support.checks import HEADER_NAME, takes
from ..support.exchange import Address, Answer, ExchangeError, exchange
from ..support.threads import Calls

MAX_RETRY_AFTER_SECS: Final = 3600.0
GZIP_LEVEL: Final = 6

RETRYABLE: Final = frozenset({408, 425, 429})
"""Beside every 5xx."""
CONFIGURATION: Final = frozenset({401, 403, 404})
"""Answers that speak of credentials or address: no event is at fault."""
ONE_EVENT_AT_FAULT: Final = frozenset({400, 413, 422})

OWN_HEADERS: Final = frozenset(
    {
        "connection", "content-encoding", "content-length", "expect", "host", "idempotency-key", "keep-alive",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""Headers that follow from the request itself; another value would break it."""

CONTENT_TYPES: Final = {"ndjson": "application/x-ndjson", "array": "application/json"}

try:
    USER_AGENT = f"edge-gateway/{version('edge-gateway')}"
except PackageNotFoundError:  # a source tree that was never installed
    USER_AGENT = "edge-gateway"


@takes("http:// or https:// URL")
def _url(value: object) -> str:
    """Check a URL that a request can be sent to."""
    if not isinstance(value, str) or re.fullmatch(r"[!-~]{1,2048}", value) is None:
        raise Invalid("must be a URL of at most 2048 visible ASCII characters")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise Invalid("must be a URL with a valid host and port") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise Invalid("must begin with http:// or https:// and name a host")
    if "@" in parts.netloc:
        raise Invalid("must not hold a user name or password; write an Authorization header under headers")
    if parts.fragment or "\\" in value:
        raise Invalid("must be a URL without a fragment or a backslash")
    return value


@takes("mapping of header names to values")
def _headers(value: object) -> dict[str, str]:
    """Check headers to send; the names keep their case."""
    if not isinstance(value, dict):
        raise Invalid("must be a mapping of header names to values")
    for name, text in value.items():
        if not isinstance(name, str) or HEADER_NAME.fullmatch(name) is None:
            raise Invalid("must have names that HTTP allows: letters, digits and -")
        if name.lower() in OWN_HEADERS:
            raise Invalid("is set by the sink; leave it out", path=[name])
        if not isinstance(text, str) or re.fullmatch(r"[ -~]{0,4096}", text) is None:
            raise Invalid("must be text of visible ASCII characters and spaces, on one line", path=[name])
    if len({name.lower() for name in value}) < len(value):
        raise Invalid("must not name a header twice")
    return value


@takes("path; or null")
def _ca_file(value: object) -> str | None:
    """Check the path of a file of certificates; whether it is there is seen when the sink opens."""
    if value is not None and (not isinstance(value, str) or not value or not Path(value).name):
        raise Invalid("must be a path")
    return value


class Http(Sink):
    """Send each batch to a URL.

    The body is one JSON object a line (``body: ndjson``) or a JSON array (``body: array``). Every request carries
    ``Idempotency-Key``: the batch's id, the same for every attempt, so that the target can refuse a repeated write.
    Each attempt has a connection of its own and there is one attempt at a time; connecting may take 3 s, the whole
    attempt `timeout_secs`. Certificates are verified. Of the answer at most 64 KiB are read and only the status and
    ``Retry-After`` count.

    | answer | what becomes of the batch |
    |---|---|
    | 2xx | delivered |
    | 408, 425, 429, 5xx | retried, not before ``Retry-After`` (an hour at most) |
    | none, cut off, larger than 64 KiB, not HTTP | retried |
    | 401, 403, 404 | retried after a pause for all batches: usually the configuration is wrong |
    | 400, 413, 422 | divided until the events at fault are found; those become dead letters |
    | 3xx and other 4xx | dead letters; redirects are never followed |

    Example:

    ```yaml
    sinks:
      crm:
        type: http
        url: https://crm.example.org/hook
        headers: {Authorization: "Bearer ${CRM_TOKEN}"}
        batch: {max_events: 500, max_age_secs: 1}
    ```
    """

    type = "http"
    options = {
        Required("url", description="Where batches are sent: http or https, without user name and password."): _url,
        Optional("method", default="POST", description="POST or PUT."): In(["POST", "PUT"]),
        Optional("headers", default=dict, description="Headers of every request; secrets as ${NAME}."): _headers,
        Optional("body", default="ndjson", description="ndjson (one object a line) or array (one JSON array)."): In(
            list(CONTENT_TYPES)
        ),
        Optional("compression", default="none", description="none or gzip, sent as Content-Encoding."): In(
            ["none", "gzip"]
        ),
        Optional(
            "ca_file", default=None, description="PEM file of the only certificate authorities to trust."
        ): _ca_file,
        Optional(
            "public_only", default=False, description="Refuse to connect to private, loopback and similar addresses."
        ): bool,
    }

    def __init__(self, id: str, options: Mapping[str, Any]) -> None:
        super().__init__(id, options)
        url = urlsplit(options["url"])
        self._url: SplitResult = url
        self._target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        # What errors show. A query may hold a token, and so may a path that comes out of ${NAME}: the host marks such
        # text by a type of its own.
        self._shown_url = f"{url.scheme}://{url.netloc}{url.path if type(options['url']) is str else ''}"
        headers = {"Host": url.netloc, "User-Agent": USER_AGENT, "Content-Type": CONTENT_TYPES[options["body"]]}
        if options["compression"] == "gzip":
            headers["Content-Encoding"] = "gzip"
        own = {name.lower() for name in options["headers"]}
        self._headers = {name: value for name, value in headers.items() if name.lower() not in own}
        self._headers.update((name, str(value)) for name, value in options["headers"].items())
        self._address: Address | None = None
        self._calls = Calls(f"http sink {id}")

    @hookimpl
    async def edge_open(self) -> None:
        tls = None
        if self._url.scheme == "https":
            try:
                tls = await self._calls.run(partial(ssl.create_default_context, cafile=self.options["ca_file"]))
            except OSError as error:  # ssl.SSLError is one
                reason = error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "not a PEM file"
                raise RetryableError(f"ca_file {self.options['ca_file']} cannot be read: {reason}") from error
        self._address = Address(
            host=self._url.hostname or "",
            port=self._url.port or (443 if tls is not None else 80),
            tls=tls,
            public_only=self.options["public_only"],
            lookups=self._calls,
        )

    @hookimpl
    async def edge_deliver(self, batch: Batch) -> None:
        if self._address is None:
            raise RetryableError("the sink is not open")
        if self.options["body"] == "array":
            body = b"[" + b",".join(batch.lines) + b"]"
        else:
            body = b"\n".join((*[block.text for block in batch.blocks], b""))
        if self.options["compression"] == "gzip":
            body = await asyncio.to_thread(gzip.compress, body, GZIP_LEVEL, mtime=0)
        headers = {**self._headers, "Idempotency-Key": batch.id}
        try:
            answer = await exchange(self._address, self.options["method"], self._target, headers, body)
        except ExchangeError as error:
            raise RetryableError(f"{self._shown_url}: {error}") from error
        self._judge(answer)

    @hookimpl
    async def edge_close(self) -> None:
        self._address = None

    def _judge(self, answer: Answer) -> None:
        """Raise what the answer means, unless it means that the target has taken the batch."""
        status = answer.status
        if 200 <= status < 300:
            return
        said = f"{self._shown_url} answered {status}"
        if status in RETRYABLE or status >= 500:
            raise RetryableError(said, retry_after=retry_after_secs(answer.headers.get("retry-after", ""), time.time()))
        if status in CONFIGURATION:
            raise RetryableError(f"{said}, which looks like configuration: check url and headers", open_circuit=True)
        if 300 <= status < 400:
            raise PermanentError(f"{said}: redirects are not followed; write the final address as url")
        raise PermanentError(said, divide=status in ONE_EVENT_AT_FAULT)


def retry_after_secs(text: str, now: float) -> float | None:
    """Return the seconds, 0 to 3600, that ``Retry-After`` asks for; None when it is neither a number nor a date.

    RFC 9110 section 10.2.3; `now` is in seconds since the epoch.
    """
    text = text.strip()
    if re.fullmatch(r"[0-9]+", text):
        secs = float(text)
    else:
        try:
            secs = parsedate_to_datetime(text).timestamp() - now
        except (ValueError, OverflowError, OSError):
            return None
    return min(MAX_RETRY_AFTER_SECS, max(0.0, secs))


@hookimpl
def edge_register_components(registry: ComponentRegistry) -> None:
    """Register the sink."""
    registry.add(Http)
