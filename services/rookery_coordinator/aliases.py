"""Movable names for adapters: promotion, rollback, and what they point to now.

Every move is a row; none is changed. Rolling back is a move too: to where the alias pointed before the move that it
undoes.
"""

from __future__ import annotations

import math

from sqlalchemy import select
from sqlalchemy.orm import Session

from rookery_coordinator.events import audit
from rookery_coordinator.report import Measurement, measure
from rookery_coordinator.tables import Adapter, AliasMove, Profile, Trial
from rookery_shared.errors import AliasMoved, GainNotSignificant, InvalidField, NothingToRollBack, UnknownResource

LIVE = "live"
GOLDEN = "golden"
ALIASES = (LIVE, GOLDEN)
STANDARD_ERRORS = 2.0
"""A gain counts as positive if it is more than this many standard errors above zero."""


def find_adapter(session: Session, name: str, *, lock: bool = False) -> Adapter:
    """Raises UnknownResource. Locked, it does not expire before the transaction ends."""
    adapter = session.get(Adapter, name, with_for_update={"read": True} if lock else None)
    if adapter is None:
        raise UnknownResource(f"there is no {name}", name=name)
    return adapter


def adapter_gain(session: Session, adapter: Adapter) -> Measurement | None:
    """The gain over all trials of the adapter's self-edit, which differ in their seeds. None for a policy's adapter."""
    query = select(Trial).where(Trial.self_edit == adapter.self_edit, Trial.score_after.is_not(None))
    trials = session.scalars(query).all() if adapter.self_edit else []
    gains = [t.score_after - t.score_before for t in trials if t.score_after is not None and t.score_before is not None]
    return measure("gain", gains) if gains else None


def current(session: Session, profile: str, alias: str) -> AliasMove | None:
    query = select(AliasMove).where(AliasMove.profile == profile, AliasMove.alias == alias)
    return session.scalar(query.order_by(AliasMove.version.desc()).limit(1))


def aliases_of(session: Session, adapter: Adapter) -> list[str]:
    """Aliases of the adapter's profile that point to it now."""
    moves = [(alias, current(session, adapter.profile, alias)) for alias in ALIASES]
    return [alias for alias, move in moves if move is not None and move.adapter == adapter.name]


def promote(session: Session, name: str, alias: str, *, expected: str | None) -> AliasMove:
    """Point an alias at an adapter.

    Raises AliasMoved if the alias does not point to `expected`; GainNotSignificant for `live` if the gain is not
    positive beyond its uncertainty.
    """
    _check_alias(alias)
    adapter = find_adapter(session, name, lock=True)
    _lock(session, adapter.profile)
    before = current(session, adapter.profile, alias)
    if expected and (before is None or before.adapter != expected):
        raise AliasMoved(f"{alias} points to {before.adapter if before else 'nothing'}, not {expected}", alias=alias)
    if alias == LIVE:
        _require_gain(session, adapter)
    move = AliasMove(
        profile=adapter.profile,
        alias=alias,
        version=before.version + 1 if before else 1,
        adapter=adapter.name,
        back_to=before.version if before else 0,
    )
    session.add(move)
    audit(session, "adapter promoted", adapter.name, alias=alias, before=before.adapter if before else None)
    return move


def roll_back(session: Session, profile: str, alias: str) -> AliasMove:
    """Point an alias back at what it pointed to before. Raises NothingToRollBack."""
    _check_alias(alias)
    _lock(session, profile)
    now = current(session, profile, alias)
    if now is None or not now.back_to:
        raise NothingToRollBack(f"{alias} of {profile} has pointed nowhere else", alias=alias, profile=profile)
    before = session.get_one(AliasMove, (profile, alias, now.back_to))
    move = AliasMove(
        profile=profile, alias=alias, version=now.version + 1, adapter=before.adapter, back_to=before.back_to
    )
    session.add(move)
    audit(session, "adapter rolled back", before.adapter, alias=alias, before=now.adapter)
    return move


def _require_gain(session: Session, adapter: Adapter) -> None:
    gain = adapter_gain(session, adapter)
    if gain is None:
        raise GainNotSignificant(f"{adapter.name} has no measured gain", adapter=adapter.name)
    if math.isnan(gain.standard_error):
        raise GainNotSignificant(
            f"the gain of {adapter.name} comes from one trial and has no known uncertainty; train with more seeds",
            adapter=adapter.name,
        )
    if gain.mean <= STANDARD_ERRORS * gain.standard_error:
        raise GainNotSignificant(
            f"the gain of {adapter.name} is {gain.mean:.4f} ± {gain.standard_error:.4f}, not positive beyond its "
            f"uncertainty",
            adapter=adapter.name,
        )


def _lock(session: Session, profile: str) -> None:
    """Serialise the moves of a profile's aliases."""
    session.execute(select(Profile.name).where(Profile.name == profile).with_for_update(key_share=True))


def _check_alias(alias: str) -> None:
    if alias not in ALIASES:
        raise InvalidField(f"alias must be one of {', '.join(ALIASES)}", field="alias")
