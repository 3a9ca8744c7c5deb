"""What the coordinator and its worker are told. Every field is ROOKERY_<FIELD> in the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from rookery_shared.settings import ServerSettings, ServiceSettings, StoreSettings


class CoordinatorSettings(ServiceSettings, ServerSettings, StoreSettings):
    """The server."""

    database_url: str = "sqlite:////var/lib/rookery/rookery.db"
    """SQLAlchemy URL: postgresql+psycopg://... or sqlite:///..."""
    sql_seconds: float = Field(default=20.0, gt=0)
    """The longest that a transaction may take on PostgreSQL. A database that has not answered by then is away."""
    address: str = "0.0.0.0:7070"
    """Where the public API listens."""
    tls_address: str = ""
    """Where it listens for TLS as well; empty: nowhere."""
    tls_certificate: Path = Path("/etc/rookery/tls/tls.crt")
    """The chain that it shows there, as PEM. One that is renewed is shown to whoever connects next."""
    tls_key: Path = Path("/etc/rookery/tls/tls.key")
    """Of the certificate, as PEM."""
    job_address: str = "0.0.0.0:7071"
    """Where the internal API for workers listens."""
    lease_seconds: float = 30.0
    """A worker that has not been heard of for this long has lost its job."""
    leftovers_seconds: float = 60.0
    """How often the store is searched for what ended jobs have left there."""
    collect_seconds: float = 3600.0
    """How often adapters expire, and what no row refers to is removed from the store once it is a day old."""
    keep_days: float = Field(default=0.0, ge=0)
    """Adapters that no policy, alias or adaptation has chosen expire this long after they were made; 0: never."""
    forgotten_seconds: float = 60.0
    """A job whose queue has been quiet, or that was overtaken, for this long is announced again."""
    relays: bool = True
    """Whether the server sends messages, too. If not, a process of its own must: `rookery-coordinator relay`."""
    relay_seconds: float = 0.1
    """Pause between two looks at an empty outbox."""
    watch_seconds: float = 0.25
    """Pause between two looks for events of a watched run or adaptation."""


class WorkerSettings(ServiceSettings):
    """The worker that calls teachers and evaluators."""

    teacher_target: str = "dns:///rookery-teacher-{profile}:7072"
    """gRPC target of a teacher's server; {profile} is the last part of the profile's name."""
    evaluator_target: str = "dns:///rookery-evaluator-{profile}:7073"
    """gRPC target of a student's evaluator."""
    worker_concurrency: int = 4
    """Jobs at once; each waits for a remote answer most of the time."""
