"""What a student is told. Every field is ROOKERY_<FIELD> in the environment."""

from __future__ import annotations

from rookery_shared.settings import ModelServiceSettings


class StudentSettings(ModelServiceSettings):
    """The student's worker."""
