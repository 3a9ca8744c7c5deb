"""What a run's teachers wrote and what came of it, page by page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from rookery.v1 import run_service_pb2 as pb
from rookery_coordinator import earnings
from rookery_coordinator.api.base import page
from rookery_coordinator.tables import Context, Kept, Round, Run, SelfEdit, Trial
from rookery_coordinator.types import TrialState
from rookery_coordinator.works import find_run, plan_of
from rookery_shared.errors import InvalidField

LARGEST_PAGE = 100
"""Each has a text, and up to as many trials as the plan has seeds."""
STATES = {state: pb.SelfEdit.Trial.State.Value(f"STATE_{state.name}") for state in TrialState}


def list_self_edits(session: Session, request: pb.ListSelfEditsRequest) -> pb.ListSelfEditsResponse:
    """Raises UnknownResource, or InvalidField for a round that the run does not have."""
    run = find_run(session, request.parent)
    query = (
        select(SelfEdit)
        .join(Round, Round.id == SelfEdit.round)
        .join(Context, Context.id == SelfEdit.context)
        .where(Round.parent == run.name)
    )
    if request.HasField("round"):
        query = query.where(Round.position == _known_round(session, run, request.round))

    def place(row: SelfEdit) -> tuple[int, int, int]:
        round_, context = session.get_one(Round, row.round), session.get_one(Context, row.context)
        return round_.position, context.position, row.position

    rows, token = page(
        session,
        query,
        order=(Round.position, Context.position, SelfEdit.position),
        size=min(request.page_size, LARGEST_PAGE) or LARGEST_PAGE,
        token=request.page_token,
        place=place,
    )
    return pb.ListSelfEditsResponse(self_edits=_messages(session, run, rows), next_page_token=token)


def _known_round(session: Session, run: Run, index: int) -> int:
    rounds = session.scalar(select(func.count()).where(Round.parent == run.name)) or 0
    if index >= rounds:
        raise InvalidField(f"{run.name} has {rounds} rounds, counted from 0, and no {index}", field="round")
    return index


def _messages(session: Session, run: Run, rows: Sequence[SelfEdit]) -> Iterable[pb.SelfEdit]:
    ids, plan = [row.id for row in rows], plan_of(run)
    kept = select(Kept.round, Kept.self_edit).where(Kept.self_edit.in_(ids))
    learned = {(row.round, row.self_edit) for row in session.execute(kept)}
    rounds = select(Round.id, Round.position).where(Round.id.in_({row.round for row in rows}))
    places = {row.id: row.position for row in session.execute(rounds)}
    contexts = select(Context.id, Context.title).where(Context.id.in_({row.context for row in rows}))
    titles = {row.id: row.title for row in session.execute(contexts)}
    trials: dict[str, list[Trial]] = {id_: [] for id_ in ids}
    for trial in session.scalars(select(Trial).where(Trial.self_edit.in_(ids)).order_by(Trial.position)):
        trials[trial.self_edit].append(trial)
    for row in rows:
        earned = earnings.earned(plan, row, trials[row.id])
        yield pb.SelfEdit(
            round=places[row.round],
            context=titles[row.context],
            index=row.position,
            text=row.text,
            truncated=row.truncated,
            fault=row.fault or _told_to_trials(trials[row.id]),
            trials=map(_trial_message, trials[row.id]),
            reward=earned.reward if earned else None,
            gain=earned.gain if earned else None,
            kept=(row.round, row.id) in learned,
        )


def _told_to_trials(trials: Iterable[Trial]) -> str:
    """The fault of a self-edit that was stored before self-edits had one."""
    return next((trial.failure or "" for trial in trials if trial.state is TrialState.REFUSED), "")


def _trial_message(trial: Trial) -> pb.SelfEdit.Trial:
    return pb.SelfEdit.Trial(
        state=STATES[trial.state],
        failure=trial.failure or "",
        score_before=trial.score_before,
        score_after=trial.score_after,
        adapter=trial.adapter or "",
    )
