"""What processes count about themselves, for Prometheus. Every name starts with `rookery_`.

No metric is labelled by the id of a run, job, adapter or worker: labels have few values, whatever the load.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, start_http_server

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
JOBS = Gauge("rookery_jobs", "Jobs that have not ended", ["kind", "state"])
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
ADAPTER_PUBLISHES = Counter("rookery_adapter_publish_total", "Attempts to publish an adapter", ["result"])
ADAPTER_LOAD_LAG = Histogram(
    "rookery_adapter_load_lag_seconds",
    "From an adapter being asked for to its verified files being here",
    buckets=SECONDS,
)
CALL_DURATION = Histogram(
    "rookery_call_duration_seconds", "Answered calls, but watches", ["method", "code"], buckets=CALL_SECONDS
)
CALLS_REFUSED = Counter("rookery_call_refused_total", "Calls refused because there were too many in flight")
ADAPTERS_REFUSED = Counter("rookery_adapter_refused_total", "Stored adapters that were not loaded", ["reason"])


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
