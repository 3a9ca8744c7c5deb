"""What a student is told. Every field is ROOKERY_<FIELD> in the environment."""

from __future__ import annotations

from rookery_shared.settings import TrainerSettings


class StudentSettings(TrainerSettings):
    """The student's worker."""

    jobs_at_once: int = 4
    """Jobs that share its batch. More keep it full while small jobs come and go; fewer leave more to other students."""
