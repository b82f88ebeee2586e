"""C5: a target that answers with anything but HTTP, or with more of it than anybody wants."""

from __future__ import annotations

import base64
import gzip
from typing import Any

import pytest
from harness import oracle

MIB = 1 << 20
READ_BYTES = 64 * 1024
KERNEL_BYTES = MIB
"""What the kernel takes off a sender before a reader that has gone away is noticed: both ends' socket buffers."""
OK = b"HTTP/1.1 200 OK\r\n"
ZEROS = b"\0" * 65_536
CHUNK = b"10000\r\n" + ZEROS + b"\r\n"
GIB_TIMES = 16_384
BOMB = gzip.compress(bytes(100 * MIB))
SMALL_BOMB = gzip.compress(bytes(32 * MIB))

GARBAGE: dict[str, tuple[bytes, bytes, int]] = {
    "nothing": (b"", b"", 0),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n", b"", 0),
    "noise": (bytes(range(256)) * 64, b"", 0),
    "endless noise": (b"", bytes(range(128, 256)) * 512, GIB_TIMES),
    "a status that is no number": (b"HTTP/1.1 twohundred OK\r\n\r\n", b"", 0),
    "an unknown version": (b"HTTP/7.3 200 OK\r\nContent-Length: 0\r\n\r\n", b"", 0),
    "half a status line": (b"HTTP/1.1 20", b"", 0),
    "half a head": (OK + b"Content-Len", b"", 0),
    "half a body": (OK + b"Content-Length: 10\r\n\r\nabc", b"", 0),
    "1 GB announced and sent": (OK + b"Content-Length: 1073741824\r\n\r\n", ZEROS, GIB_TIMES),
    "1 GB announced, nothing sent": (OK + b"Content-Length: 1073741824\r\n\r\n", b"", 0),
    "1 GB in chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK, GIB_TIMES),
    "1 GB in one chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n40000000\r\n", ZEROS, GIB_TIMES),
    "1 GB without length": (OK + b"\r\n", ZEROS, GIB_TIMES),
    "a chunk size that is no number": (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"", 0),
    "a chunk size beyond 64 bits": (OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 40 + b"\r\n", ZEROS, 4),
    "endless chunk extensions": (OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 65_536, GIB_TIMES),
    "a negative length": (OK + b"Content-Length: -1\r\n\r\n", b"", 0),
    "two lengths": (OK + b"Content-Length: 0\r\nContent-Length: 7\r\n\r\n", b"", 0),
    "length and chunks": (OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"", 0),
    "gzip bomb": (OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB, b"", 0),
    "gzip bomb within 64 KiB": (
        b"HTTP/1.1 503 X\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(SMALL_BOMB) + SMALL_BOMB,
        b"",
        0,
    ),
    "100,000 headers": (OK, b"X-Header: y\r\n" * 100, 1000),
    "an endless header": (OK + b"X-Header: ", b"y" * 65_536, GIB_TIMES),
    "a header without colon": (OK + b"whatever\r\n\r\n", b"", 0),
    "1,000 times 100": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 1000),
    "1,000 times 103": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 1000),
    "100 without end": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, 10_000),
    "switching protocols": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", ZEROS, 4),
}  # fmt: skip


@pytest.mark.full
def test_c5_garbage_is_read_in_small_and_tried_again(rig: Any, row: Any) -> None:
    bound = f"0 lost, {READ_BYTES // 1024} KiB read of an answer, RSS + 32 MiB at most"
    with row("C5", what="answers that are garbage or endless", unit="kinds of garbage", bound=bound) as found:
        target = rig.target()
        rig.configure({"crm": rig.http_sink(target, timeout_secs=3)})
        gateway = rig.start()
        rig.is_alive(gateway, target)
        ids: list[str] = []
        gateway.peak_rss_bytes(anew=True)
        before = gateway.peak_rss_bytes()
        for number, (name, (raw, more, times)) in enumerate(GARBAGE.items()):
            answers = {"raw": base64.b64encode(raw).decode(), "more": base64.b64encode(more).decode(), "times": times}
            target.order(mode="garbage", **answers)
            failures, n_let_out = gateway.attempts("crm", "retryable", "timeout"), len(target.let_out())
            ids.append(f"g-{number}")
            assert rig.post(gateway, ids[-1])[0] == 200
            # Two attempts: the first may have begun with the answer before this one.
            oracle.wait_for(
                lambda n=failures: gateway.attempts("crm", "retryable", "timeout") >= n + 2, 20, f"{name}: a retry"
            )
            oracle.wait_for(lambda n=n_let_out: len(target.let_out()) >= n + 2, 20, f"{name}: it was sent")
            assert gateway.pending("crm") == len(ids), f"{name}: taken for an answer"
            assert max(target.let_out()[n_let_out:]) <= READ_BYTES + KERNEL_BYTES, f"{name}: read on and on"
            found.tried += 1
        growth = gateway.peak_rss_bytes() - before
        found.note(f"RSS grew by {growth / MIB:.1f} MiB at most; {max(target.let_out()) / 1024:.0f} KiB left a target")
        assert growth <= 32 * MIB
        assert not oracle.entries_in_dead_letters(rig.folder / "dead-letters", "crm")
        target.order(mode="answer")
        rig.settle(gateway, ["crm"])
        assert sorted(entry.event_id for entry in target.delivered() if entry.event_id.startswith("g-")) == sorted(ids)
        rig.is_alive(gateway, target)
        assert gateway.unaccounted() == 0
        assert gateway.stop()[0] == 0
