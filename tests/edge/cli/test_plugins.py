from typing import Any

import pytest

BUILT_IN = [
    ("enricher", "client_ip"),
    ("enricher", "received_at"),
    ("enricher", "request_headers"),
    ("enricher", "static_fields"),
    ("filter", "drop"),
    ("filter", "sample"),
    ("sink", "blackhole"),
    ("sink", "console"),
    ("sink", "file"),
    ("sink", "http"),
]
KIND_OF = {type_name: kind for kind, type_name in BUILT_IN}


def test_plugins_lists_kind_type_origin_and_purpose(edge: Any) -> None:
    result = edge("plugins")
    assert result.exit_code == 0
    head, *lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert head == ["kind", "type", "from", "what_it_does"]
    assert [(kind, type_name) for kind, type_name, *_ in lines if (kind, type_name) in BUILT_IN] == BUILT_IN
    by_type = {line[1]: line for line in lines}
    assert by_type["file"][2].startswith("edge-gateway ")
    assert by_type["blackhole"][3] == "Take every batch and do nothing with it."


@pytest.mark.parametrize("type_name", [type_name for _, type_name in BUILT_IN])
def test_plugins_show_has_docstring_options_and_example(edge: Any, type_name: str) -> None:
    result = edge("plugins", "show", type_name)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].startswith(KIND_OF[type_name])
    assert "Options of every " in result.stdout
    example = result.stdout.rpartition("Example:\n")[2]
    assert f"type: {type_name}" in example
    assert "```" not in result.stdout


def test_plugins_show_lists_own_and_common_options_with_types_and_defaults(edge: Any) -> None:
    lines = edge("plugins", "show", "sample").stdout.splitlines()
    assert "rate\tnumber from 0 to 1\trequired\tThe share of users to keep, 0 to 1." in lines
    assert any(line.startswith("on_error\tone of: skip, reject\tskip\t") for line in lines)
    assert "Drop reasons: sampled_out" in lines


def test_plugins_show_of_an_unknown_type_suggests_one(edge: Any) -> None:
    result = edge("plugins", "show", "flie")
    assert (result.exit_code, result.stderr) == (1, "edge: no component of type flie; did you mean file?\n")
