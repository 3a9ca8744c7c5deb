"""What happened: events for watchers, entries for the audit log. Both only grow."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from rookery_coordinator.tables import AuditEntry, Event


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
