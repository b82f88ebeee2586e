from typing import ClassVar

from voluptuous import All, Any, Coerce, In, Length, Optional, Range, Required

from edge.api import Batch, Filter, Sink, hookimpl
from edge.cli import describe


def teaspoon(value: object) -> object:
    """Check a spoon for tea. It must be clean."""
    return value


class Teapot(Sink):
    """Hand each batch to the teapot.

    Slowly.
    """

    type = "teapot"
    options: ClassVar = {
        Required("spout", description="File that receives\n  the lines."): str,
        Optional("sugar", default=1, description="Lumps per batch."): All(Coerce(int), Range(min=0, max=5)),
        Optional("milk", description="Before or after."): In(["before", "after"]),
        Optional("spoons", default=list, description="What to stir with."): All([teaspoon], Length(max=3)),
        Optional("lid", default=dict, description="On top."): {
            Optional("handle", default=None, description="To lift it by."): Any(None, str)
        },
    }
    defaults: ClassVar = {"batch": {"max_events": 7}, "timeout_secs": 3}

    @hookimpl
    async def edge_deliver(self, batch: Batch) -> None:
        """Pour."""


class Sieve(Filter):
    """Keep the leaves back.

    Example:

    ```yaml
    pipeline:
      - type: sieve
        when: {kind: leaf}
    ```
    """

    type = "sieve"
    reasons = ("too_coarse",)


def test_options_have_name_type_default_and_description() -> None:
    options = {one.name: one for one in describe.own_options(Teapot)}
    assert list(options) == ["spout", "sugar", "milk", "spoons", "lid", "lid.handle"]
    assert options["spout"] == describe.Option("spout", "text", True, "", "File that receives the lines.")  # noqa: FBT003
    assert options["sugar"].default == "1"
    assert "0 to 5" in options["sugar"].takes
    assert "before, after" in options["milk"].takes
    assert options["milk"].default == ""
    assert options["spoons"].takes
    assert options["lid"].default == ""
    assert options["lid.handle"].default == "null"


def test_common_options_have_the_defaults_of_the_component() -> None:
    common = {one.name: one.default for one in describe.common_options_of(Teapot)}
    assert common["batch.max_events"] == "7"
    assert {one.name: one.default for one in describe.own_choices(Teapot)} == {
        "batch.max_events": "7",
        "timeout_secs": "3",
    }
    assert "type" not in common


def test_docstring_is_split_into_summary_text_and_example() -> None:
    assert describe.summary(Teapot) == "Hand each batch to the teapot."
    assert describe.text(Teapot) == "Hand each batch to the teapot.\n\nSlowly."
    assert describe.text(Sieve) == "Keep the leaves back."
    assert describe.example(Sieve) == "pipeline:\n  - type: sieve\n    when: {kind: leaf}"
    assert describe.reasons(Sieve) == ["too_coarse"]
    assert describe.reasons(Teapot) == []


def test_example_is_made_where_the_docstring_has_none() -> None:
    assert describe.example(Teapot) == "sinks:\n  my_teapot:\n    type: teapot\n    spout: <text>"


def test_a_function_says_what_it_takes_in_its_docstring() -> None:
    assert describe.takes(teaspoon) == "a spoon for tea"
    assert describe.takes(len) == "len"
