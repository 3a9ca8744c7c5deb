"""Settings: every field has its name in the environment, and secrets stay secret."""

from __future__ import annotations

import pytest
from pydantic_settings import BaseSettings

from rookery_coordinator.settings import CoordinatorSettings, WorkerSettings
from rookery_evaluator.settings import EvaluatorSettings
from rookery_student.settings import StudentSettings
from rookery_teacher.settings import TeacherSettings

ALL: list[type[BaseSettings]] = [
    CoordinatorSettings,
    WorkerSettings,
    TeacherSettings,
    StudentSettings,
    EvaluatorSettings,
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_settings_come_from_the_environment(kind: type[BaseSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOKERY_PROFILE", "profiles/x")
    monkeypatch.setenv("ROOKERY_BROKER_URL", "redis://elsewhere:1/2")
    monkeypatch.setenv("ROOKERY_LOG_LEVEL", "ERROR")
    settings = kind().model_dump()
    assert settings["broker_url"] == "redis://elsewhere:1/2"
    assert settings["log_level"] == "ERROR"


def test_a_model_process_must_be_told_its_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROOKERY_PROFILE", raising=False)
    with pytest.raises(ValueError, match="profile"):
        StudentSettings()  # type: ignore[call-arg]  # that is what is tested


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOKERY_S3_SECRET_KEY", "hush")
    settings = CoordinatorSettings()
    assert "hush" not in repr(settings)
    assert settings.s3_secret_key.get_secret_value() == "hush"


def test_only_the_coordinator_can_be_told_a_database() -> None:
    with_database = [kind.__name__ for kind in ALL if "database_url" in kind.model_fields]
    assert with_database == ["CoordinatorSettings"]
