"""`edge spool repair`: take damaged bytes out of the way at once, and say what is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edge.api import EdgeError
from edge.cli import output
from edge.cli.common import NEGATIVE, OK, fail, interruptible, load_config, load_registry, refuse_root
from edge.cli.shards import named, shards_of
from edge.cli.spool import place_options

if TYPE_CHECKING:
    from edge.config.model import GatewayConfig
    from edge.spool.repair import RepairReport

Advance = Callable[["RepairReport"], None]

WOULD: Final = {
    "moved to quarantine": "would be moved to quarantine",
    "written anew": "would be written anew",
    "removed": "would be removed",
}
"""What a plan calls what a repair has done."""


@click.command("repair")
@place_options
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def repair(config_path: Path, log_path: Path | None, shard: str | None, *, dry_run: bool) -> None:
    """Do at once what starts and readers of the spool would do one by one.

    Damaged bytes are moved to quarantine and their segments rewritten without them, segments whose header cannot be
    read are moved there too, a torn end is cut, leftovers are removed. Intact frames stay, always. Works on a running
    gateway (all but the segment that is being written) and on a stopped one. Exit 1 when events are missing, since
    those stay gone unless their senders send them again, and when something could not be mended. Can be run again at
    any time.
    """
    if log_path is not None:
        raise SystemExit(_repair(None, log_path, dry_run=dry_run))
    config = load_config(config_path, load_registry())
    code = OK
    for index, path in enumerate(shards_of(config, shard)):
        if index:
            click.echo()
        code = max(code, _repair(config, path, dry_run=dry_run))
    raise SystemExit(code)


def _repair(config: GatewayConfig | None, path: Path, *, dry_run: bool) -> int:
    """Repair one shard, here or by asking who has its lock, and print what was done; return the exit code."""
    from edge.spool.errors import SpoolFormatError, SpoolLockedError
    from edge.spool.repair import RepairReport, plan
    from edge.spool.repair import repair as repair_directory

    if dry_run:
        return _print(path, plan(path), dry_run=True)
    refuse_root(path)
    report = RepairReport()
    try:
        with interruptible(), output.progress("repair") as advance:

            def hear(page: RepairReport) -> None:
                nonlocal report
                report = page
                advance(page.position, page.end)

            try:
                report = repair_directory(path, hear)
            except SpoolLockedError as error:
                if config is None:
                    fail(
                        f"{error}: stop it first; for the spool of a running gateway leave --path away, and it is asked"
                    )
                _ask(config, path.name, hear)
    except (EdgeError, KeyboardInterrupt) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        if isinstance(error, SpoolFormatError):
            fail(reason)
        fail(f"{reason}\nWhat was repaired before stays so: run the same command again to go on.")
    return _print(path, report, dry_run=False)


def _ask(config: GatewayConfig, shard: str, hear: Advance) -> None:
    """Have the running gateway do it, page by page."""
    from edge.cli.admin import post
    from edge.spool.repair import Finding, Missing, RepairReport

    total = RepairReport()
    while True:
        before = total.position
        answer = post(config.admin, "/spool/repair", {"position": before, **named(shard)})
        answer.pop("status", None)
        findings = [Finding(**found) for found in answer.pop("findings")]
        missing = [Missing(**gap) for gap in answer.pop("missing")]
        total.add(RepairReport(**answer, findings=findings, missing=missing))
        hear(total)
        if total.position >= total.end or total.position <= before:
            return


def _print(path: Path, report: RepairReport, *, dry_run: bool) -> int:
    """Print what was found and done; return 1 when something is missing or is still damaged."""
    output.fields(
        [
            ("path", path),
            ("segments", report.segments),
            ("frames", report.frames),
            ("events", report.events),
            ("missing events", report.missing_events),
        ]
    )
    rows = [
        (
            found.what,
            f"{found.segment} at {found.offset}",
            f"{found.n_bytes} bytes",
            WOULD.get(found.done, found.done) if dry_run else found.done,
        )
        for found in report.findings
    ]
    rows += [
        ("missing", f"{gap.segment} from event {gap.seq}", f"{gap.n_events} events", "gone for good")
        for gap in report.missing
    ]
    if rows:
        click.echo()
        output.table(("What", "Where", "How much", "Done"), rows)
    click.echo()
    is_left = any(not found.mended for found in report.findings)
    if is_left:
        click.echo(output.mark("not everything could be mended", "red"))
    elif report.findings:
        click.echo(output.mark("would be repaired", "yellow") if dry_run else output.mark("repaired", "green"))
    else:
        click.echo(output.mark("nothing to repair", "green"))
    if report.missing:
        click.echo(
            "events are missing: they were stored and are gone; what a sink lacks only its senders can send again",
            err=True,
        )
    return NEGATIVE if is_left or report.missing else OK
