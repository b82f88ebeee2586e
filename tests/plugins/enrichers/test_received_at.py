from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from edge_plugins.enrichers.received_at import ReceivedAt
from hypothesis import assume, example, given
from hypothesis.strategies import datetimes, sampled_from

from edge.testing import OptionsError, build, make_context, make_event, run_enricher


def test_received_at_sets_utc_with_milliseconds_and_z():
    context = make_context(received_at=datetime(2026, 11, 23, 20, 17, 31, 42_999, UTC))
    assert run_enricher(build(ReceivedAt), make_event(), context)["received_at"] == "2026-11-23T20:17:31.042Z"


@given(datetimes(timezones=sampled_from([UTC, timezone(timedelta(hours=-5, minutes=-30)), ZoneInfo("Asia/Tokyo")])))
@example(datetime(2026, 11, 23, 20, 17, 31, 0, UTC))
@example(datetime(2026, 11, 23, 20, 17, 31, 100_000, UTC))
@example(datetime(1, 1, 2, microsecond=999, tzinfo=UTC))
def test_every_time_is_written_as_isoformat_does(moment):
    assume(datetime(1, 1, 2, tzinfo=UTC) <= moment <= datetime(9999, 12, 30, tzinfo=UTC))
    event = run_enricher(build(ReceivedAt), make_event(), make_context(received_at=moment))
    iso = moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    assert event["received_at"] == f"{iso}Z"


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
