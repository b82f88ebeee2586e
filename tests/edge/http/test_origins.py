from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.http.origins import OriginPolicy

POLICY = OriginPolicy(
    [
        "https://shop.example.org",
        "https://*.example.com",
        "http://localhost:3000",
        "https://*.example.net:8443",
        "http://127.0.0.1:8080",
        "http://[::1]:8080",
        "app://bundle",
        "https://xn--bcher-kva.example",
    ]
)


@pytest.mark.parametrize(
    "origin",
    [
        "https://shop.example.org",
        "https://SHOP.Example.ORG",
        "HTTPS://shop.example.org",
        "https://shop.example.org:443",
        "https://a.example.com",
        "https://a.b.c.example.com",
        "https://A.EXAMPLE.com",
        "https://a-b_c.example.com",
        "https://xn--a.example.com",
        "https://a.example.com:443",
        "http://localhost:3000",
        "https://a.example.net:8443",
        "http://127.0.0.1:8080",
        "http://[::1]:8080",
        "app://bundle",
        "https://xn--bcher-kva.example",
    ],
)
def test_policy_allows(origin: str) -> None:
    assert POLICY.allows(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "NULL",
        "*",
        "https://",
        "https://*",
        "https://*.example.com",
        "shop.example.org",
        "//shop.example.org",
        "http://shop.example.org",
        "ftp://shop.example.org",
        "https://example.org",
        "https://www.shop.example.org",
        "https://shop.example.org.evil.org",
        "https://evilshop.example.org",
        "https://shop-example.org",
        "https://shopXexample.org",
        "https://shop.example.organic",
        "https://shop.example.org.",
        "https://shop.example.org:8443",
        "https://shop.example.org:80",
        "https://shop.example.org:",
        "https://shop.example.org:0443",
        "https://shop.example.org:443443",
        "https://shop.example.org/",
        "https://shop.example.org/path",
        "https://shop.example.org?x",
        "https://shop.example.org#x",
        "https://shop.example.org@evil.org",
        "https://evil.org@shop.example.org",
        "https://user:pass@shop.example.org",
        "https://evil.org/https://shop.example.org",
        "https://evil.org#https://shop.example.org",
        "https://evil.org\\.shop.example.org",
        " https://shop.example.org",
        "https://shop.example.org ",
        "https://shop.example.org\n",
        "https://shop.example.org\r\nX: y",
        "https://shop.example.org\x00",
        "https://shop.example.org, https://evil.org",
        "https://shop.example.org https://evil.org",
        "https://example.com",
        "https://.example.com",
        "https://..example.com",
        "https://a..example.com",
        "https://-a.example.com",
        "https://a-.example.com",
        "https://aexample.com",
        "https://a.example.com.",
        "https://a.example.com.evil.org",
        "https://a.example.com:8443",
        "http://a.example.com",
        "https://a.b@c.example.com",
        "https://a/b.example.com",
        "https://a%2eexample.com",
        "https://a\u3002example.com",
        "https://\u212a.example.com",
        "https://bücher.example",
        "https://a.example.net",
        "https://a.example.net:443",
        "http://localhost",
        "http://localhost:30000",
        "http://127.0.0.1",
        "http://[::1]",
        "http://[0:0:0:0:0:0:0:1]:8080",
        "https://" + "a." * 300 + "example.com",
    ],
)
def test_policy_refuses(origin: str) -> None:
    assert not POLICY.allows(origin)


def test_policy_without_patterns_refuses_all() -> None:
    assert not OriginPolicy([]).allows("https://shop.example.org")


def test_default_port_may_be_written_in_the_pattern() -> None:
    assert OriginPolicy(["https://shop.example.org:443"]).allows("https://shop.example.org")
    assert OriginPolicy(["http://*.example.org:80"]).allows("http://shop.example.org")
    assert not OriginPolicy(["http://shop.example.org"]).allows("http://shop.example.org:443")


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "*",
        "null",
        "https://*",
        "https://*.",
        "*.example.org",
        "shop.example.org",
        "https://shop.*.org",
        "https://*shop.example.org",
        "https://*.*.example.org",
        "https://**.example.org",
        "https://shop.example.org/",
        "https://shop.example.org:*",
        "https://*.[::1]",
        "https://user@shop.example.org",
        "https://bücher.example",
        "https://shop.example.org ",
    ],
)
def test_policy_refuses_patterns_that_are_no_origin(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not an origin; write https://"):
        OriginPolicy([pattern])


@given(st.text(max_size=60) | st.text(alphabet="htps:/.*exampl com[]@-_\n", max_size=60).map("https://a{}".format))
def test_policy_never_raises(origin: str) -> None:
    if POLICY.allows(origin):
        assert origin.lower().endswith((".example.com", ".example.com:443"))


@pytest.mark.parametrize("unit", ["a.", "a-", "a", "-", ".", "[", "a.-", ":"])
def test_policy_is_not_held_up_by_long_origins(unit: str) -> None:
    start = time.process_time()
    for length in (500, 16_000):
        assert not POLICY.allows("https://" + unit * (length // len(unit)))
    assert time.process_time() - start < 0.05
