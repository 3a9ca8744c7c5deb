"""Adapters that somebody would not load, put on record. Nothing is removed: a person decides what to do."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.orm import Session

from rookery_coordinator.events import audit
from rookery_shared.errors import AdapterCorrupt, AdapterIgnored, AdapterMismatch, AdapterRefused, ObjectMissing
from rookery_shared.store.adapters import PREFIX

REFUSALS = frozenset(
    kind.reason for kind in (AdapterCorrupt, AdapterIgnored, AdapterMismatch, AdapterRefused, ObjectMissing)
)


def record_refusal(session: Session, reason: str, message: str, metadata: Mapping[str, str], *, by: str) -> None:
    """An entry of the audit log, if an error says that an adapter was refused. `by` names the job or call."""
    adapter = metadata.get("adapter") or "/".join(metadata.get("key", "").split("/")[:2])
    if reason in REFUSALS and adapter.startswith(PREFIX):
        audit(session, "adapter refused", adapter, reason=reason, message=message, by=by)
