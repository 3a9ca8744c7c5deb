"""Sends what the outbox holds. Any number may run: each message is sent at least once, and once is enough."""

from __future__ import annotations

from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy import delete, select

from rookery_coordinator.database import Database, now
from rookery_coordinator.tables import Outbox
from rookery_shared.faults import Point, fault_point
from rookery_shared.jobs.queues import announce
from rookery_shared.log import get_logger

BATCH = 100


class Relay:
    """Publishes outbox rows that are due and deletes them once the broker has them."""

    def __init__(self, database: Database, app: Celery) -> None:
        self._database = database
        self._app = app
        self._broker_is_down = False

    def send_due(self) -> int:
        """One batch. Returns how many were sent; 0 also while the broker is down, which is logged once.

        No transaction is open while the broker is talked to: it may take its time, and others must write meanwhile.
        """
        with self._database.read() as session:
            due = select(Outbox).where(Outbox.not_before <= now()).order_by(Outbox.id).limit(BATCH)
            rows = session.scalars(due).all()
        sent: list[int] = []
        try:
            for row in rows:
                fault_point(Point.RELAYING)
                announce(self._app, queue=row.queue, job=row.job, epoch=row.epoch)
                fault_point(Point.RELAYED)
                sent.append(row.id)
        except (OperationalError, OSError) as error:
            if not self._broker_is_down:
                get_logger().warning("broker is down; messages wait in the outbox", error=str(error))
            self._broker_is_down = True
        else:
            self._broker_is_down = False
        if sent:
            with self._database.write() as session:
                session.execute(delete(Outbox).where(Outbox.id.in_(sent)))
        return len(sent)
