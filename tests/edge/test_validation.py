from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
import voluptuous as vol
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.example import EXAMPLE_EVENT
from edge.validation import MAX_DETAILS, EventValidator, echo_name, to_openapi

REQUIRED = ("event_id", "event_type", "event_name", "event_time", "user_id", "session_id", "page_name")
TEXTS = ("element_id", "referrer", "app_version")
CHOICES = {
    "device_type": ("mobile", "desktop", "tablet"),
    "platform": ("ios", "android", "web"),
    "network_type": ("wifi", "cellular", "unknown"),
}
OBJECTS = ("content", "behavior", "performance", "location", "commerce", "interaction", "extras")
ORDER = (*REQUIRED, *TEXTS, *CHOICES, *OBJECTS, "experiments")
CODES = {f"validation.{word}" for word in ("required", "type", "format", "enum", "length", "unknown", "limit")}

CURL = dict(EXAMPLE_EVENT)

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=20)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)
NAMED_JSON = st.dictionaries(st.sampled_from(ORDER) | st.text(max_size=10), JSON, max_size=30)
OFFSETS = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
VALID = st.fixed_dictionaries(
    {
        **{name: st.text(min_size=1) for name in REQUIRED},
        "event_time": st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=st.none() | OFFSETS).map(  # noqa: DTZ001
            lambda moment: moment.isoformat()
        ),
    },
    optional={
        **{name: st.text() for name in TEXTS},
        **{name: st.sampled_from(words) for name, words in CHOICES.items()},
        **{name: st.dictionaries(st.text(), JSON, max_size=3) for name in OBJECTS},
        "experiments": st.lists(st.text()),
    },
)


def event(**changes: Any) -> dict[str, Any]:
    return {**CURL, **changes}


def mistakes(value: object, validator: EventValidator | None = None) -> list[tuple[str, str, str]]:
    taken, details = (validator or EventValidator()).validate(value)
    assert (taken is None) == bool(details)
    return [(detail["field"], detail["message"], detail["code"]) for detail in details]


def cpu_secs(call: Callable[[], object]) -> float:
    """The least of three runs: other processes share the machine's cores and caches."""
    runs = []
    for _ in range(3):
        start = time.process_time()
        call()
        runs.append(time.process_time() - start)
    return min(runs)


def test_validator_takes_the_event_of_the_contract() -> None:
    value = event()
    taken, details = EventValidator().validate(value)
    assert taken is value
    assert details == []


def test_validator_takes_every_field_of_the_contract() -> None:
    full = event(referrer="", experiments=["a", ""], **{name: {"any": [1, {"thing": None}]} for name in OBJECTS})
    assert set(full) == set(ORDER)
    assert mistakes(full) == []


def test_schema_has_the_fields_of_the_contract_in_order() -> None:
    schema = EventValidator().schema
    assert [str(marker) for marker in schema.schema] == list(ORDER)
    assert tuple(str(marker) for marker in schema.schema if isinstance(marker, vol.Required)) == REQUIRED
    assert all(marker.description.endswith(".") for marker in schema.schema)


@pytest.mark.parametrize("name", REQUIRED)
def test_required_field_is_reported_when_missing(name: str) -> None:
    value = event()
    del value[name]
    assert mistakes(value) == [(name, "is required", "validation.required")]


@pytest.mark.parametrize("name", [*REQUIRED, *TEXTS, *CHOICES])
@pytest.mark.parametrize("wrong", [None, True, 0, 1.5, [], {}, ["x"], {"x": "y"}])
def test_string_field_refuses_other_types(name: str, wrong: object) -> None:
    assert mistakes(event(**{name: wrong})) == [(name, "must be a string", "validation.type")]


@pytest.mark.parametrize("name", [name for name in REQUIRED if name != "event_time"])
def test_required_string_refuses_empty(name: str) -> None:
    assert mistakes(event(**{name: ""})) == [(name, "must not be empty", "validation.length")]


@pytest.mark.parametrize("name", TEXTS)
def test_optional_string_may_be_empty(name: str) -> None:
    assert mistakes(event(**{name: ""})) == []


@pytest.mark.parametrize(("name", "words"), CHOICES.items())
def test_choice_takes_its_words_and_names_them_when_wrong(name: str, words: tuple[str, ...]) -> None:
    for word in words:
        assert mistakes(event(**{name: word})) == []
    expected = [(name, f"must be one of: {', '.join(words)}", "validation.enum")]
    for wrong in ("", words[0].upper(), words[0] + " ", "secret-value"):
        assert mistakes(event(**{name: wrong})) == expected


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("wrong", [None, False, 3, "{}", []])
def test_object_field_refuses_other_types(name: str, wrong: object) -> None:
    assert mistakes(event(**{name: wrong})) == [(name, "must be an object", "validation.type")]


@pytest.mark.parametrize("wrong", [None, "a,b", {}, 1])
def test_experiments_must_be_an_array(wrong: object) -> None:
    assert mistakes(event(experiments=wrong)) == [("experiments", "must be an array", "validation.type")]


def test_experiments_reports_each_wrong_element_by_index() -> None:
    assert mistakes(event(experiments=["a", 1, "b", None, ["c"]])) == [
        (f"experiments[{index}]", "must be a string", "validation.type") for index in (1, 3, 4)
    ]


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "text", [], [{}], [CURL]])
def test_validator_refuses_what_is_no_object(value: object) -> None:
    assert mistakes(value) == [("event", "must be a JSON object", "validation.type")]


def test_validator_reports_every_mistake_in_the_order_of_the_schema() -> None:
    value = {
        "zzz": 1,
        "experiments": ["a", 2],
        "extras": [],
        "platform": "symbian",
        "userId": "u",
        "page_name": "",
        "event_time": "yesterday",
        "event_id": 7,
        "aaa": 2,
    }
    assert mistakes(value) == [
        ("event_id", "must be a string", "validation.type"),
        ("event_type", "is required", "validation.required"),
        ("event_name", "is required", "validation.required"),
        ("event_time", "must be a valid ISO 8601 datetime", "validation.format"),
        ("user_id", "is required", "validation.required"),
        ("session_id", "is required", "validation.required"),
        ("page_name", "must not be empty", "validation.length"),
        ("platform", "must be one of: ios, android, web", "validation.enum"),
        ("extras", "must be an object", "validation.type"),
        ("experiments[1]", "must be a string", "validation.type"),
        ("zzz", "is not a known field; custom data belongs in extras", "validation.unknown"),
        ("userId", "is not a known field; did you mean user_id?", "validation.unknown"),
        ("aaa", "is not a known field; custom data belongs in extras", "validation.unknown"),
    ]


def test_empty_object_lacks_every_required_field() -> None:
    assert mistakes({}) == [(name, "is required", "validation.required") for name in REQUIRED]


def test_unknown_fields_are_rejected_by_default() -> None:
    assert [field for field, _, _ in mistakes(event(one=1, two=2))] == ["one", "two"]


def test_unknown_fields_are_kept_when_told_to() -> None:
    value = event(one=1, two={"deep": [2]})
    assert EventValidator("keep").validate(value) == (value, [])


def test_unknown_fields_are_dropped_when_told_to_and_the_given_event_stays_whole() -> None:
    value = event(one=1, extras={"one": 1})
    before = copy.deepcopy(value)
    taken, details = EventValidator("drop").validate(value)
    assert (taken, details) == (event(extras={"one": 1}), [])
    assert value == before


@pytest.mark.parametrize("unknown_fields", ["reject", "keep", "drop"])
def test_known_fields_are_judged_whatever_happens_to_unknown_ones(unknown_fields: Any) -> None:
    found = mistakes({**event(platform=1), "other": 1}, EventValidator(unknown_fields))
    assert found[0] == ("platform", "must be a string", "validation.type")
    assert len(found) == (2 if unknown_fields == "reject" else 1)


def test_unknown_fields_inside_objects_are_the_senders_business() -> None:
    assert mistakes(event(extras={"anything": 1, "user_id": None}, content={"x": {"y": []}})) == []


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("userId", "user_id"),
        ("UserID", "user_id"),
        ("user-id", "user_id"),
        ("user id", "user_id"),
        ("USER_ID", "user_id"),
        ("usr_id", "user_id"),
        ("uesr_id", "user_id"),
        ("user_ids", "user_id"),
        ("eventTime", "event_time"),
        ("event_tme", "event_time"),
        ("extra", "extras"),
        ("experiment", "experiments"),
        ("behaviour", "behavior"),
        ("sessionid", "session_id"),
    ],
)
def test_unknown_field_suggests_what_was_meant(sent: str, meant: str) -> None:
    expected = (sent, f"is not a known field; did you mean {meant}?", "validation.unknown")
    assert mistakes(event(**{sent: 1})) == [expected]


@pytest.mark.parametrize("sent", ["timestamp", "color", "", "x", "_gateway", "seq", "user_id" * 9, "id"])
def test_unknown_field_points_to_extras_when_nothing_is_near(sent: str) -> None:
    message = "is not a known field; custom data belongs in extras"
    assert mistakes(event(**{sent: 1})) == [(sent, message, "validation.unknown")]


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [
        ("x" * 5000, "x" * 128),
        ("a\r\nSet-Cookie: b", r"a\u000d\u000aSet-Cookie: b"),
        ("\x1b[31mred", r"\u001b[31mred"),
        ("a\u202eb\u2028c\x00", r"a\u202eb\u2028c\u0000"),
        ("größe 🎉", "größe 🎉"),
    ],
)
def test_unknown_field_name_is_echoed_short_and_harmless(sent: str, echoed: str) -> None:
    assert echo_name(sent) == echoed
    assert mistakes(event(**{sent: 1}))[0][0] == echoed


def test_values_are_never_echoed() -> None:
    secret = "hunter2-hunter2"
    value = dict.fromkeys(ORDER, secret) | {
        "event_time": secret,
        "experiments": [1, {secret: secret}],
        "odd": secret,
    }
    value["event_id"] = [secret]
    assert "hunter2" not in repr(EventValidator().validate(value))


def test_required_makes_optional_fields_required() -> None:
    validator = EventValidator(required=("platform", "commerce", "user_id"))
    value = event()
    del value["platform"]
    assert mistakes(value, validator) == [
        ("platform", "is required", "validation.required"),
        ("commerce", "is required", "validation.required"),
    ]
    assert mistakes(event(commerce={}), validator) == []


def test_required_refuses_names_outside_the_schema() -> None:
    with pytest.raises(ValueError, match="no such field in the event schema: user, colour"):
        EventValidator(required=("platform", "user", "colour"))


@pytest.mark.parametrize("n_unknown", [MAX_DETAILS - 1, MAX_DETAILS, MAX_DETAILS + 1, MAX_DETAILS + 500, 8000])
def test_details_are_limited_and_the_rest_is_counted(n_unknown: int) -> None:
    found = mistakes({f"field{index}": index for index in range(n_unknown)} | {"user_id": "u"})
    total = n_unknown + len(REQUIRED) - 1
    assert [field for field, _, _ in found[:7]] == [*(name for name in REQUIRED if name != "user_id"), "field0"]
    if total > MAX_DETAILS:
        assert len(found) == MAX_DETAILS + 1
        assert found[-1] == ("event", f"has {total - MAX_DETAILS} more mistakes", "validation.limit")
    else:
        assert len(found) == total


def test_one_mistake_too_many_is_told_in_the_singular() -> None:
    found = mistakes(event(**{f"f{index}": 1 for index in range(MAX_DETAILS + 1)}))
    assert found[-1] == ("event", "has 1 more mistake", "validation.limit")


def test_details_are_limited_for_elements_of_experiments() -> None:
    found = mistakes(event(experiments=[0] * 5000, other=1))
    assert found[:2] == [(f"experiments[{index}]", "must be a string", "validation.type") for index in (0, 1)]
    assert found[-1] == ("event", "has 4001 more mistakes", "validation.limit")
    assert len(found) == MAX_DETAILS + 1


def test_details_are_limited_further_by_the_caller() -> None:
    _, details = EventValidator().validate({f"f{index}": 1 for index in range(50)}, max_details=10)
    assert [detail["field"] for detail in details] == [*REQUIRED, "f0", "f1", "f2", "event"]
    assert details[-1]["message"] == "has 47 more mistakes"


@pytest.mark.parametrize("prefix", ["x", "user_i", "event_nam", "ß" * 7])
@pytest.mark.parametrize("n_unknown", [1000, 8000])
def test_thousands_of_unknown_fields_cost_little(prefix: str, n_unknown: int) -> None:
    value = {f"{prefix}{index}": 1 for index in range(n_unknown)}
    validator = EventValidator()
    assert cpu_secs(lambda: validator.validate(value)) < 0.05


def test_many_wrong_elements_cost_little() -> None:
    value = event(experiments=[0] * 100_000)
    validator = EventValidator()
    assert cpu_secs(lambda: validator.validate(value)) < 0.1


@given(JSON | NAMED_JSON)
@settings(deadline=None, max_examples=100)
def test_validator_never_raises_and_details_are_ordered_and_unique(value: object) -> None:
    before = orjson.dumps(value)
    taken, details = EventValidator().validate(value)
    assert (taken is None) == bool(details)
    assert orjson.dumps(value) == before
    assert {detail["code"] for detail in details} <= CODES
    if isinstance(value, dict):
        fields = [detail["field"].partition("[")[0] for detail in details if detail["code"] != "validation.unknown"]
        assert fields == sorted(fields, key=ORDER.index)
        unknown = [detail["field"] for detail in details if detail["code"] == "validation.unknown"]
        assert unknown == [echo_name(name) for name in value if name not in ORDER]
        assert details[len(details) - len(unknown) :] == [d for d in details if d["code"] == "validation.unknown"]
        known = [detail["field"] for detail in details if detail["code"] != "validation.unknown"]
        assert len(set(known)) == len(known)


@given(NAMED_JSON, st.sampled_from(["keep", "drop"]))
@settings(deadline=None, max_examples=50)
def test_unknown_fields_are_no_mistakes_when_kept_or_dropped(value: dict[str, object], unknown_fields: Any) -> None:
    _, details = EventValidator(unknown_fields).validate(value)
    rejecting = EventValidator().validate(value)[1]
    assert details == [detail for detail in rejecting if detail["code"] != "validation.unknown"]


@given(VALID)
@settings(deadline=None, max_examples=100)
def test_validator_takes_valid_events(value: dict[str, object]) -> None:
    for unknown_fields in ("reject", "keep", "drop"):
        assert EventValidator(unknown_fields).validate(value) == (value, [])


def test_openapi_says_what_the_schema_says() -> None:
    document = to_openapi(EventValidator().schema)
    assert document["type"] == "object"
    assert document["required"] == list(REQUIRED)
    assert document["additionalProperties"] is False
    properties = document["properties"]
    assert list(properties) == list(ORDER)
    assert all(part.pop("description") for part in properties.values())
    for name in REQUIRED:
        assert properties[name] == (
            {"type": "string", "format": "date-time"} if name == "event_time" else {"type": "string", "minLength": 1}
        )
    assert all(properties[name] == {"type": "string"} for name in TEXTS)
    assert all(properties[name] == {"type": "string", "enum": list(words)} for name, words in CHOICES.items())
    assert all(properties[name] == {"type": "object", "additionalProperties": True} for name in OBJECTS)
    assert properties["experiments"] == {"type": "array", "items": {"type": "string"}}
    json.dumps(document)


def test_openapi_follows_the_sites_choices() -> None:
    document = to_openapi(EventValidator("drop", ("platform",)).schema)
    assert document["required"] == [*REQUIRED, "platform"]
    assert document["additionalProperties"] is True
    assert to_openapi(EventValidator("keep").schema)["additionalProperties"] is True


def test_openapi_documents_do_not_share_parts() -> None:
    schema = EventValidator().schema
    to_openapi(schema)["properties"]["platform"]["enum"].append("symbian")
    assert to_openapi(schema)["properties"]["platform"]["enum"] == ["ios", "android", "web"]
    assert mistakes(event(platform="symbian"))
