"""What processes count about themselves, for Prometheus. Every name starts with `rookery_`.

No metric is labelled by the id of a run, job, adapter or worker: labels have few values, whatever the load. Those whose
first event somebody wants to hear of are at 0 from the start, for Prometheus sees no increase in what it did not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from rookery_shared.errors import AdapterCorrupt, AdapterRefused, ObjectMissing
from rookery_shared.log import get_logger

SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3_600, 10_800, 36_000)
CALL_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300, 3_600)
SCORES = (-10, -5, -3, -2, -1, -0.5, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
"""Log-likelihoods are below 0, shares of right answers between 0 and 1."""

DUPLICATE_DELIVERIES = Counter(
    "rookery_duplicate_delivery_total", "Messages of jobs that somebody had claimed, or that had ended"
)
MESSAGES_REFUSED = Counter("rookery_message_refused_total", "Messages that announced no job, such as what is not JSON")
FENCED_WRITES = Counter(
    "rookery_fenced_write_total", "Writes refused because their job had gone to another attempt, or had ended"
)
LATE_RESULTS = Counter(
    "rookery_late_result_total", "Results refused because their job had gone to another attempt, or had ended"
)
LEASES_EXPIRED = Counter("rookery_lease_expired_total", "Leases that ran out: the worker was not heard of")
FORGOTTEN_JOBS = Counter("rookery_forgotten_job_total", "Queued jobs announced again because their message seemed lost")
JOBS = Gauge("rookery_jobs", "Jobs that have not ended", ["kind", "queue", "state"])
JOB_TRANSITIONS = Counter("rookery_job_transitions_total", "Changes of jobs' states", ["from", "to"])
JOB_SECONDS = Histogram(
    "rookery_job_duration_seconds", "From the claim of a job to its result", ["kind"], buckets=SECONDS
)
ROUND_DURATION = Histogram(
    "rookery_round_duration_seconds", "From a round's first job to its end", ["purpose"], buckets=SECONDS
)
REWARDS = Histogram("rookery_reward", "Scores of trials with their adapters", ["reward"], buckets=SCORES)
OUTBOX_PENDING = Gauge("rookery_outbox_pending", "Messages that are due and not sent")
OUTBOX_AGE = Gauge("rookery_outbox_age_seconds", "How long the oldest of them has been due")
MEASURED = Gauge("rookery_measured_timestamp_seconds", "When a coordinator last looked into its database")
ADAPTER_PUBLISHES = Counter("rookery_adapter_publish_total", "Attempts to publish an adapter", ["result"])
ADAPTER_LOAD_LAG = Histogram(
    "rookery_adapter_load_lag_seconds",
    "From an adapter being asked for to its verified files being here",
    buckets=SECONDS,
)
CALL_DURATION = Histogram(
    "rookery_call_duration_seconds", "Answered calls, but watches", ["method", "code"], buckets=CALL_SECONDS
)
CERTIFICATE_END = Gauge("rookery_certificate_end_timestamp_seconds", "When a server's certificate ends; 0 for none")
CALLS_REFUSED = Counter("rookery_call_refused_total", "Calls refused because there were too many in flight")
ADAPTERS_REFUSED = Counter("rookery_adapter_refused_total", "Stored adapters that were not loaded", ["reason"])

for _result in ("published", "refused", "failed"):
    ADAPTER_PUBLISHES.labels(result=_result)
for _refusal in (AdapterCorrupt, AdapterRefused, ObjectMissing):
    ADAPTERS_REFUSED.labels(reason=_refusal.reason)


def _name(metric: Counter | Histogram) -> str:
    """Without what its kind puts behind it."""
    (family,) = metric.describe()
    return family.name


_OF_CHILDREN: Mapping[str, Counter | Histogram] = {
    _name(metric): metric for metric in (ADAPTER_PUBLISHES, ADAPTER_LOAD_LAG, ADAPTERS_REFUSED)
}
"""What the process of a worker's jobs counts as well, by name: Prometheus asks the worker alone."""


def _series(metric: str, labels: Mapping[str, str]) -> Counter | Histogram:
    found = _OF_CHILDREN[metric]
    return found.labels(**labels) if labels else found


class Tell(Protocol):
    """Has what somebody notes counted."""

    def __call__(self, metric: str, labels: Mapping[str, str], value: float) -> None: ...


def count(metric: str, labels: Mapping[str, str], value: float) -> None:
    """What another process has told. Raises KeyError for a metric that no child has, ValueError for other labels."""
    series = _series(metric, labels)
    series.inc(value) if isinstance(series, Counter) else series.observe(value)


class _Notes:
    tell: Tell = staticmethod(count)


def count_elsewhere(tell: Tell) -> None:
    """From now on what this process notes is told to another, which counts it."""
    _Notes.tell = staticmethod(tell)


def note(metric: Counter | Histogram, value: float = 1.0, **labels: str) -> None:
    """Count or observe something, in whichever process Prometheus asks. Raises as `count` does, in this one."""
    name = _name(metric)
    _series(name, labels)
    _Notes.tell(name, labels, value)


def serve_metrics(port: int, *, host: str = "0.0.0.0") -> None:
    """Answer Prometheus at an address, from a thread of its own; port 0 answers nobody. A port that is taken is only
    warned of: the service matters more than what is counted.
    """
    if not port:
        return
    try:
        start_http_server(port, addr=host)
    except OSError as error:
        get_logger().warning("metrics are not served", port=port, error=str(error))
    else:
        get_logger().info("serving metrics", port=port)
