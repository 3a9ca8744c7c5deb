"""The whole system on RabbitMQ."""

from __future__ import annotations

from pathlib import Path

from rookery_shared.jobs.queues import DEAD
from tests.e2e.conftest import running_system
from tests.e2e.systems import finish, small_run
from tests.servers.rabbitmq import RabbitMQServer, waiting


def test_a_run_on_rabbitmq(tmp_path: Path, rabbitmq_server: RabbitMQServer) -> None:
    url = rabbitmq_server.make_vhost()
    with running_system(tmp_path, ROOKERY_BROKER_URL=url) as system:
        assert "redis" not in system.cluster.names
        run = system.client.create_run(small_run(contexts=2, test=0, seed=700))
        done = finish(system.client, run.name)
        assert done.progress.trials_done == done.progress.trials_total == 2 * 2
    assert waiting(url, DEAD) == 0
