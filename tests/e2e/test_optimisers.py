"""The bench of policy optimisers runs. What comes of it at its own size is in its result file."""

from __future__ import annotations

from rookery.cli.recipes import OptimiserName
from tests.bench import optimisers
from tests.e2e.systems import System


def test_both_optimisers_run_on_the_same_budget(system: System) -> None:
    rows = [optimisers.measure(system.client, name, seed=0, train=1, test=2) for name in OptimiserName]
    assert rows[0]["trials"] == rows[1]["trials"] == 2 * 1 * 5 + 4 * 2
    assert rows[0]["before"] == rows[1]["before"]
    assert len([*optimisers.table(rows)]) == 4
