"""The shipped alerts: Prometheus takes them, the operator's page lists them, and they look at metrics that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge.metrics import TABLE

REPOSITORY = Path(__file__).parents[2]
ALERTS = REPOSITORY / "config" / "prometheus" / "alerts.yml"
PAGE = (REPOSITORY / "docs" / "operating.md").read_text()
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in RULES]

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: apt-get install -y prometheus"
)


def documented(severity: str) -> list[tuple[str, str, str]]:
    """Return name, expression and duration of the alerts in the page's table for a severity."""
    section = PAGE.partition("## Metrics and alerts\n")[2].partition("\n## ")[0]
    paging, tickets = section.split("Worth a ticket in the morning:")
    table = paging if severity == "page" else tickets
    return re.findall(r"^\| `(\w+)` \| `(.+?)` \| (\w+) \| .+ \|$", table, re.MULTILINE)


@pytest.mark.parametrize("severity", ["page", "ticket"])
def test_tables_of_the_operators_page_are_the_rules(severity: str) -> None:
    rules = [(rule["alert"], rule["expr"], rule["for"]) for rule in RULES if rule["labels"] == {"severity": severity}]
    assert len(rules) > 5
    assert documented(severity) == rules


def test_names_are_unique_and_every_rule_has_a_severity() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert {rule["labels"]["severity"] for rule in RULES} == {"page", "ticket"}


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_rule_looks_at_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    known = {row.name: set(row.labels) for row in TABLE}
    known |= {f"{row.name}_bucket": {*row.labels, "le"} for row in TABLE if row.kind == "histogram"}
    known["up"] = {"job"}
    selectors = re.findall(r"\b(up|edge_\w+)(?:\{([^}]*)\})?", rule["expr"])
    assert selectors
    for name, labels in selectors:
        assert name in known
        assert {label.partition("=")[0] for label in labels.split(",") if label} <= known[name], name


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_rule_says_what_happened_and_which_section_to_read(rule: dict[str, Any]) -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(rule["annotations"]) == {"summary", "description"}
    named = re.findall(r"docs/operating\.md#([\w-]+\w)", rule["annotations"]["description"])
    assert named
    assert set(named) <= anchors


@promtool
def test_promtool_takes_the_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    labels = {"job": "edge", "instance": "a", **labels}
    text = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return {"series": f"{name}{{{text}}}", "values": values}


# What fires, after how many minutes, on which samples (one a minute), and on which it does not.
CASES = [
    ("EdgeEventsUnaccounted", 5, series("edge_events_unaccounted", "0 3+0x10"), True),
    ("EdgeEventsUnaccounted", 5, series("edge_events_unaccounted", "0 -1+0x10"), True),
    ("EdgeEventsUnaccounted", 5, series("edge_events_unaccounted", "0+0x10"), False),
    ("EdgeEventsUnaccounted", 1, series("edge_events_unaccounted", "0 3 0+0x10"), False),
    ("EdgeDown", 5, series("up", "1 0+0x10"), True),
    ("EdgeDown", 5, series("up", "1+0x10"), False),
    ("EdgeOldestEventsDropped", 5, series("edge_sink_events_total", "0 0 7+0x10", sink="crm", outcome="dropped"), True),
    ("EdgeOldestEventsDropped", 5, series("edge_sink_events_total", "0+0x10", sink="crm", outcome="dropped"), False),
    ("EdgeOldestEventsDropped", 5, series("edge_sink_events_total", "0+9x10", sink="crm", outcome="delivered"), False),
    ("EdgeDeadLetters", 5, series("edge_sink_events_total", "0 0 1+0x10", sink="crm", outcome="dead_lettered"), True),
    ("EdgeSpoolLostFrames", 5, series("edge_spool_lost_frames_total", "0 1+0x10"), True),
    ("EdgeSpoolLostFrames", 5, series("edge_spool_lost_frames_total", "4+0x10"), False),
]


@promtool
@pytest.mark.parametrize(("alert", "minutes", "samples", "fires"), CASES)
def test_alert_fires_when_it_should_and_only_then(
    alert: str, minutes: int, samples: dict[str, str], fires: bool, tmp_path: Path
) -> None:
    # Without the annotations, which promtool would want to see repeated.
    bare = {"groups": [{"name": "all", "rules": [{**rule, "annotations": {}} for rule in RULES]}]}
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(bare))
    labels = dict(re.findall(r'(\w+)="([^"]*)"', samples["series"]))
    severity = next(rule["labels"]["severity"] for rule in RULES if rule["alert"] == alert)
    expected = [{"exp_labels": {**labels, "severity": severity}}] if fires else []
    case = {
        "rule_files": [str(tmp_path / "alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [samples],
                "alert_rule_test": [{"eval_time": f"{minutes}m", "alertname": alert, "exp_alerts": expected}],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(case))
    command = ["promtool", "test", "rules", str(tmp_path / "test.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
