"""Settings that every service has. Each service's own class extends this one; main builds it and passes it down.

Every field can be set in the environment as ROOKERY_<FIELD>.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

CACHE_BYTES = 16 << 30
MODEL_CALLS = 32
"""At once, of a server with a model: each is work for minutes, which waits for the others."""


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
    metrics_port: int = Field(default=0, ge=0)
    """Where Prometheus finds what the process counts, at /metrics; 0: nowhere."""
    metrics_host: str = "0.0.0.0"
    """The address of this machine that it is told at."""
    traces_url: str = Field(default="", pattern=r"^$|^https?://[^/]+|^file:///")
    """Where spans go: `http://host:port` or `https://host:port`, a collector that takes OTLP over gRPC, or
    `file:///folder`, a file of JSON lines for each process. Empty: nowhere."""
    traces_ratio: float = Field(default=1.0, ge=0, le=1)
    """Of the traces that begin here, the share that is recorded. A caller's own choice is kept to."""


class StoreSettings(BaseSettings):
    """Where adapters live: `file:///folder` or `s3://bucket/prefix`."""

    model_config = SettingsConfigDict(env_prefix="ROOKERY_", extra="ignore")

    store_url: str = "file:///var/lib/rookery/objects"
    cache_folder: Path = Path("/var/cache/rookery")
    """Where verified copies of adapters are kept; processes of one machine may share it."""
    cache_bytes: int = Field(default=CACHE_BYTES, ge=0)
    """The most that they take: those used longest ago make room, but none that is in use."""
    s3_endpoint: str = "s3.amazonaws.com"
    """Host and port, without a scheme."""
    s3_region: str = "us-east-1"
    s3_access_key: SecretStr = SecretStr("")
    s3_secret_key: SecretStr = SecretStr("")
    s3_secure: bool = True
    """Use TLS."""


class ServerSettings(BaseSettings):
    """How a gRPC server treats those who call it."""

    model_config = SettingsConfigDict(env_prefix="ROOKERY_", extra="ignore")

    calls_at_once: int = Field(default=256, ge=1)
    """In flight at an address; those beyond are told to try again soon."""
    watches_at_once: int = Field(default=10_000, ge=1)
    """Callers that wait for events, at an address; they are not among the calls."""
    drain_seconds: float = Field(default=10.0, ge=0)
    """What calls in flight have to end by themselves when the server stops."""
    connection_seconds: float = Field(default=300.0, gt=0)
    """Then a client has to connect anew, and learns of servers that were started meanwhile."""


class RemoteModel(BaseModel):
    """An OpenAI-compatible endpoint and how it is asked. Of a setting `openai`, `url` is ROOKERY_OPENAI_URL."""

    url: str = ""
    """Such as https://api.openai.com/v1. Empty: there is none."""
    key: SecretStr = SecretStr("")
    """Empty for an endpoint that wants none."""
    api: Literal["chat", "completions"] = "chat"
    """`chat` sends a prompt as a user's message, for instruct models; `completions` as it is, for base models."""
    concurrency: int = Field(default=8, ge=1)
    """Requests at once."""
    retries: int = Field(default=6, ge=0)
    """After a rate limit, an error of the server or a lost connection. A `Retry-After` is kept to, up to a minute."""
    seconds: float = Field(default=300.0, gt=0)
    """Longest wait for one answer."""
    prompt_price: float = Field(default=0.0, ge=0)
    """Money for a million tokens of prompts."""
    completion_price: float = Field(default=0.0, ge=0)
    """Money for a million tokens of answers."""


ENDPOINTS = SettingsConfigDict(env_nested_delimiter="_", env_nested_max_split=1)
"""What a class of settings with a `RemoteModel` adds to its `model_config`."""


class ModelServiceSettings(ServiceSettings, StoreSettings):
    """What a process that holds a model needs."""

    profile: str
    """The profile that it serves, `profiles/{profile}`."""
    device: Literal["", "cpu", "cuda"] = ""
    """Where the model must be, or the process says why it cannot; empty takes the GPU if there is one."""
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
    stop_seconds: float = Field(default=10.0, gt=0)
    """How long a job may take to stop, when it is cancelled or the worker ends, before its process is killed."""
