"""What an evaluator is told. Every field is ROOKERY_<FIELD> in the environment."""

from __future__ import annotations

from pydantic import Field, model_validator

from rookery_shared.settings import ENDPOINTS, MODEL_CALLS, ModelServiceSettings, RemoteModel, ServerSettings


class JudgeSettings(RemoteModel):
    """The judge. Its field `model` is ROOKERY_JUDGE_MODEL. Without a URL there is no judge."""

    model: str = ""
    """As the endpoint calls it: an instruct model."""
    max_new_tokens: int = Field(default=16, ge=2)
    """Longest reply. A model that reasons before it answers needs more."""

    @model_validator(mode="after")
    def _is_whole(self) -> JudgeSettings:
        if bool(self.url) != bool(self.model):
            raise ValueError("a judge needs both a URL and a model")
        return self


class EvaluatorSettings(ModelServiceSettings, ServerSettings):
    """The evaluator's server."""

    model_config = ENDPOINTS

    address: str = "0.0.0.0:7073"
    """Where the server listens."""
    calls_at_once: int = Field(default=MODEL_CALLS, ge=1)
    """In flight; those beyond are told to try again soon."""
    judge: JudgeSettings = JudgeSettings()
    """Who grades where the grader `judge` is asked for."""
