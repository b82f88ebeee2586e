"""The load generators tell the truth: an answer that came late is late, in C and in Python."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
LOAD = REPOSITORY / "bench" / "load"
ANSWER = b"HTTP/1.1 200 OK\r\nX: y\r\ncontent-length: 3\r\n\r\nabc"
BODY_BYTES = 300_000


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler: apt-get install -y gcc")
    program = tmp_path_factory.mktemp("load") / "load"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, "-O2", *warnings, "-o", program, LOAD / "load.c", "-lm"], check=True)
    return program


@pytest.fixture(params=["load.c", "client.py"])
def command(request: pytest.FixtureRequest) -> list[str]:
    if request.param == "load.c":
        return [str(request.getfixturevalue("compiled"))]
    return [sys.executable, str(LOAD / "client.py")]


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    path = tmp_path / "request"
    path.write_bytes(b"POST / HTTP/1.1\r\nContent-Length: 300000\r\n\r\n" + b"x" * BODY_BYTES)
    return path


Answering = Callable[[asyncio.StreamWriter, int], Any]


@asynccontextmanager
async def serving(answer: Answering) -> AsyncIterator[int]:
    """Serve on a port; `answer` is called with the number of every request that has come whole."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(BODY_BYTES)
                count += 1
                await answer(writer, count)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def run(command: list[str], *arguments: Any) -> tuple[int, dict[str, Any], str]:
    process = await asyncio.create_subprocess_exec(
        *command, *map(str, arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, error = await process.communicate()
    return process.returncode or 0, json.loads(out) if out else {}, error.decode()


async def at_once(writer: asyncio.StreamWriter, number: int) -> None:
    # In two pieces, cut in the head: what arrives is a stream.
    writer.write(ANSWER[:20])
    await writer.drain()
    await asyncio.sleep(0)
    writer.write(ANSWER[20:])


async def test_closed_loop_counts_every_answer(command: list[str], request_file: Path) -> None:
    answered = 0

    async def count(writer: asyncio.StreamWriter, number: int) -> None:
        nonlocal answered
        await at_once(writer, number)
        answered += 1

    async with serving(count) as port:
        _, result, _ = await run(command, "closed", port, request_file, 4, 0.3, 0)
    assert result["statuses"] == {"200": answered}
    assert result["answers"] == answered > 4
    assert 0.3 <= result["elapsed_secs"] < 10
    assert result["unfinished"] == 0


async def test_open_loop_counts_the_wait_behind_a_stall(command: list[str], request_file: Path) -> None:
    stall_secs, rate = 0.5, 200

    async def stall_once(writer: asyncio.StreamWriter, number: int) -> None:
        if number == 20:
            await asyncio.sleep(stall_secs)
        await at_once(writer, number)

    async with serving(stall_once) as port:
        # A closed loop sends nothing while its only connection waits: one late answer, hidden by a hundred others.
        _, result, _ = await run(command, "open", port, request_file, 1, 1.0, rate)
    assert result["answers"] == pytest.approx(rate, rel=0.4)
    # Some 100 requests were due during the stall: half of them waited for more than half of it.
    assert result["max_ms"] > stall_secs * 1e3
    assert result["p99_ms"] > stall_secs * 1e3 * 0.7
    assert result["waited"] > rate * stall_secs * 0.4
    assert result["unfinished"] == 0


async def test_a_server_that_closes_a_connection_ends_the_run(command: list[str], request_file: Path) -> None:
    async def close(writer: asyncio.StreamWriter, number: int) -> None:
        if number < 5:
            await at_once(writer, number)
        else:
            writer.close()

    async with serving(close) as port:
        code, result, error = await run(command, "closed", port, request_file, 1, 5, 0)
    assert code == 1
    assert result == {}
    assert "the server closed a connection" in error


async def test_idle_connections_are_held_until_input_ends(command: list[str], request_file: Path) -> None:
    connected: set[asyncio.StreamWriter] = set()

    async def note(writer: asyncio.StreamWriter, number: int) -> None:
        connected.add(writer)
        await at_once(writer, number)

    async with serving(note) as port:
        process = await asyncio.create_subprocess_exec(
            *command, "idle", str(port), str(request_file), "70", "0", "0",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(await process.stdout.readline()) == {"held": 70}
        assert len(connected) == 70
        assert not any(writer.is_closing() for writer in connected)
        process.stdin.close()
        assert await process.wait() == 0
