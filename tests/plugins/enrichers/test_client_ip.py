import pytest
from edge_plugins.enrichers.client_ip import ClientIp

from edge.testing import OptionsError, build, make_context, make_event, run_enricher


@pytest.mark.parametrize(
    ("remote_ip", "plain", "anonymized"),
    [
        ("192.0.2.255", "192.0.2.255", "192.0.2.0"),
        ("2001:db8:7:8:9:a:b:c", "2001:db8:7:8:9:a:b:c", "2001:db8:7::"),
        ("2001:0DB8::0001", "2001:db8::1", "2001:db8::"),
        ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.0"),
        ("::ffff:c000:207", "192.0.2.7", "192.0.2.0"),
        ("fe80::1%eth0", "fe80::1", "fe80::"),
        ("::1", "::1", "::"),
    ],
)
def test_client_ip_sets_the_address(remote_ip, plain, anonymized):
    context = make_context(remote_ip=remote_ip)
    assert run_enricher(build(ClientIp), make_event(), context)["client_ip"] == plain
    assert run_enricher(build(ClientIp, anonymize=True), make_event(), context)["client_ip"] == anonymized


@pytest.mark.parametrize("remote_ip", ["", "unix:", "300.1.1.1", "example.org"])
def test_client_ip_removes_what_the_sender_wrote_when_there_is_no_address(remote_ip):
    event = make_event(client_ip="198.51.100.1")
    assert run_enricher(build(ClientIp), event, make_context(remote_ip=remote_ip)) == make_event()


def test_client_ip_replaces_what_the_sender_wrote():
    event = run_enricher(build(ClientIp, field="ip"), make_event(ip="10.0.0.1"))
    assert event["ip"] == "192.0.2.7"


def test_client_ip_refuses_anonymize_that_is_no_boolean():
    with pytest.raises(OptionsError, match="anonymize: must be true or false"):
        build(ClientIp, anonymize="yes")
