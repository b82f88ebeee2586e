import asyncio
import gc
import threading

import pytest
from edge_plugins.support.threads import MAX_OUTSTANDING, Calls, JobThread

pytestmark = pytest.mark.usefixtures("io_loop")


@pytest.fixture
def thread():
    jobs = JobThread("test jobs")
    yield jobs
    jobs.stop()


async def test_run_returns_results_and_raises_errors_in_order(thread):
    assert await thread.run(lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 / 0)
    seen = []
    await asyncio.gather(*(thread.run(lambda n=n: seen.append(n)) for n in range(100)))
    assert seen == list(range(100))


async def test_run_goes_on_when_the_wait_is_cancelled_and_the_retry_gets_its_result(thread):
    release, runs = threading.Event(), []

    def job():
        runs.append(1)
        release.wait(10)
        return "written"

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await thread.run(job, key="batch 1")
    release.set()
    assert await thread.run(job, key="batch 1") == "written"
    assert runs == [1]
    # Once its result was seen, the same key is new work.
    assert await thread.run(job, key="batch 1") == "written"
    assert runs == [1, 1]


async def test_run_raises_the_error_of_a_job_that_nobody_waited_for_at_the_retry_only(thread):
    release = threading.Event()

    def job():
        release.wait(10)
        raise OSError(28, "No space left on device")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await thread.run(job, key="batch 1")
    release.set()
    await thread.run(lambda: None)  # other work does not take the result away
    with pytest.raises(OSError, match="No space"):
        await thread.run(job, key="batch 1")


async def test_run_does_not_hand_a_result_to_another_key(thread):
    release = threading.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await thread.run(lambda: release.wait(10), key="batch 1")
    release.set()
    assert await thread.run(lambda: "two", key="batch 2") == "two"


async def cancelled(waiting):
    """Wait for a job so shortly that the wait is cancelled."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await waiting


async def test_run_starts_no_second_job_although_another_key_was_waited_for_in_between(thread):
    release, runs = threading.Event(), []

    def write(text):
        runs.append(text)
        release.wait(10)
        return text

    await cancelled(thread.run(lambda: write("batch 1"), key="batch 1"))
    await cancelled(thread.run(lambda: write("open"), key="open"))
    await cancelled(thread.run(lambda: write("batch 1"), key="batch 1"))
    release.set()
    assert await thread.run(lambda: write("open"), key="open") == "open"
    assert await thread.run(lambda: write("batch 1"), key="batch 1") == "batch 1"
    assert runs == ["batch 1", "open"]


async def test_run_refuses_more_work_than_a_hung_thread_may_be_given(thread, eventually):
    release = threading.Event()
    for number in range(MAX_OUTSTANDING):
        await cancelled(thread.run(lambda: release.wait(10), key=number))
    with pytest.raises(BlockingIOError):
        await thread.run(lambda: None, key="one more")
    release.set()
    assert await thread.run(lambda: 1) == 1
    # Ends that nobody came back for make room, the oldest first.
    assert await thread.run(lambda: 2, key="one more") == 2
    assert await thread.run(lambda: 3, key=0) == 3
    assert await thread.run(lambda: 4, key=2) is True


async def test_run_leaves_no_complaint_of_an_error_that_nobody_waited_for(thread, recwarn, caplog):
    release = threading.Event()

    def fail():
        release.wait(10)
        raise OSError(5, "Input/output error")

    await cancelled(thread.run(fail, key="batch 1"))
    release.set()
    await thread.run(lambda: None)
    thread._outstanding.clear()
    gc.collect()
    assert not caplog.records


async def test_calls_run_beside_one_that_hangs_and_are_few():
    calls, release = Calls("test calls", limit=2), threading.Event()
    await cancelled(calls.run(lambda: release.wait(10)))
    assert await calls.run(lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        await calls.run(lambda: 1 / 0)
    await cancelled(calls.run(lambda: release.wait(10)))
    with pytest.raises(BlockingIOError):
        await calls.run(lambda: 1)
    release.set()


async def test_calls_take_more_once_the_hanging_ones_have_ended(eventually):
    calls, release = Calls("test calls", limit=1), threading.Event()
    await cancelled(calls.run(lambda: release.wait(10)))
    release.set()

    async def runs():
        try:
            return await calls.run(lambda: True)
        except BlockingIOError:
            return False

    await eventually(runs)


async def test_stop_ends_the_thread_after_the_jobs_that_wait(eventually):
    jobs = JobThread("test stop")
    result = asyncio.ensure_future(jobs.run(lambda: "done"))
    await asyncio.sleep(0)
    jobs.stop()
    assert await result == "done"
    await eventually(lambda: not any(each.name == "test stop" for each in threading.enumerate()))
