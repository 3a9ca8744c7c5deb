"""What a teacher is told. Every field is ROOKERY_<FIELD> in the environment."""

from __future__ import annotations

from pydantic import Field

from rookery_shared.settings import ENDPOINTS, MODEL_CALLS, RemoteModel, ServerSettings, TrainerSettings


class TeacherSettings(TrainerSettings, ServerSettings):
    """The teacher's server, and its trainer."""

    model_config = ENDPOINTS

    address: str = "0.0.0.0:7072"
    """Where the server listens."""
    calls_at_once: int = Field(default=MODEL_CALLS, ge=1)
    """In flight; those beyond are told to try again soon."""
    adapters_in_memory: int = 8
    """Policies that the engine keeps."""
    openai: RemoteModel = RemoteModel()
    """Where the model of a profile with the engine `openai` is."""
