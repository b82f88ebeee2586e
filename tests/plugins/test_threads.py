import asyncio
import threading

import pytest
from edge_plugins.threads import JobThread

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


async def test_stop_ends_the_thread_after_the_jobs_that_wait(eventually):
    jobs = JobThread("test stop")
    result = asyncio.ensure_future(jobs.run(lambda: "done"))
    await asyncio.sleep(0)
    jobs.stop()
    assert await result == "done"
    await eventually(lambda: not any(each.name == "test stop" for each in threading.enumerate()))
