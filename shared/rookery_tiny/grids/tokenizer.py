"""The grid model's tokenizer: a cell is a token, and so is what the few-shot domain always says in the same words.

A text is cut into pieces by one pattern. A piece that is in the vocabulary is a token; of any other each byte is one,
so that any text can be read. A cell after another has its space with it: `rookery_tiny.tokenizer.stems` knows that
" 3" and "3" are the same colour. The zeros that a learning rate begins with are one token, its order of magnitude.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rookery.grids import COLOURS
from rookery_shared.domains import find_domain
from rookery_shared.grids.augmentations import GROUPS
from rookery_shared.grids.configuration import Configuration, Strategy, write_configuration
from rookery_shared.types import Context
from rookery_tiny.tokenizer import END, PAD

INPUT, OUTPUT, NEXT = "Input:\n", "Output:\n", "\n\n"
"""What stands before a grid, and after a pair that another one follows."""
CELLS = [f"{space}{colour}" for space in ("", " ") for colour in range(COLOURS)]
"""Alone or first in its line, and after another."""
LONGEST = 16_384
"""Tokens of a text: as many as the largest of practice tasks has."""
_ALIKE = "train_using_"
"""How both strategies begin. A token, since an engine that is held to the schema writes it without a choice."""
_VALUES = re.compile(r"\btrue\b|\bfalse\b|\btrain_using\w+|[0-9.]+")
_ZEROS = [f"0.{'0' * count}" for count in range(6)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The same each time: nothing of it is learned."""
    phrases = [*_phrases()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = ["".join(_as_bytes(piece)) for piece in (*phrases, *_ZEROS, *CELLS)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([END, PAD, *alphabet, *whole]))}
    longest_first = sorted(phrases, key=len, reverse=True)
    pattern = "|".join([*map(_escape, longest_first), r"0\.0*", " ?[0-9]"])
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers
        tokenizer_object=tokenizer, unk_token=END, eos_token=END, pad_token=PAD, model_max_length=LONGEST
    )


def token_of(tokenizer: PreTrainedTokenizerBase, piece: str) -> int:
    """The only token of a piece."""
    [token] = tokenizer.encode(piece)
    return int(token)


def _phrases() -> Iterator[str]:
    """What prompts and configurations consist of, beside grids and numbers: lines of one, keys of the other."""
    yield from (INPUT, OUTPUT, NEXT, "\n", "true", "false")
    yield _ALIKE
    yield from (name.removeprefix(_ALIKE) for name in Strategy)
    nothing = find_domain("few_shot").self_edit_prompt(Context(title=""), style="configuration")
    yield from (line for line in nothing.splitlines(keepends=True) if line.strip())
    anything = Configuration(groups=(*GROUPS,), strategy=Strategy.ALL, learning_rate=0.01, epochs=1)
    yield from filter(None, _VALUES.split(write_configuration(anything)))


def _as_bytes(piece: str) -> Iterator[str]:
    """Each byte as byte-level BPE writes it."""
    for text, _ in pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(piece):
        yield text


def _escape(piece: str) -> str:
    return re.escape(piece).replace("\\\n", "\\n")
