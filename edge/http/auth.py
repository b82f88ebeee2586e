"""Who sends: the API key of a request, and whether it may be used this way, from there, for that route."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from edge.config.model import Auth, Key
from edge.http.errors import RequestError
from edge.http.origins import OriginPolicy

Scope = Literal["ingest", "batch"]

ANONYMOUS: Final = "anonymous"
"""The id of every sender when authentication is off."""

_NO_DIGEST: Final = "0" * 64
"""Compared with when no key has the digest: the same work as for a key that exists."""


class AuthError(RequestError):
    """The request has no valid key (401), or a key that may not do this (403)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The sender of a request."""

    id: str
    """What logs and metrics carry."""
    key: Key | None = field(default=None, repr=False)
    """None when authentication is off."""


@dataclass(frozen=True, slots=True)
class _Credential:
    """A key as it was sent, and where."""

    place: str
    secret: bytes = field(repr=False)
    in_url: bool = False


class Authenticator:
    """Knows the keys by their digests."""

    def __init__(self, auth: Auth) -> None:
        self._anyone = auth.mode == "none"
        self._keys = {key.key_sha256: key for key in auth.keys}
        self._origins = {key.id: OriginPolicy(key.allow_origins) for key in auth.keys if key.allow_origins}

    def identify(self, headers: Mapping[str, str], query_key: str | None, origin: str | None, scope: Scope) -> Identity:
        """Return who sends, by the headers alone; `AuthError` when the request is not to be served.

        `headers` finds names in any case. Of several credentials only the first counts: `X-API-Key`, then
        `Authorization` (Bearer, or Basic with the key as user name), then `query_key`, the `api_key` of the URL.
        """
        if self._anyone:
            return Identity(ANONYMOUS)
        credential = _credential(headers, query_key)
        if credential is None:
            raise AuthError(401, "auth.missing", "X-API-Key", "is required")
        key = self._find(credential.secret)
        if key is None:
            raise AuthError(401, "auth.invalid", credential.place, "is not a valid key")
        if credential.in_url and not key.browser:
            message = "may not be sent in the URL; send it as X-API-Key"
            raise AuthError(403, "auth.scope", credential.place, message)
        policy = self._origins.get(key.id)
        if policy is not None and origin is not None and not policy.allows(origin):
            raise AuthError(403, "auth.origin", "Origin", "is not allowed for this key")
        if scope not in key.scopes:
            raise AuthError(403, "auth.scope", credential.place, "may not be used for this route")
        return Identity(key.id, key)

    def _find(self, secret: bytes) -> Key | None:
        # What a lookup by digest tells through its timing is about digests, and those nobody can choose.
        digest = hashlib.sha256(secret).hexdigest()
        key = self._keys.get(digest)
        same = hmac.compare_digest(digest, _NO_DIGEST if key is None else key.key_sha256)
        # An empty secret is what malformed credentials become; it is no key even where the configuration has it.
        return key if same and secret else None


def _credential(headers: Mapping[str, str], query_key: str | None) -> _Credential | None:
    if value := headers.get("X-API-Key", "").strip():
        return _Credential("X-API-Key", _header_bytes(value))
    if value := headers.get("Authorization", "").strip():
        return _Credential("Authorization", _authorization_secret(value))
    if query_key:
        return _Credential("api_key", query_key.encode("utf-8", "surrogatepass"), in_url=True)
    return None


def _authorization_secret(value: str) -> bytes:
    """Return the key out of an `Authorization` header (RFC 6750, RFC 7617); empty, which is no key, when malformed."""
    scheme, _, rest = value.partition(" ")
    token = _header_bytes(rest.strip())
    if scheme.lower() == "bearer":
        return token
    if scheme.lower() != "basic":
        return b""
    try:
        # Some SDKs leave the padding out.
        credentials = base64.b64decode(token + b"=" * (-len(token) % 4), validate=True)
    except binascii.Error:
        return b""
    return credentials.partition(b":")[0]


def _header_bytes(value: str) -> bytes:
    """Return a header's value as it was on the wire, where the HTTP server read each byte as one character."""
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")
