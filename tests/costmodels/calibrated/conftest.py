"""The synthetic device, measured and fitted once for all tests."""

import pytest

from tests.costmodels.calibrated.world import World, make_world


@pytest.fixture(scope="session")
def world() -> World:
    """The law, measured and fitted."""
    return make_world()
