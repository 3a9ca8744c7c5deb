"""The second micro-world: small tasks on grids, a model that knows half of their rules, and what it can do."""
