"""What a run measured: means over contexts with their standard errors, and paired comparisons.

A context's score is the mean over its trials; contexts are the independent unit, so every uncertainty is over contexts.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtr  # scipy.stats takes a second to import: one more until a coordinator is back
from sqlalchemy import select
from sqlalchemy.orm import Session

from rookery_coordinator.plans import BASE, BEFORE, PASSAGE_ONLY
from rookery_coordinator.tables import Round, SelfEdit, Trial
from rookery_coordinator.types import Purpose, State

Scores = Mapping[str, float]
"""Context id to score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    name: str
    mean: float
    standard_error: float
    """NaN for fewer than two."""
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`second` less `first`, context by context."""

    first: str
    second: str
    mean_difference: float
    standard_error: float
    p_value: float
    """Two-sided, of a paired t-test over contexts; NaN for fewer than two or if no context differs."""
    n: int


def measure(name: str, values: Sequence[float]) -> Measurement:
    """Mean and standard error of independent values, at least one."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Measurement(name=name, mean=statistics.fmean(values), standard_error=error, n=len(values))


def compare(first: str, second: str, one: Scores, other: Scores) -> Comparison | None:
    """None if no context has both."""
    shared = [context for context in one if context in other]
    if not shared:
        return None
    differences = [other[context] - one[context] for context in shared]
    measured = measure("", differences)
    tested = len(shared) > 1 and measured.standard_error > 0
    p_value = 2 * float(stdtr(len(shared) - 1, -abs(measured.mean / measured.standard_error))) if tested else math.nan
    return Comparison(
        first=first,
        second=second,
        mean_difference=measured.mean,
        standard_error=measured.standard_error,
        p_value=p_value,
        n=measured.n,
    )


def round_scores(session: Session, round_id: str) -> tuple[Scores, Scores]:
    """Scores of a round's contexts without and with the adapters, over the trials that are scored."""
    before: defaultdict[str, list[float]] = defaultdict(list)
    after: defaultdict[str, list[float]] = defaultdict(list)
    query = (
        select(SelfEdit.context, Trial.score_before, Trial.score_after)
        .join(SelfEdit, SelfEdit.id == Trial.self_edit)
        .where(Trial.round == round_id, Trial.score_after.is_not(None))
    )
    for context, score_before, score_after in session.execute(query):
        if score_before is not None and score_after is not None:
            before[context].append(score_before)
            after[context].append(score_after)
    return _means(before), _means(after)


def _means(scores: Mapping[str, Sequence[float]]) -> Scores:
    return {context: statistics.mean(values) for context, values in scores.items()}


def round_gain(session: Session, round_id: str) -> Measurement | None:
    """Mean gain over the contexts of a round; None before anything is scored."""
    before, after = round_scores(session, round_id)
    if not after:
        return None
    return measure("gain", [after[context] - before[context] for context in after])


def table(session: Session, run: str) -> dict[str, Scores]:
    """Row of the report to scores, in the report's order, for the measuring rounds that are done."""
    rows: dict[str, Scores] = {}
    query = select(Round).where(Round.parent == run, Round.state == State.SUCCEEDED, Round.label != "")
    for round_ in session.scalars(query.order_by(Round.position)):
        before, after = round_scores(session, round_.id)
        if round_.purpose is Purpose.BASELINE:
            rows[BASE] = before
        rows[round_.label] = after
    return rows


def measurements(rows: Mapping[str, Scores]) -> list[Measurement]:
    return [measure(name, list(scores.values())) for name, scores in rows.items() if scores]


def comparisons(rows: Mapping[str, Scores]) -> list[Comparison]:
    """The passage against nothing, self-edits against the passage, and every later policy against the first."""
    pairs = [(BASE, PASSAGE_ONLY), (PASSAGE_ONLY, BEFORE)]
    pairs += [(BEFORE, name) for name in rows if name not in (BASE, PASSAGE_ONLY, BEFORE)]
    compared = [compare(a, b, rows[a], rows[b]) for a, b in pairs if a in rows and b in rows]
    return [comparison for comparison in compared if comparison is not None]
