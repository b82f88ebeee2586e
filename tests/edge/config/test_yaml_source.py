"""YAML as the gateway reads it: plain data with lines, and none of the surprises."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge.config import ConfigError
from edge.config.yaml_source import Source, read


@pytest.fixture
def source(write: Callable[[str], Path]) -> Callable[[str], Source]:
    return lambda text: read(write(text), {})


@pytest.fixture
def fatal(source: Callable[[str], Source]) -> Callable[[str], list[str]]:
    def fatal(text: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            source(text)
        return [str(problem).removeprefix(f"{problem.file}:") for problem in caught.value.problems]

    return fatal


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("True", "True"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("null", None),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-3", -3),
        ("0", 0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1:30", "1:30"),
        ("0123", "0123"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("2025-01-01", "2025-01-01"),
        ("1e999", "1e999"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("9" * 30, "9" * 30),
        ("'12'", "12"),
        ('"true"', "true"),
        ("|\n  12\n", "12\n"),
    ],
)
def test_scalar_means_what_it_looks_like(text: str, value: object, source: Callable[[str], Source]) -> None:
    read_value = source(f"a: {text}\n").data["a"]
    assert read_value == value
    assert type(read_value) is type(value)


def test_keys_are_text_whatever_they_look_like(source: Callable[[str], Source]) -> None:
    assert list(source("1: a\ntrue: b\nno: c\n'': d\n${X}: e\n").data) == ["1", "true", "no", "", "${X}"]


def test_lines_are_those_of_keys_and_items(source: Callable[[str], Source]) -> None:
    lines = source("# comment\na:\n  b:\n    - 1\n    - c: 2\n\n  d: |\n    x\n    y\n  e: 3\n").lines
    assert lines == {
        (): 2,
        ("a",): 2,
        ("a", "b"): 3,
        ("a", "b", 0): 4,
        ("a", "b", 1): 5,
        ("a", "b", 1, "c"): 5,
        ("a", "d"): 7,
        ("a", "e"): 10,
    }


def test_line_of_what_is_not_written_is_that_of_what_is_around_it(source: Callable[[str], Source]) -> None:
    made = source("x: 1\na:\n  b: {}\n")
    assert made.line(("a", "b", "c", 0)) == 3
    assert made.line(("q",)) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x 1\n", "1: a: has an anchor, which is not supported; remove the word that begins with &"),
        ("a: 1\nb: *x\n", "2: b: is an alias, which is not supported; write the value out here"),
        ("a: 1\n<<: *x\n", "2: <<: is an alias, which is not supported; write the value out here"),
        ("a: 1\nb: !!str 2\n", "2: b: has a tag, which is not supported; remove the word that begins with !"),
        ("a: !!python/object/apply:os.system ['true']\n", "1: a: has a tag, which is not supported"),
        ("a: !!python/name:os.system\n", "1: a: has a tag, which is not supported"),
        ("a: !secret x\n", "1: a: has a tag, which is not supported"),
        ("a: 1\nb: 2\na: 3\n", "3: a: is written twice, first on line 1; remove one of the two"),
        ("a:\n  - {b: 1, b: 2}\n", "2: a[0].b: is written twice, first on line 2; remove one of the two"),
        ("? [a, b]\n: c\n", "1: has a key that is not a word; write a name as the key"),
        ("? {a: b}\n: c\n", "1: has a key that is not a word; write a name as the key"),
        ("*x : c\n", "1: is an alias, which is not supported"),
    ],
)
def test_what_is_more_than_plain_data_is_refused(text: str, expected: str, problems: Callable[..., list[str]]) -> None:
    found = problems(text)
    assert any(line.startswith(expected) for line in found), found


def test_refused_values_cause_no_further_problems(problems: Callable[..., list[str]]) -> None:
    text = "auth: *a\nlog: !!map {level: 7}\nsinks:\n  pot: {type: teapot, spout: *b}\n"
    assert [line.split(";")[0] for line in problems(text)] == [
        "1: auth: is an alias, which is not supported",
        "2: log: has a tag, which is not supported",
        "4: sinks.pot.spout: is an alias, which is not supported",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: is empty; write at least auth and sinks"),
        ("# nothing\n", "1: is empty"),
        ("a: 1\n---\nb: 2\n", "2: has a second document; write one, without a line ---"),
        ("a: 1\nb: [1, 2\nc: 3\n", "3: is not YAML: "),
        ("a:\n\tb: 1\n", "2: is not YAML: found character that cannot start any token; check the indentation (spaces,"),
        ("a: 'x\n", "2: is not YAML: found unexpected end of stream"),
        ("a: 1\nb: x: y\n", "2: is not YAML: mapping values are not allowed in this context"),
        ("a: 1\nb: \x00\n", "2: has a control character, which YAML does not allow; remove it"),
        ("[" * 5000, "1: is nested deeper than 32 levels; write it flatter"),
        ("a: " + "{b: " * 40 + "}" * 40, "1: is nested deeper than 32 levels"),
        ("- 1\n" * 30000, "20000: has more than 20000 values; write fewer"),
        ("a: 1\n" * 210000, "1: is larger than 1048576 bytes; write one configuration, without data"),
    ],
    ids=range(12),
)
def test_file_that_is_no_configuration_is_refused(text: str, expected: str, fatal: Callable[[str], list[str]]) -> None:
    assert fatal(text)[-1].startswith(expected)


def test_file_that_is_not_utf8_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "edge.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match=r"edge\.yaml:2: is not UTF-8; save the file as UTF-8"):
        read(path, {})


def test_byte_order_mark_is_ignored(source: Callable[[str], Source]) -> None:
    assert source("\ufeffa: 1\n").data == {"a": 1}


@pytest.mark.parametrize("text", ["just text\n", "- a\n- b\n", "12\n"])
def test_file_that_is_no_mapping_is_refused(text: str, problems: Callable[..., list[str]]) -> None:
    assert problems(text) == ["1: must be a mapping; write the options with their names, such as auth: and sinks:"]


BILLION_LAUGHS = 'a: &a ["lol","lol","lol","lol","lol","lol","lol","lol","lol"]\n' + "".join(
    f"{chr(98 + level)}: &{chr(98 + level)} [{','.join(['*' + chr(97 + level)] * 9)}]\n" for level in range(8)
)


@pytest.mark.parametrize(
    "text",
    [
        BILLION_LAUGHS,
        "a: 1\n" * 2_000_000,
        "a: 1\n" * 200_000,
        "[" * 1_000_000,
        "a: [" + "1," * 500_000 + "]\n",
        "{" + ",".join(f"a{index}: 1" for index in range(60_000)) + "}",
        "sinks:\n" + "".join(f"  a{index}: {{type: fiel}}\n" for index in range(6000)),
        "auth:\n  keys:\n" + "    - {}\n" * 19_000,
        "server:\n  listen: [" + ", ".join(["'${X:-1}'"] * 15_000) + "]\n",
        "a: '" + "${X:-" * 200_000 + "'\n",
        "a: '" + "${" * 500_000 + "'\n",
    ],
    ids=["laughs", "10MB", "duplicates", "depth", "items", "keys", "sinks", "api_keys", "references", "open", "opener"],
)
def test_hostile_file_is_refused_within_a_second_and_64_mib(text: str, problems: Callable[..., list[str]]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    assert problems(text)
    assert time.process_time() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_billion_laughs_is_told_by_its_anchors_and_aliases(problems: Callable[..., list[str]]) -> None:
    found = problems(BILLION_LAUGHS)
    assert "1: a: has an anchor, which is not supported" in found[0]
    assert sum("is an alias" in line for line in found) == 72


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"#%@`,? \n\t0.~$"), max_size=60))
@example("? ")
@example("a: *")
@example("- - - ?\n  - : -")
def test_any_text_is_read_or_refused_and_nothing_else(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    with suppress(ConfigError):
        read(path, {})


class Dumper(yaml.SafeDumper):
    """Writes text in quotes, and what occurs twice twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.text(alphabet="abc 019.:yes-", max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc_", max_size=5), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(alphabet="abc_", min_size=1, max_size=5), JSON, min_size=1, max_size=4))
def test_data_that_was_dumped_is_read_back(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(yaml.dump(data, Dumper=Dumper), encoding="utf-8")
    assert read(path, {}).data == data
