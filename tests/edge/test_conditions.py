"""Conditions: what each operator matches, what is refused at load, and that no event makes one raise."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.conditions import MAX_DEPTH, OPERATORS, Condition, ConditionError, compile_condition
from edge.patterns import PATTERN_CHARS, SUBJECT_CHARS, PatternError, compile_pattern

EVENT: dict[str, Any] = {
    "event_type": "click",
    "count": 3,
    "ratio": 0.5,
    "flag": True,
    "nothing": None,
    "commerce": {"total": 120, "currency": "EUR", "lines": {"first": {"sku": "a1"}}},
    "experiments": ["a", 7],
    "dotted.key": "literal",
    "half": {"dotted.rest": 1},
    "commerce.currency": "USD",
    "text": "x\ny",
}

MATCHING: list[Any] = [
    {"event_type": "click"},
    {"event_type": ["scroll", "click"]},
    {"count": 3},
    {"count": 3.0},
    {"count": [2, 3]},
    {"ratio": 0.5},
    {"flag": True},
    {"nothing": None},
    {"nothing": ["x", None]},
    {"commerce.total": 120},
    {"commerce.lines.first.sku": "a1"},
    {"dotted.key": "literal"},
    {"half.dotted.rest": 1},
    {"commerce.currency": "USD"},
    {"event_type": "click", "count": 3},
    {"event_type": {"eq": "click"}},
    {"event_type": {"ne": "scroll"}},
    {"missing": {"ne": "x"}},
    {"count": {"ne": True}},
    {"event_type": {"in": ["click"]}},
    {"count": {"gt": 2}},
    {"count": {"ge": 3, "le": 3}},
    {"count": {"lt": 3.5}},
    {"ratio": {"lt": 1}},
    {"event_type": {"ge": "a", "lt": "d"}},
    {"event_type": {"matches": "^cl"}},
    {"event_type": {"matches": "ick$"}},
    {"text": {"matches": "(?m)^y"}},
    {"event_type": {"contains": "lic"}},
    {"experiments": {"contains": "a"}},
    {"experiments": {"contains": 7}},
    {"count": {"exists": True}},
    {"nothing": {"exists": True}},
    {"commerce.nope": {"exists": False}},
    {"missing": {"exists": False}},
    {"any": [{"count": 1}, {"count": 3}]},
    {"all": [{"count": 3}, {"flag": True}]},
    {"not": {"count": 1}},
    {"not": {"missing": "x"}},
    {"any": [{"not": {"count": 3}}, {"all": [{"flag": True}, {"event_type": "click"}]}], "count": 3},
]

NOT_MATCHING: list[Any] = [
    {"event_type": "scroll"},
    {"event_type": ["scroll"]},
    {"event_type": 3},
    {"count": "3"},
    {"count": True},
    {"flag": 1},
    {"flag": [1, "x"]},
    {"flag": "true"},
    {"nothing": False},
    {"missing": None},
    {"missing": "x"},
    {"commerce": "x"},
    {"commerce.total.deeper": 1},
    {"event_type.deeper": 1},
    {"commerce.currency": "EUR"},
    {"event_type": "click", "count": 4},
    {"event_type": {"ne": "click"}},
    {"count": {"gt": 3}},
    {"count": {"gt": 1, "lt": 2}},
    {"flag": {"gt": 0}},
    {"event_type": {"gt": 0}},
    {"count": {"gt": "2"}},
    {"nothing": {"ge": 0}},
    {"missing": {"lt": 5}},
    {"count": {"matches": "3"}},
    {"event_type": {"matches": "^lick"}},
    {"missing": {"matches": ""}},
    {"event_type": {"contains": "x"}},
    {"experiments": {"contains": "b"}},
    {"experiments": {"contains": True}},
    {"count": {"contains": 3}},
    {"commerce": {"contains": "total"}},
    {"count": {"exists": False}},
    {"missing": {"exists": True}},
    {"any": [{"count": 1}, {"count": 2}]},
    {"all": [{"count": 3}, {"flag": False}]},
    {"not": {"count": 3}},
]


@pytest.mark.parametrize("data", MATCHING, ids=str)
def test_condition_matches(data: Any) -> None:
    assert compile_condition(data)(EVENT) is True


@pytest.mark.parametrize("data", NOT_MATCHING, ids=str)
def test_condition_does_not_match(data: Any) -> None:
    assert compile_condition(data)(EVENT) is False


REFUSED: list[tuple[Any, tuple[Any, ...], str]] = [
    ("click", (), "must be a mapping of fields to values; write e.g. {event_type: click}"),
    ({}, (), "must be a mapping of fields to values; write e.g."),
    ({"": 1}, ("",), "is not the path of a field; write e.g. event_type or commerce.total"),
    ({"a..b": 1}, ("a..b",), "is not the path of a field"),
    ({".a": 1}, (".a",), "is not the path of a field"),
    ({"a": []}, ("a",), "must be a list of values; write e.g. [click, scroll]"),
    ({"a": [[1]]}, ("a", 0), "must be text, a number, true, false or null"),
    ({"a": ["x", {"eq": 1}]}, ("a", 1), "must be text, a number, true, false or null"),
    ({"a": {}}, ("a",), "must hold an operator; known: eq, ne, in,"),
    ({"a": {"equals": 1}}, ("a", "equals"), "is not a known operator; known: eq, ne, in,"),
    ({"a": {"match": "x"}}, ("a", "match"), "did you mean matches?"),
    ({"a": {"eq": [1]}}, ("a", "eq"), "must be text, a number"),
    ({"a": {"ne": {"x": 1}}}, ("a", "ne"), "must be text, a number"),
    ({"a": {"in": "x"}}, ("a", "in"), "must be a list of values"),
    ({"a": {"gt": True}}, ("a", "gt"), "must be a number or text; write e.g. 100"),
    ({"a": {"le": None}}, ("a", "le"), "must be a number or text"),
    ({"a": {"exists": "yes"}}, ("a", "exists"), "must be true or false"),
    ({"a": {"exists": 1}}, ("a", "exists"), "must be true or false"),
    ({"a": {"contains": []}}, ("a", "contains"), "must be text, a number"),
    ({"a": {"matches": 3}}, ("a", "matches"), "must be a regular expression as text; write e.g. '^/checkout'"),
    ({"a": {"matches": "("}}, ("a", "matches"), "is not a regular expression: missing ), unterminated subpattern;"),
    ({"any": {"a": 1}}, ("any",), "must be a list of conditions; write e.g. any: [{event_type: click}]"),
    ({"all": []}, ("all",), "must be a list of conditions; write e.g. all: ["),
    ({"any": [{"a": 1}, 7]}, ("any", 1), "must be a mapping of fields to values"),
    ({"not": [{"a": 1}]}, ("not",), "must be a mapping of fields to values"),
    ({"not": {"any": [{"a": {"gtt": 1}}]}}, ("not", "any", 0, "a", "gtt"), "is not a known operator"),
]


@pytest.mark.parametrize(("data", "path", "message"), REFUSED, ids=[str(data) for data, _, _ in REFUSED])
def test_condition_is_refused_at_load(data: Any, path: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConditionError) as caught:
        compile_condition(data)
    assert caught.value.path == path
    assert message in caught.value.message
    assert caught.value.others == ()


def test_condition_error_has_every_mistake() -> None:
    with pytest.raises(ConditionError) as caught:
        compile_condition({"a": [], "b": {"gt": None, "matches": "("}, "any": [{"c": {}}]})
    assert [error.path for error in (caught.value, *caught.value.others)] == [
        ("a",),
        ("b", "gt"),
        ("b", "matches"),
        ("any", 0, "c"),
    ]


def test_condition_may_be_nested_only_so_deep() -> None:
    data: dict[str, Any] = {"a": 1}
    for _ in range(MAX_DEPTH):
        data = {"not": data}
    assert compile_condition(data)({"a": 1}) is True
    with pytest.raises(ConditionError, match="nested deeper"):
        compile_condition({"not": data})


def test_every_operator_is_known_to_the_compiler() -> None:
    operands: dict[str, Any] = {"in": ["x"], "exists": True}
    for operator in OPERATORS:
        compile_condition({"a": {operator: operands.get(operator, "x")}})


def test_matches_looks_at_the_beginning_of_a_long_text_only() -> None:
    condition = compile_condition({"a": {"matches": "needle"}})
    assert condition({"a": "x" * (SUBJECT_CHARS - 6) + "needle"})
    assert not condition({"a": "x" * (SUBJECT_CHARS - 5) + "needle"})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
ORDERED = st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
PATHS = st.sampled_from(["a", "b", "a.b", "b.c", "a.b.c", "c.a.b.a"])
TESTS = (
    SCALARS
    | st.lists(SCALARS, min_size=1, max_size=3)
    | st.fixed_dictionaries(
        {},
        optional={
            "eq": SCALARS, "ne": SCALARS, "in": st.lists(SCALARS, min_size=1, max_size=3), "gt": ORDERED, "ge": ORDERED,
            "lt": ORDERED, "le": ORDERED, "contains": SCALARS, "exists": st.booleans(),
            "matches": st.sampled_from(["", "a", "^a.b", "[0-9]+$", "(?i)A"]),
        },
    ).filter(bool)
)  # fmt: skip
CONDITIONS = st.recursive(
    st.dictionaries(PATHS, TESTS, min_size=1, max_size=3),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"not": inner}),
        st.fixed_dictionaries({"any": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"all": st.lists(inner, min_size=1, max_size=3)}),
    ),
    max_leaves=4,
)
EVENTS = st.dictionaries(st.sampled_from(["a", "b", "c", "a.b", "b.c"]), JSON_VALUES, max_size=4)


@given(CONDITIONS, EVENTS)
def test_condition_never_raises_and_negation_is_its_opposite(data: dict[str, Any], event: dict[str, Any]) -> None:
    matched = compile_condition(data)(event)
    assert isinstance(matched, bool)
    assert compile_condition({"not": data})(event) is not matched
    assert compile_condition({"all": [data, data]})(event) is matched
    assert compile_condition({"any": [data]})(event) is matched


@given(JSON_VALUES)
def test_compile_condition_takes_any_data_or_raises_condition_error(data: Any) -> None:
    try:
        condition: Condition = compile_condition({"a": data} if isinstance(data, dict) else data)
    except ConditionError as error:
        assert error.message  # noqa: PT017 - either of two ends is right
    else:
        condition(EVENT)


GOOD_PATTERNS = [
    "^/checkout", r"\.pdf$", "^(cart|checkout)/", r"^\d{1,3}\.\d{1,3}$", r"^https?://[^/]+/.*\.html$", "(?i)bot", "",
    r"(\d{1,3}\.){3}\d{1,3}", r"\d+\.\d+", "(foo)+", "[a-z]+x", "^.*a.*b", "a*+b", "(?=a)b|c",
]  # fmt: skip
RUNAWAY_PATTERNS = [
    "(a+)+", "(a+)+$", "(a*)*b", "(a|ab)*c", "((a+)b?)+$", "(?:(?:a+))+$", "(a?){50}a{50}", r"(\w+\s?)*$", "(a+){10}x",
    "(?=(a+)+$)", "(?>(a+)+)b", "(.*a){20}", ".*a.*b.*c", "x*x*x*x*x*y", r"^(([a-z])+.)+[A-Z]([a-z])+$", "(a|a)+$b",
]  # fmt: skip


@pytest.mark.parametrize("pattern", GOOD_PATTERNS)
def test_pattern_is_taken_and_quick_on_the_worst_subjects(pattern: str) -> None:
    compiled = compile_pattern(pattern)
    started = time.process_time()
    for subject in ("a" * SUBJECT_CHARS, "1" * SUBJECT_CHARS, "1." * (SUBJECT_CHARS // 2), "a/" * (SUBJECT_CHARS // 2)):
        compiled.search(subject)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("pattern", RUNAWAY_PATTERNS)
def test_pattern_that_could_run_for_minutes_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError) as caught:
        compile_pattern(pattern)
    assert "for ever" in str(caught.value) or "minutes" in str(caught.value)


def test_pattern_is_refused_when_long_ambiguous_or_broken() -> None:
    compile_pattern("x" * PATTERN_CHARS)
    for pattern in ("x" * (PATTERN_CHARS + 1), "[[a]", "a{99999999999}", r"\q", "(?P<secret", "(?P=secret)", "[z-a]"):
        with pytest.raises(PatternError) as caught:
            compile_pattern(pattern)
        assert "secret" not in str(caught.value)
        assert "z-a" not in str(caught.value)
