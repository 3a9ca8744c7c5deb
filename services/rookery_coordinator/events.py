"""What happened: events for watchers, entries for the audit log. Both only grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from rookery_coordinator.tables import Adaptation, AuditEntry, Event, Run

_AT_ONCE = 1000


def tell(session: Session, parent: str, message: str) -> None:
    """Tell the watchers of a run or an adaptation."""
    session.add(Event(parent=parent, message=message))


def audit(session: Session, action: str, subject: str, **details: Any) -> None:
    """Put a decision on record."""
    session.add(AuditEntry(action=action, subject=subject, details=details))


def events_after(session: Session, parent: str, sequence: int, *, limit: int = 100) -> list[Event]:
    """The next events, oldest first."""
    query = select(Event).where(Event.parent == parent, Event.sequence > sequence).order_by(Event.sequence).limit(limit)
    return list(session.scalars(query))


def newest_events(session: Session, parents: Sequence[str]) -> dict[str, int]:
    """The sequence of the newest event of each: a look into an index for each, however many events there are."""
    return dict(_newest(session, parents))


def _newest(session: Session, parents: Sequence[str]) -> Iterator[tuple[str, int]]:
    for work in (Run, Adaptation):
        last = select(func.max(Event.sequence)).where(Event.parent == work.name).scalar_subquery()
        for first in range(0, len(parents), _AT_ONCE):
            some = parents[first : first + _AT_ONCE]
            for name, sequence in session.execute(select(work.name, last).where(work.name.in_(some))):
                yield name, sequence or 0
