import io

import pytest

from edge.cli import output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


ROWS = [("archive", 3, "x" * 300), ("crm", 12, "[red]not markup[/red] :smile: \x1b[2J")]


def test_table_is_tab_separated_and_whole_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("Sink", "Events", "Last error"), ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "sink\tevents\tlast_error",
        f"archive\t3\t{'x' * 300}",
        "crm\t12\t[red]not markup[/red] :smile: \\x1b[2J",
    ]


def test_table_on_a_terminal_keeps_every_character(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    output.table(("Sink", "Events", "Last error"), ROWS)
    text = terminal.getvalue()
    assert text.replace("\\x1b", "").count("x") == 300
    assert "[red]" in text.replace("\n", "")
    assert "\x1b[2J" not in text
    assert ":smile:" in text


def test_progress_is_silent_when_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("replay") as advance:
        advance(1, 2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_progress_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with output.progress("replay") as advance:
        advance(1, 2)
    assert "replay" in terminal.getvalue()
    assert "1/2" in terminal.getvalue()
