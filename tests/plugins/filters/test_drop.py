import pytest
from edge_plugins.filters.drop import Drop

from edge.api import Filter
from edge.testing import OptionsError, build, make_event, run_filter


def test_drop_drops_whatever_it_is_asked_about():
    assert run_filter(build(Drop), make_event()) == "matched"


def test_drop_declares_its_reason_and_that_it_needs_a_condition():
    assert Drop.reasons == ("matched",)
    assert Drop.when_required is True
    assert Filter.when_required is False


def test_drop_has_no_options():
    with pytest.raises(OptionsError, match="rate: is not a known option"):
        build(Drop, rate=1)
