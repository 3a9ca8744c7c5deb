"""Gold answers as drafts, and what texts share: which tokens count as written, and which are read once."""

from __future__ import annotations

import pytest

from rookery_engines.decoding import Row
from rookery_engines.drafts import repetition, take_drafts
from rookery_engines.reading import groups_of
from rookery_shared.types import Sampling

STOP = 0


def draft(greedy: list[int], gold: list[int], *, most: int = 10) -> tuple[list[int], bool, int]:
    """The row's tokens, whether it has stopped, and how many of the gold's are none of its own."""
    row = Row(index=0, prompt=[9], sampling=Sampling(temperature=0.0, max_new_tokens=most), seed=0)
    [unread] = take_drafts([greedy], [row], [gold], frozenset({STOP}))
    return row.tokens, row.stopped, unread


@pytest.mark.parametrize(
    ("greedy", "gold", "tokens", "stopped"),
    [
        ([5, 6, STOP], [5, 6], [5, 6], True),  # the gold is the answer
        ([7, 6, STOP], [5, 6], [7], False),  # wrong at once
        ([5, 7, STOP], [5, 6], [5, 7], False),  # wrong later
        ([5, 6, 7], [5, 6], [5, 6, 7], False),  # the gold is only the beginning of the answer
        ([5, STOP, 8], [5, 6], [5], True),  # the answer is only the beginning of the gold
        ([STOP, 6, 7], [5, 6], [], True),  # a blank answer
        ([5, STOP, 8], [5, STOP], [5], True),  # the gold says the closing token
        ([7], [], [7], False),  # no gold
        ([8, 8, 8, 5, STOP], [5], [5], True),  # what is before the last tokens is another's
    ],
)
def test_a_row_takes_its_own_answer(greedy: list[int], gold: list[int], tokens: list[int], *, stopped: bool) -> None:
    taken = draft(greedy, gold)
    assert taken[:2] == (tokens, stopped)
    if not stopped:
        assert taken[2] == len(gold) - (len(tokens) - 1), "all tokens but the last have been read"


def test_an_answer_ends_where_it_may_not_be_longer() -> None:
    assert draft([5, 6, 7], [5, 6], most=1)[0] == [5]
    assert draft([5, 6, 7], [5, 6], most=2)[0] == [5, 6]
    assert draft([5, 6, 7], [5, 6], most=0)[0] == []


def test_texts_of_an_adapter_that_begin_alike_are_read_together() -> None:
    one, two = [1, 1, 1, 1, 5], [1, 1, 1, 1, 6]
    assert groups_of([one, two], ["a", "a"]) == [(2, 4)]
    assert groups_of([one, two], ["a", "b"]) == [(1, 0), (1, 0)], "each adapter reads for itself"
    assert groups_of([one, one], ["a", "a"]) == [(2, 4)], "the last token is read by each"
    assert groups_of([one, [2, 2, 2]], ["a", "a"]) == [(1, 0), (1, 0)]


def test_texts_are_divided_where_that_saves_more() -> None:
    one = [[1, *[2] * 8, last] for last in (5, 6, 7)]
    other = [[1, *[3] * 8, last] for last in (5, 6, 7)]
    assert groups_of(one + other, [""] * 6) == [(3, 9), (3, 9)]
    assert groups_of([one[0], other[0]], [""] * 2) == [(2, 1)]


@pytest.mark.parametrize(
    ("text", "most", "drafted"),
    [
        ([1, 2, 3, 4, 1, 2], 2, [3, 4]),  # as it was
        ([1, 2, 3, 1, 2, 4, 1, 2], 1, [4]),  # the last time
        ([1, 2, 3, 1, 2], 7, [3, 1, 2, 3, 1, 2, 3]),  # and over again
        ([5, 7, 7, 7], 3, [7, 7, 7]),
        ([1, 2, 3, 2], 2, []),  # only one token was there
        ([1, 2, 1, 2], 0, []),
        ([1], 2, []),
    ],
)
def test_a_text_is_taken_to_repeat_itself(text: list[int], most: int, drafted: list[int]) -> None:
    assert repetition(text, most) == drafted


def test_a_row_that_was_begun_goes_on() -> None:
    row = Row(index=0, prompt=[9], sampling=Sampling(temperature=0.0, max_new_tokens=10), seed=0, tokens=[1, 2])
    [unread] = take_drafts([[3, 4, 5]], [row], [[3, 6]], frozenset({STOP}))
    assert (row.tokens, unread) == ([1, 2, 3, 4], 1), "3 was drafted; 4 is its own, and 6 is forgotten"
