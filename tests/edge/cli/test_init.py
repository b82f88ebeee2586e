import re
import stat
from pathlib import Path
from typing import Any

import yaml

from edge.cli.init import PLACEHOLDER, new_key, template

REPOSITORY = Path(__file__).parents[3]


def without_comments(text: str) -> list[str]:
    return [line.partition("#")[0].rstrip() for line in text.splitlines() if line.partition("#")[0].strip()]


def test_init_writes_a_configuration_that_check_accepts(edge: Any, tmp_path: Path) -> None:
    result = edge("init")
    assert result.exit_code == 0, result.stderr
    path = tmp_path / "config" / "edge.yaml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["edge.yaml"]
    checked = edge("check")
    assert (checked.exit_code, checked.stdout) == (0, "ok: 1 sink, 1 component, 1 key\n")


def test_init_shows_the_key_of_the_file_and_the_next_two_commands(edge: Any, tmp_path: Path) -> None:
    lines = edge("init", "site.yaml").stdout.splitlines()
    [key] = set(re.findall(r"gw_[\w-]+", "\n".join(lines)))
    assert re.fullmatch(r"gw_[A-Za-z0-9_-]{32}", key)
    assert yaml.safe_load((tmp_path / "site.yaml").read_text())["auth"]["keys"] == [{"id": "web", "key": key}]
    assert lines[0] == f"wrote site.yaml, key {key}"
    assert lines[-2].strip() == "edge run --config site.yaml"
    assert lines[-1].strip().startswith("curl -X POST http://localhost:4000/ingest ")
    assert f'-H "X-API-Key: {key}"' in lines[-1]


def test_init_never_overwrites_without_force(edge: Any, tmp_path: Path) -> None:
    path = tmp_path / "edge.yaml"
    path.write_text("mine")
    refused = edge("init", path)
    assert refused.exit_code == 1
    assert refused.stderr == f"edge: {path} is there already; --force replaces it, keys included\n"
    assert path.read_text() == "mine"
    assert edge("init", path, "--force").exit_code == 0
    assert "gw_" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_init_puts_the_file_into_a_directory_that_is_given(edge: Any, tmp_path: Path) -> None:
    assert edge("init", tmp_path).exit_code == 0
    assert (tmp_path / "edge.yaml").exists()


def test_init_says_what_stands_in_its_way(edge: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = edge("init", "file/edge.yaml")
    assert (result.exit_code, result.stderr) == (1, "edge: file: File exists\n")


def test_keys_are_random_and_safe_in_urls_and_yaml() -> None:
    keys = {new_key() for _ in range(2000)}
    assert len(keys) == 2000
    assert all(re.fullmatch(r"gw_[A-Za-z0-9_-]{32}", key) for key in keys)


def test_template_is_the_default_configuration_but_for_the_key() -> None:
    default = without_comments((REPOSITORY / "config" / "edge.yaml").read_text())
    written = without_comments(template().replace(PLACEHOLDER, "gw_x"))
    changed = [(ours, theirs) for ours, theirs in zip(written, default, strict=True) if ours != theirs]
    assert changed == [("    - id: web", "    - id: demo"), ("      key: gw_x", "      key: your_api_key")]
