"""Where SQL refers to adapters, and which of them nothing needs any more."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, select

from rookery_coordinator.database import Database, now
from rookery_coordinator.events import audit
from rookery_coordinator.tables import Adaptation, Adapter, AliasMove, Policy, Round, Run, Trial
from rookery_coordinator.types import State
from rookery_shared.log import get_logger

_OPEN = [state for state in State if not state.ended]
_AT_ONCE = 1000


def references() -> tuple[Select[Any], ...]:
    """Queries for names of adapters; one that none of them finds is not referred to."""
    return (select(Adapter.name), *needs())


def needs() -> tuple[Select[Any], ...]:
    """Those that are needed however old they are: of policies and aliases, chosen ones, those of open work."""
    chosen = select(Trial.adapter).join(Adaptation, Adaptation.trial == Trial.id)
    in_work = select(Trial.adapter).join(Round, Trial.round == Round.id).where(Round.parent.in_(_open_work()))
    return (
        select(Policy.adapter).where(Policy.adapter.is_not(None)),
        select(AliasMove.adapter),
        chosen.where(Trial.adapter.is_not(None)),
        in_work.where(Trial.adapter.is_not(None)),
    )


def _open_work() -> Any:
    return (
        select(Run.name).where(Run.state.in_(_OPEN)).union(select(Adaptation.name).where(Adaptation.state.in_(_OPEN)))
    )


class Expiry:
    """Forgets adapters that nothing needs, some time after they were made. Their objects are then orphans.

    Whoever comes to need a stored adapter locks its row for sharing, in the transaction that makes it needed.
    """

    def __init__(self, database: Database, *, days: float) -> None:
        """0 days keep them for ever."""
        self._database, self._days = database, days

    def sweep(self) -> None:
        """Trials keep their scores and the names of their adapters."""
        expired = self._days > 0
        while expired:
            with self._database.write() as session:
                locked = session.scalars(self._free().limit(_AT_ONCE).with_for_update(skip_locked=True)).all()
                # What came to need one of them before it was locked is seen by a second look alone.
                names = [adapter.name for adapter in locked]
                rows = session.scalars(self._free().where(Adapter.name.in_(names))).all()
                for row in rows:
                    audit(session, "adapter expired", row.name, made_by=row.parent)
                    session.delete(row)
            if rows:
                get_logger().info("adapters expired", adapters=len(rows))
            expired = len(locked) == _AT_ONCE

    def _free(self) -> Select[Adapter]:
        """Those that are old enough and that nothing needs."""
        free = select(Adapter).where(
            Adapter.create_time < now() - self._days * 86_400.0, Adapter.parent.not_in(_open_work())
        )
        for query in needs():
            free = free.where(Adapter.name.not_in(query))
        return free
