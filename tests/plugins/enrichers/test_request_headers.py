import pytest
from edge_plugins.enrichers.request_headers import RequestHeaders

from edge.testing import OptionsError, build, make_context, make_event, run_enricher


def test_request_headers_sets_those_that_are_present():
    component = build(RequestHeaders, headers=["User-Agent", "accept-language", "DNT"])
    context = make_context(headers={"user-agent": "curl/8", "dnt": "1", "host": "example.org"})
    event = run_enricher(component, make_event(), context)
    assert event["request_headers"] == {"user-agent": "curl/8", "dnt": "1"}


def test_request_headers_asks_for_its_headers_in_lower_case():
    assert build(RequestHeaders, headers=["User-Agent", "DNT"]).wanted_headers() == ["user-agent", "dnt"]


def test_request_headers_leaves_the_event_when_none_is_present():
    assert build(RequestHeaders, headers=["DNT"]).edge_enrich(make_context()) is None


def test_request_headers_sets_the_configured_field():
    component = build(RequestHeaders, headers=["DNT"], field="http")
    assert run_enricher(component, make_event(http=1), make_context(headers={"dnt": "0"}))["http"] == {"dnt": "0"}


@pytest.mark.parametrize("name", ["Authorization", "cookie", "X-API-Key", "proxy-authorization"])
def test_request_headers_refuses_credentials_when_loaded(name):
    with pytest.raises(OptionsError, match=r"headers\.1: .* carries credentials"):
        build(RequestHeaders, headers=["dnt", name])


@pytest.mark.parametrize("headers", [[], ["a b"], ["a:"], [7], "dnt", ["x\r\ny"]])
def test_request_headers_refuses_what_is_no_list_of_names(headers):
    with pytest.raises(OptionsError, match="headers"):
        build(RequestHeaders, headers=headers)
