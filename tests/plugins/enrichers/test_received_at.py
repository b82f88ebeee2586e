from datetime import UTC, datetime, timedelta, timezone

import pytest
from edge_plugins.enrichers.received_at import ReceivedAt

from edge.testing import OptionsError, build, make_context, make_event, run_enricher


def test_received_at_sets_utc_with_milliseconds_and_z():
    context = make_context(received_at=datetime(2026, 11, 23, 20, 17, 31, 42_999, UTC))
    assert run_enricher(build(ReceivedAt), make_event(), context)["received_at"] == "2026-11-23T20:17:31.042Z"


def test_received_at_converts_other_time_zones():
    eastern = timezone(timedelta(hours=-5))
    context = make_context(received_at=datetime(2026, 11, 23, 20, 0, tzinfo=eastern))
    assert run_enricher(build(ReceivedAt), make_event(), context)["received_at"] == "2026-11-24T01:00:00.000Z"


def test_received_at_sets_the_configured_field_and_replaces_what_was_sent():
    event = run_enricher(build(ReceivedAt, field="at"), make_event(at="yesterday"), make_context())
    assert event["at"] == "2025-09-17T10:00:01.234Z"
    assert "received_at" not in event


@pytest.mark.parametrize("field", ["", "a.b", "a b", 3, "x" * 129])
def test_received_at_refuses_what_is_no_field_name(field):
    with pytest.raises(OptionsError, match="field: must be the name of a top-level field"):
        build(ReceivedAt, field=field)
