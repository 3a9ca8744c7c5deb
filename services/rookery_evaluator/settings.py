"""What an evaluator is told. Every field is ROOKERY_<FIELD> in the environment."""

from __future__ import annotations

from rookery_shared.settings import ModelServiceSettings


class EvaluatorSettings(ModelServiceSettings):
    """The evaluator's server."""

    address: str = "0.0.0.0:7073"
    """Where the server listens."""
