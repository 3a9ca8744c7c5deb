"""Every set of values, for tests that ask for a rendering."""

from __future__ import annotations

import pytest

from tests.deploy.charts import VALUES, Rendering, rendering


@pytest.fixture(params=sorted(VALUES))
def rendered(request: pytest.FixtureRequest) -> Rendering:
    return rendering(request.param)
