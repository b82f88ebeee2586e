from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.http.proxies import TrustedProxies

PROXIES = TrustedProxies(["10.0.0.0/8", "192.168.1.1", "2001:db8:1::/48", "fe80::/10"])


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        # Nobody forwarded.
        ("203.0.113.9", [], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        # The peer is a stranger: whatever it says is not believed.
        ("203.0.113.9", ["1.2.3.4"], "203.0.113.9"),
        ("203.0.113.9", ["10.0.0.1"], "203.0.113.9"),
        ("203.0.113.9", ["127.0.0.1, 10.0.0.1"], "203.0.113.9"),
        # One proxy, several proxies.
        ("10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["1.2.3.4, 10.0.0.2"], "1.2.3.4"),
        ("10.0.0.1", ["1.2.3.4,10.0.0.3 ,\t10.0.0.2"], "1.2.3.4"),
        ("192.168.1.1", ["1.2.3.4"], "1.2.3.4"),
        ("192.168.1.2", ["1.2.3.4"], "192.168.1.2"),
        # Spoofed on the left: the nearest stranger is the client.
        ("10.0.0.1", ["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["10.0.0.9, 6.6.6.6, 1.2.3.4, 10.0.0.2"], "1.2.3.4"),
        ("10.0.0.1", ["127.0.0.1, 1.2.3.4"], "1.2.3.4"),
        # Several headers are one list.
        ("10.0.0.1", ["6.6.6.6", "1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6, 1.2.3.4", "10.0.0.2"], "1.2.3.4"),
        # Only proxies: the farthest.
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        # Ports, brackets, zones, other spellings.
        ("10.0.0.1", ["1.2.3.4:5678"], "1.2.3.4"),
        ("10.0.0.1", ["[2001:db8::7]:443"], "2001:db8::7"),
        ("10.0.0.1", ["[2001:db8::7]"], "2001:db8::7"),
        ("10.0.0.1", ["2001:DB8:0::7"], "2001:db8::7"),
        ("10.0.0.1", ["1.2.3.4, [2001:db8:1::5]:80"], "1.2.3.4"),
        ("10.0.0.1", ["::ffff:1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["[::ffff:1.2.3.4]:5"], "1.2.3.4"),
        ("::ffff:10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("::ffff:203.0.113.9", ["1.2.3.4"], "203.0.113.9"),
        ("2001:db8:1::1", ["1.2.3.4"], "1.2.3.4"),
        ("2001:db8:2::1", ["1.2.3.4"], "2001:db8:2::1"),
        ("fe80::1%eth0", ["1.2.3.4"], "1.2.3.4"),
        ("fe80::1%eth0", [], "fe80::1"),
        # Garbage ends the walk at the last good address.
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["1.2.3.4,, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["1.2.3.4,"], "10.0.0.1"),
        ("10.0.0.1", ["_hidden", "10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["1.2.3.4.5"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3"], "10.0.0.1"),
        ("10.0.0.1", ["016909060"], "10.0.0.1"),
        ("10.0.0.1", ["0x01020304"], "10.0.0.1"),
        ("10.0.0.1", ["001.002.003.004"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4:"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4:port"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4/32"], "10.0.0.1"),
        ("10.0.0.1", ["[1.2.3.4"], "10.0.0.1"),
        ("10.0.0.1", ["[2001:db8::7]junk"], "10.0.0.1"),
        ("10.0.0.1", ['for="1.2.3.4"'], "10.0.0.1"),
        ("10.0.0.1", ["<script>"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4\x00"], "10.0.0.1"),
        ("10.0.0.1", ["\u0661.\u0662.\u0663.\u0664"], "10.0.0.1"),
        ("10.0.0.1", ["x" * 16_000], "10.0.0.1"),
        # A unix socket has no address and is not trusted.
        ("", ["1.2.3.4"], ""),
        ("unix", [], "unix"),
    ],
)
def test_client_ip(peer: str, forwarded_for: list[str], client: str) -> None:
    assert PROXIES.client_ip(peer, forwarded_for) == client


def test_client_ip_is_the_peer_when_nobody_is_trusted() -> None:
    nobody = TrustedProxies([])
    assert nobody.client_ip("127.0.0.1", ["1.2.3.4"]) == "127.0.0.1"
    assert nobody.client_ip("::1", ["1.2.3.4"]) == "::1"


def test_client_ip_may_be_believed_from_everywhere() -> None:
    everywhere = TrustedProxies(["0.0.0.0/0", "::/0"])
    assert everywhere.client_ip("203.0.113.9", ["1.2.3.4, 5.6.7.8"]) == "1.2.3.4"


@pytest.mark.parametrize("network", ["", "proxy.example.org", "10.0.0.0/33", "10.0.0", "unix:"])
def test_trusted_proxies_refuses_what_is_no_network(network: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        TrustedProxies([network])


def test_trusted_proxies_takes_a_network_with_host_bits() -> None:
    assert TrustedProxies(["10.1.2.3/8"]).client_ip("10.9.9.9", ["1.2.3.4"]) == "1.2.3.4"


@given(st.text(max_size=30), st.lists(st.text(alphabet="0123456789.:[],% abcdef", max_size=60), max_size=4))
def test_client_ip_never_raises(peer: str, forwarded_for: list[str]) -> None:
    assert PROXIES.client_ip(peer, forwarded_for) == TrustedProxies([]).client_ip(peer, [])
    PROXIES.client_ip("10.0.0.1", forwarded_for)


@pytest.mark.parametrize("hops", ["10.0.0.2," * 1800, "," * 16_000, "[" * 16_000, "1.2.3.4:" * 2000, "::" * 8000])
def test_client_ip_is_not_held_up_by_a_long_header(hops: str) -> None:
    start = time.process_time()
    PROXIES.client_ip("10.0.0.1", [hops.rstrip(",")])
    assert time.process_time() - start < 0.1
