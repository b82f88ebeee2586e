"""A6: whatever happens to a spool, in any order, it keeps the promises that a simple model keeps."""

from __future__ import annotations

from harness.fastdir import fast_directory, quiet
from harness.spoolmachine import SpoolMachine
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test


def test_spool_agrees_with_its_model_whatever_happens(scale, row, monkeypatch):
    monkeypatch.setattr("edge.spool.writer.RETRY_SECS", 0.005)
    examples = scale(500, 12_000)
    with (
        row(
            "A6", what="appends, cursors, releases, kills, power cuts, failing calls, flipped bits", unit="examples"
        ) as result,
        fast_directory() as path,
        quiet(),
    ):
        result.bound = "0 failures"
        machine = type("Machine", (SpoolMachine,), {"directory": path})
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=12,
                    deadline=None,
                    derandomize=examples <= 500,
                    database=None,
                    phases=[Phase.generate],  # threads decide who is in which commit: a smaller example need not fail
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            result.losses, result.corrupt = machine.losses, machine.corrupt
        result.tried = examples
        result.note(f"{machine.states} openings")
