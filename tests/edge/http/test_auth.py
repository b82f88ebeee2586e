from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders

from edge.config.model import Auth, Key
from edge.http.auth import Authenticator, AuthError, Identity

SERVER = "srv-key-0123456789abcdef"
BROWSER = "web-key-0123456789abcdef"
BATCH = "batch-key-0123456789abcdef"
UMLAUT = "schlüssel-ключ"


def key(id: str, secret: str, **changes: Any) -> Key:
    options: dict[str, Any] = {
        "browser": False,
        "allow_origins": (),
        "scopes": frozenset({"ingest", "batch"}),
        "rate_limit": None,
    }
    return Key(id=id, key_sha256=hashlib.sha256(secret.encode()).hexdigest(), **{**options, **changes})


KEYS = Auth(
    mode="keys",
    keys=(
        key("server", SERVER),
        key("web", BROWSER, browser=True, allow_origins=("https://shop.example.org", "https://*.example.com")),
        key("batch_only", BATCH, scopes=frozenset({"batch"})),
        key("umlaut", UMLAUT),
    ),
)
AUTHENTICATOR = Authenticator(KEYS)


def basic(user: str, password: str = "") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def identify(
    headers: dict[str, str] | None = None,
    query_key: str | None = None,
    origin: str | None = None,
    scope: Any = "ingest",
) -> Identity:
    return AUTHENTICATOR.identify(HTTPHeaders(headers or {}), query_key, origin, scope)


def refused(*args: Any, **kwargs: Any) -> tuple[int, str, str, str]:
    with pytest.raises(AuthError) as caught:
        identify(*args, **kwargs)
    error = caught.value
    return error.status, error.code, error.field, error.message


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": SERVER},
        {"x-api-key": SERVER},
        {"X-API-Key": f"  {SERVER} "},
        {"Authorization": f"Bearer {SERVER}"},
        {"authorization": f"bearer   {SERVER}"},
        {"Authorization": f"BEARER {SERVER}"},
        {"Authorization": basic(SERVER)},
        {"Authorization": basic(SERVER, "password: ignored")},
        {"Authorization": basic(SERVER).replace("Basic", "basic")},
        {"Authorization": basic(SERVER).rstrip("=")},
        {"Authorization": "Basic " + base64.b64encode(SERVER.encode()).decode()},
        {"X-API-Key": "", "Authorization": f"Bearer {SERVER}"},
    ],
)
def test_key_is_taken_from_each_header(headers: dict[str, str]) -> None:
    identity = identify(headers)
    assert identity.id == "server"
    assert identity.key is KEYS.keys[0]


def test_key_of_a_browser_is_taken_from_the_url() -> None:
    assert identify(query_key=BROWSER).id == "web"


def test_key_of_a_server_is_refused_in_the_url() -> None:
    message = "may not be sent in the URL; send it as X-API-Key"
    assert refused(query_key=SERVER) == (403, "auth.scope", "api_key", message)


@pytest.mark.parametrize(
    ("headers", "query_key"),
    [({}, None), ({}, ""), ({"X-API-Key": ""}, None), ({"X-API-Key": " ", "Authorization": ""}, "")],
)
def test_missing_key_is_told(headers: dict[str, str], query_key: str | None) -> None:
    assert refused(headers, query_key) == (401, "auth.missing", "X-API-Key", "is required")


@pytest.mark.parametrize(
    ("headers", "query_key", "field"),
    [
        ({"X-API-Key": "wrong"}, None, "X-API-Key"),
        ({"X-API-Key": SERVER[:-1]}, None, "X-API-Key"),
        ({"X-API-Key": SERVER + "x"}, None, "X-API-Key"),
        ({"X-API-Key": SERVER.upper()}, None, "X-API-Key"),
        ({"X-API-Key": KEYS.keys[0].key_sha256}, None, "X-API-Key"),
        ({"X-API-Key": f"{SERVER},{SERVER}"}, None, "X-API-Key"),
        ({"X-API-Key": f"{SERVER}, wrong"}, None, "X-API-Key"),
        ({"X-API-Key": "\x00"}, None, "X-API-Key"),
        ({"X-API-Key": "ключ"}, None, "X-API-Key"),
        ({"X-API-Key": "\udc80"}, None, "X-API-Key"),
        ({"X-API-Key": "x" * 10_240}, None, "X-API-Key"),
        ({"Authorization": SERVER}, None, "Authorization"),
        ({"Authorization": "Bearer"}, None, "Authorization"),
        ({"Authorization": f"Bearer {SERVER}, Bearer {SERVER}"}, None, "Authorization"),
        ({"Authorization": f"Token {SERVER}"}, None, "Authorization"),
        ({"Authorization": "Negotiate abc"}, None, "Authorization"),
        ({"Authorization": "Basic"}, None, "Authorization"),
        ({"Authorization": "Basic ???"}, None, "Authorization"),
        ({"Authorization": "Basic a"}, None, "Authorization"),
        ({"Authorization": "Basic ключ"}, None, "Authorization"),
        ({"Authorization": basic("", SERVER)}, None, "Authorization"),
        ({"Authorization": basic("wrong", SERVER)}, None, "Authorization"),
        ({"Authorization": "Basic " + "A" * 10_240}, None, "Authorization"),
        ({}, "wrong", "api_key"),
        ({}, "\udcff", "api_key"),
        ({}, BROWSER + "\n", "api_key"),
    ],
)
def test_wrong_key_is_refused_where_it_was_sent(headers: dict[str, str], query_key: str | None, field: str) -> None:
    assert refused(headers, query_key) == (401, "auth.invalid", field, "is not a valid key")


def test_first_credential_alone_counts() -> None:
    assert identify({"X-API-Key": SERVER, "Authorization": f"Bearer {BATCH}"}, BROWSER).id == "server"
    assert refused({"X-API-Key": "wrong", "Authorization": f"Bearer {SERVER}"})[1:3] == ("auth.invalid", "X-API-Key")
    assert identify({"Authorization": f"Bearer {SERVER}"}, BROWSER).id == "server"
    assert refused({"Authorization": "Bearer wrong"}, BROWSER)[1:3] == ("auth.invalid", "Authorization")


def test_key_outside_ascii_works_in_each_way() -> None:
    on_the_wire = UMLAUT.encode().decode("latin-1")
    assert identify({"X-API-Key": on_the_wire}).id == "umlaut"
    assert identify({"Authorization": f"Bearer {on_the_wire}"}).id == "umlaut"
    assert identify({"Authorization": basic(UMLAUT)}).id == "umlaut"
    assert refused(query_key=UMLAUT)[1] == "auth.scope"


@pytest.mark.parametrize(
    "origin", [None, "https://shop.example.org", "https://a.example.com", "HTTPS://SHOP.example.org"]
)
def test_key_is_taken_from_its_origins_and_from_no_browser(origin: str | None) -> None:
    assert identify({"X-API-Key": BROWSER}, origin=origin).id == "web"


@pytest.mark.parametrize("origin", ["", "null", "https://evil.org", "https://example.com", "http://shop.example.org"])
def test_key_is_refused_from_other_origins(origin: str) -> None:
    expected = (403, "auth.origin", "Origin", "is not allowed for this key")
    assert refused({"X-API-Key": BROWSER}, origin=origin) == expected
    assert refused(query_key=BROWSER, origin=origin) == expected


def test_key_without_origins_is_taken_from_any() -> None:
    assert identify({"X-API-Key": SERVER}, origin="https://anywhere.org").id == "server"
    assert identify({"X-API-Key": SERVER}, origin="null").id == "server"


def test_key_is_refused_for_a_route_outside_its_scopes() -> None:
    assert identify({"X-API-Key": BATCH}, scope="batch").id == "batch_only"
    expected = (403, "auth.scope", "X-API-Key", "may not be used for this route")
    assert refused({"X-API-Key": BATCH}, scope="ingest") == expected
    assert refused({"Authorization": f"Bearer {BATCH}"}, scope="ingest")[2] == "Authorization"


def test_anyone_is_anonymous_when_authentication_is_off() -> None:
    open_to_all = Authenticator(Auth(mode="none", keys=KEYS.keys))
    for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Basic ???"}):
        assert open_to_all.identify(HTTPHeaders(headers), "wrong", "null", "batch") == Identity("anonymous")


def test_empty_secret_is_no_key_even_when_configured() -> None:
    careless = Authenticator(Auth(mode="keys", keys=(key("empty", ""),)))
    for headers in ({"Authorization": "Bearer"}, {"Authorization": basic("", "x")}, {"Authorization": "Basic ???"}):
        with pytest.raises(AuthError) as caught:
            careless.identify(HTTPHeaders(headers), None, None, "ingest")
        assert caught.value.code == "auth.invalid"


def test_duplicated_headers_are_no_key() -> None:
    headers = HTTPHeaders()
    headers.add("X-API-Key", SERVER)
    headers.add("X-API-Key", SERVER)
    with pytest.raises(AuthError) as caught:
        AUTHENTICATOR.identify(headers, None, None, "ingest")
    assert caught.value.code == "auth.invalid"


def test_keys_appear_in_no_repr_and_no_message() -> None:
    seen = repr(AUTHENTICATOR) + repr(identify({"X-API-Key": SERVER}))
    for headers in (
        {"X-API-Key": "hunter2" + SERVER},
        {"Authorization": basic("hunter2" + SERVER)},
        {"X-API-Key": BATCH},
    ):
        with pytest.raises(AuthError) as caught:
            identify(headers)
        seen += repr(caught.value) + str(caught.value) + repr(caught.value.args)
    for secret in (SERVER, BATCH, "hunter2", KEYS.keys[0].key_sha256):
        assert secret not in seen


TEXT = st.none() | st.text(max_size=40) | st.sampled_from([SERVER, BROWSER, basic(SERVER), f"Bearer {BATCH}", "null"])


@given(TEXT, TEXT, TEXT, TEXT)
@settings(deadline=None)
def test_authenticator_raises_nothing_else(
    api_key: str | None, authorization: str | None, query_key: str | None, origin: str | None
) -> None:
    sent = {"X-API-Key": api_key, "Authorization": authorization}
    headers = {name: value for name, value in sent.items() if value is not None}
    try:
        found = AUTHENTICATOR.identify(headers, query_key, origin, "ingest").id
    except AuthError as error:
        found = f"{error.status} {error.code}"
    assert found in {"server", "web", "401 auth.missing", "401 auth.invalid", "403 auth.origin", "403 auth.scope"}
