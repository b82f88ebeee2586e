import pytest
from edge_plugins.sinks.blackhole import Blackhole

from edge.testing import build, deliver, make_event

pytestmark = pytest.mark.usefixtures("io_loop")


async def test_blackhole_takes_every_batch():
    assert await deliver(build(Blackhole), [make_event(), make_event()]) == {}
