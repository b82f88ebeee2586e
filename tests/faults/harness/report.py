"""The table of the rows that ran, and the page that keeps the counts of all runs of `make faults`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.record import merged

KEPT = ("what", "unit", "bound", "tried", "losses", "corrupt", "duplicates", "notes", "verdict", "secs")
HEAD = ("row", "tried", "lost", "corrupt", "duplicates", "verdict", "s", "what, and the bound")


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table for a terminal."""
    cells = [HEAD, *(_cells(row) for row in merged(rows))]
    widths = [max(len(line[at]) for line in cells) for at in range(len(HEAD) - 1)]
    for line in cells:
        fixed = "  ".join(text.ljust(width) for text, width in zip(line[:-1], widths, strict=True))
        yield f"{fixed}  {line[-1]}".rstrip()


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if row["verdict"] == "skipped":
        return row["id"], "-", "-", "-", "-", "skipped", "-", f"{row['what']}: {row['notes'][-1]}"
    numbers = (str(row["losses"]), str(row["corrupt"]), str(row["duplicates"]))
    what = f"{row['what']} ({row['bound']})" + "".join(f"; {note}" for note in row["notes"])
    return row["id"], f"{row['tried']} {row['unit']}", *numbers, row["verdict"], f"{row['secs']:g}", what


def keep(rows: list[dict[str, Any]], folder: Path) -> None:
    """Add what ran to the counts so far and write the page anew."""
    path = folder / "faults.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    today = datetime.now(UTC).date().isoformat()
    for row in merged(rows):
        before = known.get(row["id"], {})
        if row["verdict"] == "skipped" and before.get("runs"):
            # What was found before still stands, with its date; that it was left out today is said beside it.
            known[row["id"]] = {**before, "left_out": f"left out on {today}: {row['notes'][-1]}"}
            continue
        total = {name: before.get(f"total_{name}", 0) for name in ("tried", "losses", "corrupt")}
        if row["verdict"] != "skipped":
            total = {name: total[name] + row[name] for name in total}
        known[row["id"]] = {
            **{name: row[name] for name in KEPT},
            **{f"total_{name}": value for name, value in total.items()},
            "runs": before.get("runs", 0) + (row["verdict"] != "skipped"),
            "date": today,
        }
    ordered = dict(sorted(known.items(), key=lambda item: (item[0][0], int(item[0][1:]))))
    path.write_text(json.dumps(ordered, indent=1) + "\n")
    (folder / "faults.md").write_text(page(ordered))


INTRO = """# Faults: what was tried, and what was lost

<!-- Written by make faults from what really ran. -->

`make faults` attacks a real gateway process and the bytes of its spool; `make test` runs a small figure of the rows
that need nothing special. Acknowledged events are written down by another process after it has read the 2xx; stub
targets write down what they are given; an oracle compares. *Lost*: acknowledged, neither delivered nor a dead letter.
*Corrupt*: delivered with other content than was sent. *Duplicates*: delivered more than once, which at-least-once
delivery allows within the bound. A row that was skipped did not pass. Zero losses in n kills bound the loss probability
of one kill by 3/n (95 %). `make faults-selftest` puts twelve defects into the code, one at a time, and shows that the
suite notices each. Rows may come from different runs; *all runs* counts those that failed as well.

"""


def page(known: dict[str, Any]) -> str:
    """Return the page with the latest run of each row and the counts of all runs."""
    lines = [
        "| row | what | last run | lost | corrupt | duplicates | bound | verdict | all runs | date |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in known.items():
        ran = row["verdict"] != "skipped"
        last = f"{row['tried']:,} {row['unit']}" if ran else "-"
        numbers = [str(row[count]) if ran else "-" for count in ("losses", "corrupt", "duplicates")]
        verdict = row["verdict"] if ran else f"skipped: {row['notes'][-1]}"
        total = f"{row['total_tried']:,} in {row['runs']}, {row['total_losses']} lost" if row["runs"] else "-"
        cells = [name, row["what"], last, *numbers, row["bound"], verdict, total, row["date"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    seen = {name: [*row["notes"], *filter(None, [row.get("left_out")])] for name, row in known.items()}
    notes = [f"- **{name}**: {'; '.join(texts)}" for name, texts in seen.items() if texts]
    return INTRO + "\n".join(lines) + "\n\n## What was seen\n\n" + "\n".join(notes) + "\n"
