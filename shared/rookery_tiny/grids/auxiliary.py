"""What inner layers are asked while the grid model is pre-trained: where cells are, where they are from, by which rule.

The loss on outputs alone tells a small model little of how to find a rule: on rules of one step it was at 1.6 nats
after 1,400 steps. Asked for the parts of a solution on the way, the model is at 0.34 after 600. The readouts are thrown
away with the pre-training; the model is the same as any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from transformers import PreTrainedTokenizerBase

from rookery.grids import COLOURS
from rookery_tiny.grids.puzzles import LARGEST_SIDE, STEPS, Puzzle, origins
from rookery_tiny.grids.tokenizer import CELLS, INPUT, OUTPUT, token_of
from rookery_tiny.training import Auxiliary

NOTHING = -100


class Asked(StrEnum):
    """Of a cell its place and, in an output, where it is from.

    Before a cell of a later output, where the cell will be from, which colour it has there, and the rule's steps.
    """

    ROW = "row"
    COLUMN = "column"
    FROM = "from"
    NEXT_FROM = "next_from"
    NEXT_WAS = "next_was"
    FIRST_STEP = "first_step"
    SECOND_STEP = "second_step"


QUESTIONS: Mapping[str, Auxiliary] = {
    Asked.ROW: Auxiliary(layer=1, classes=LARGEST_SIDE, weight=0.1),
    Asked.COLUMN: Auxiliary(layer=1, classes=LARGEST_SIDE, weight=0.1),
    Asked.FROM: Auxiliary(layer=2, classes=LARGEST_SIDE**2, weight=0.5),
    Asked.NEXT_FROM: Auxiliary(layer=4, classes=LARGEST_SIDE**2, weight=0.5),
    Asked.NEXT_WAS: Auxiliary(layer=5, classes=COLOURS, weight=0.5),
    Asked.FIRST_STEP: Auxiliary(layer=4, classes=len(STEPS) + 1, weight=0.5),
    Asked.SECOND_STEP: Auxiliary(layer=4, classes=len(STEPS) + 1, weight=0.5),
}
"""Of places the number, of steps the number from 1 on, 0 for none."""


class Cells:
    """Reads which of a text's tokens are cells."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._input, self._output, self._end = (token_of(tokenizer, piece) for piece in (INPUT, OUTPUT, "\n"))
        self._cells = {token_of(tokenizer, cell) for cell in CELLS}

    def answers(self, tokens: Sequence[int], puzzle: Puzzle | None) -> dict[str, list[int]]:
        """For each token the right class, `NOTHING` where there is none: everywhere if there is no puzzle."""
        answers = {name: [NOTHING] * len(tokens) for name in QUESTIONS}
        if puzzle is None:
            return answers
        first, second, *_ = (*([*STEPS].index(step) + 1 for step in puzzle.rule.steps), 0, 0)
        shown, *_ = puzzle.demonstrations
        columns = len(shown.input[0])
        known = puzzle.keeps_its_rule
        sources = origins(puzzle.rule, len(shown.input), columns) if known else None
        pairs = (*puzzle.demonstrations, *puzzle.tests)
        row = column = outputs = 0
        is_output = False
        for place, token in enumerate(tokens):
            if token in (self._input, self._output):
                row = column = 0
                is_output = token == self._output
                outputs += is_output
            elif token == self._end:
                row, column = row + 1, 0
            elif token in self._cells:
                if max(row, column) < LARGEST_SIDE:
                    answers[Asked.ROW][place], answers[Asked.COLUMN][place] = row, column
                if is_output and sources is not None:
                    source = divmod(sources[row][column], columns)
                    answers[Asked.FROM][place] = _number(source)
                    if outputs > 1:
                        answers[Asked.NEXT_FROM][place - 1] = _number(source)
                        answers[Asked.NEXT_WAS][place - 1] = pairs[outputs - 1].input[source[0]][source[1]]
                if is_output and known and outputs > 1:
                    answers[Asked.FIRST_STEP][place - 1] = first
                    answers[Asked.SECOND_STEP][place - 1] = second
                column += 1
        return answers


def _number(place: tuple[int, int]) -> int:
    """As if grids were as large as the largest, so that a number is a place whatever the size."""
    row, column = place
    return row * LARGEST_SIDE + column if max(place) < LARGEST_SIDE else NOTHING
