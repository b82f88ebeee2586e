from datetime import date

import pytest
from edge_plugins.enrichers.static_fields import StaticFields

from edge.testing import OptionsError, build, make_event, run_enricher


def test_static_fields_sets_any_json_value():
    fields = {
        "environment": "production",
        "tier": 1,
        "ratio": 0.5,
        "beta": False,
        "none": None,
        "at": {"cell": [1, "b"]},
    }
    event = run_enricher(build(StaticFields, fields=fields), make_event(tier="old"))
    assert {name: event[name] for name in fields} == fields
    assert event["event_id"] == "evt_123456789"


def test_static_fields_gives_every_event_values_of_its_own():
    component = build(StaticFields, fields={"gateway": {"tags": []}})
    component.edge_enrich()["gateway"]["tags"].append("mine")
    assert component.edge_enrich() == {"gateway": {"tags": []}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "at least one field"),
        ({"day": date(2026, 11, 23)}, "fields.day: must be a JSON value, not a date"),
        ({"big": 2**63}, "fields.big: must be an integer of at most 64 bits"),
        ({"nan": float("nan")}, "fields.nan: must be a finite number"),
        ({"nested": {"list": [{1: "a"}]}}, "must be text as the key"),
        ({"text": "\ud800"}, "lone surrogates"),
        ({"a.b": 1}, "top-level field"),
        ("no mapping", "mapping|dictionary"),
    ],
)
def test_static_fields_refuses_what_json_does_not_have(fields, message):
    with pytest.raises(OptionsError, match=message):
        build(StaticFields, fields=fields)


def test_static_fields_requires_fields():
    with pytest.raises(OptionsError, match="fields: is required"):
        build(StaticFields)
