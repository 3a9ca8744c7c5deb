"""Sends what the outbox holds. Any number may run: each message is sent at least once, and once is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy import delete, or_, select, update

from rookery_coordinator.database import Database, now
from rookery_coordinator.tables import Outbox
from rookery_shared.faults import Point, fault_point
from rookery_shared.jobs.queues import announce
from rookery_shared.log import get_logger

BATCH = 100
CLAIM_SECONDS = 10.0
"""What a relay has taken is another's after this long: it has died, or the broker keeps it waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    id: int
    job: str
    epoch: int
    queue: str
    trace: str


class Relay:
    """Publishes outbox rows that are due and deletes them once the broker has them."""

    def __init__(self, database: Database, app: Celery) -> None:
        self._database = database
        self._app = app
        self._broker_is_down = False

    def send_due(self) -> int:
        """One batch. Returns how many were sent; 0 also while the broker is down, which is logged once.

        No transaction is open while the broker is talked to: it may take its time, and others must write meanwhile.
        What the broker refuses stays taken until its time is over, and holds nothing up.
        """
        taken = self._take()
        sent, refused = self._send(taken)
        if taken:
            self._put_down(sent, [message.id for message in taken if message.id not in sent | refused])
        return len(sent)

    def _take(self) -> list[_Message]:
        """Messages that are due and that no other relay has."""
        free = or_(Outbox.claimed_until.is_(None), Outbox.claimed_until < now())
        due = select(Outbox.id).where(Outbox.not_before <= now(), free).order_by(Outbox.id).limit(BATCH)
        claimed = due.with_for_update(skip_locked=True).cte("due")
        taking = (
            update(Outbox)
            .where(Outbox.id.in_(select(claimed.c.id)))
            .values(claimed_until=now() + CLAIM_SECONDS)
            .returning(Outbox.id, Outbox.job, Outbox.epoch, Outbox.queue, Outbox.trace)
        )
        with self._database.read() as session:
            if session.scalar(due.limit(1)) is None:
                return []
        with self._database.write() as session:
            rows = session.execute(taking).all()
        return [
            _Message(id=row.id, job=row.job, epoch=row.epoch, queue=row.queue, trace=row.trace) for row in sorted(rows)
        ]

    def _send(self, messages: Sequence[_Message]) -> tuple[set[int], set[int]]:
        """The ids of those that the broker has, and of those that it refused."""
        sent: set[int] = set()
        refused: set[int] = set()
        for message in messages:
            fault_point(Point.RELAYING)
            try:
                announce(self._app, queue=message.queue, job=message.job, epoch=message.epoch, trace=message.trace)
            except (OperationalError, OSError) as error:
                if not self._broker_is_down:
                    get_logger().warning("broker is down; messages wait in the outbox", error=str(error))
                self._broker_is_down = True
                return sent, refused
            except Exception:  # such as a queue of that name with other arguments
                get_logger().exception("the broker refuses a message", queue=message.queue, job=message.job)
                refused.add(message.id)
                continue
            fault_point(Point.RELAYED)
            sent.add(message.id)
        self._broker_is_down = False
        return sent, refused

    def _put_down(self, sent: set[int], left: Sequence[int]) -> None:
        with self._database.write() as session:
            session.execute(delete(Outbox).where(Outbox.id.in_(sent)))
            if left:
                session.execute(update(Outbox).where(Outbox.id.in_(left)).values(claimed_until=None))
