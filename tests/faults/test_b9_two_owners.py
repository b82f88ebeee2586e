"""B9: a second process on the same shard refuses at once, and the first one does not notice."""

from __future__ import annotations

import subprocess
import time

from harness.processes import RUN, Senders, delivered, gateway, opening

REFUSE_SECS = 1.0


def test_second_owner_refuses_and_the_first_goes_on(config_path, tmp_path, row, example_event):
    with row("B9", what="a second owner of a running gateway's shard", unit="attempts") as result:
        result.bound = "refused <= 1 s, first unaffected"
        config = config_path(log={"format": "json"})
        path = tmp_path / "spool" / "shard-000"
        with gateway(config) as first, opening() as second:
            senders = Senders(first.port, example_event, "b9", threads=2)
            try:
                for _ in range(20):
                    answer = second.open(path)
                    assert "belongs to another process" in answer["error"]
                    assert answer["secs"] <= REFUSE_SECS
                    result.tried += 1
                whole = subprocess.run([*RUN, str(config)], check=False, capture_output=True, text=True, timeout=20)
                assert whole.returncode == 1
                last = whole.stderr.splitlines()[-1]
                assert last.startswith("the gateway cannot start: ")
                assert "belongs to another process" in last
                assert "Traceback" not in whole.stderr
                result.tried += 1
                deadline = time.monotonic() + 10
                while not senders.acked_within(0.2):
                    assert time.monotonic() < deadline, "the first one takes no events any more"
                    time.sleep(0.01)
            finally:
                senders.stop()
            assert first.process.poll() is None
            assert first.stop() == 0
            assert not [line for line in first.lines if '"level":"error"' in line]
        arrived = delivered(tmp_path / "events")
        result.losses = len(senders.acked - set(arrived))
        result.duplicates = len(arrived) - len(set(arrived))
        assert senders.acked <= set(arrived)
        assert result.duplicates == 0
