"""Settings that every service has. Each service's own class extends this one; main builds it and passes it down.

Every field can be set in the environment as ROOKERY_<FIELD>.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """What any process of the system needs."""

    model_config = SettingsConfigDict(env_prefix="ROOKERY_", extra="ignore")

    log_format: Literal["json", "text"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    coordinator_target: str = "localhost:7070"
    """The coordinator's public API, as a gRPC target."""
    job_service_target: str = "localhost:7071"
    """The coordinator's internal API for workers, as a gRPC target."""
    broker_url: str = "redis://localhost:6379/0"


class StoreSettings(BaseSettings):
    """Where adapters live: `file:///folder` or `s3://bucket/prefix`."""

    model_config = SettingsConfigDict(env_prefix="ROOKERY_", extra="ignore")

    store_url: str = "file:///var/lib/rookery/objects"
    cache_folder: Path = Path("/var/cache/rookery")
    """Where verified copies of adapters are kept."""
    s3_endpoint: str = "s3.amazonaws.com"
    """Host and port, without a scheme."""
    s3_region: str = "us-east-1"
    s3_access_key: SecretStr = SecretStr("")
    s3_secret_key: SecretStr = SecretStr("")
    s3_secure: bool = True
    """Use TLS."""


class ModelServiceSettings(ServiceSettings, StoreSettings):
    """What a process that holds a model needs."""

    profile: str
    """The profile that it serves, `profiles/{profile}`."""
    torch_threads: int = 0
    """CPU threads for torch; 0 leaves its default."""
    adapters_in_memory: int = 64
    """Adapters that an engine keeps, and so the most that answer in one batch; those used longest ago make room."""


class TrainerSettings(ModelServiceSettings):
    """What a process that trains adapters needs."""

    adapters_at_once: int = 32
    """Most adapters in one batch; fewer if memory is not enough."""
    training_memory_bytes: int = 0
    """What training may take beside the base model; 0 takes 0.9 of what a GPU has free, or half of what a host has."""
    checkpoint_seconds: float = 30.0
    """Least time between two checkpoints of an adapter. They are written at the end of an epoch."""
