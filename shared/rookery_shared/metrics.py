"""What processes count about themselves, for Prometheus. Every name starts with `rookery_`.

No metric is labelled by the id of a run, job, adapter or worker: labels have few values, whatever the load.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from rookery_shared.log import get_logger

SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3_600, 10_800, 36_000)

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
JOB_TRANSITIONS = Counter("rookery_job_transitions_total", "Changes of jobs' states", ["from", "to"])
JOB_SECONDS = Histogram(
    "rookery_job_duration_seconds", "From the claim of a job to its result", ["kind"], buckets=SECONDS
)
OUTBOX_PENDING = Gauge("rookery_outbox_pending", "Messages that are due and not sent")
OUTBOX_AGE = Gauge("rookery_outbox_age_seconds", "How long the oldest of them has been due")
ADAPTER_PUBLISHES = Counter("rookery_adapter_publish_total", "Attempts to publish an adapter", ["result"])
CALLS_REFUSED = Counter("rookery_call_refused_total", "Calls refused because there were too many in flight")
ADAPTERS_REFUSED = Counter("rookery_adapter_refused_total", "Stored adapters that were not loaded", ["reason"])


def serve_metrics(port: int) -> None:
    """Answer Prometheus on a port, from a thread of its own; 0 answers nobody. A port that is taken is only warned of:
    the service matters more than what is counted.
    """
    if not port:
        return
    try:
        start_http_server(port)
    except OSError as error:
        get_logger().warning("metrics are not served", port=port, error=str(error))
    else:
        get_logger().info("serving metrics", port=port)
