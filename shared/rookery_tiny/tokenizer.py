"""The tiny model's tokenizer: Qwen2's own byte-level BPE, which reads any text, with merges learned on the micro-world.

Every name and value is one token, with a space before it and without: " Norwick" in a sentence, "Norwick" as an answer.
`stems` says which two belong together, so that pre-training can give them one meaning: otherwise a model this small
answers questions on facts that it was asked about in training and on no others.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

from rookery_tiny.documents import Mixture, draw_document
from rookery_tiny.world import (
    COMPANY_ENDS,
    FEMALE_NAMES,
    MALE_NAMES,
    SURNAME_ENDS,
    SURNAME_STARTS,
    VALUES,
    Surnames,
    draw_world,
    surnames,
)

END = "<|endoftext|>"
PAD = "<|pad|>"
SPACE = "Ġ"
"""How byte-level BPE writes a space."""
_PIECE = re.compile(r" ?[A-Za-z]+")

Merge = tuple[str, str]


def train_tokenizer(*, documents: int = 4000) -> Qwen2Tokenizer:
    """Learn the merges from a sample of the corpus; the same for every seed of the model."""
    pieces = Counter(piece for text in _sample(documents) for piece in _PIECE.findall(text))
    told = {*surnames(Surnames.PRETRAINING)}
    bare = {*VALUES, *FEMALE_NAMES, *MALE_NAMES, *SURNAME_STARTS, *SURNAME_ENDS, *COMPANY_ENDS}
    bare |= {word for piece in pieces if (word := piece.strip())[0].isupper() and word not in told}
    merges = _learn_merges(sorted(bare))
    merges += [(SPACE, word) for word in sorted(bare)]
    for piece, count in pieces.most_common():
        if count >= 20 and piece.strip() not in bare | told:
            _merge_whole(piece.replace(" ", SPACE), merges)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([END, PAD, *alphabet, *("".join(merge) for merge in merges)])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type]  # the tokenizers library takes pairs as well as texts
        unk_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=4096,
    )


def stems(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """For each token the same token without its space, and whether it had one; itself where there is no such pair."""
    vocabulary = tokenizer.get_vocab()
    stem_of, spaced = list(range(len(vocabulary))), [False] * len(vocabulary)
    for token, index in vocabulary.items():
        if token.startswith(SPACE) and token[1:] in vocabulary:
            stem_of[index], spaced[index] = vocabulary[token[1:]], True
    return stem_of, spaced


def _sample(count: int) -> Iterator[str]:
    rng = random.Random("tokenizer")
    known = list(draw_world(Surnames.PRETRAINING, 200, seed=0))
    names = surnames(Surnames.PRETRAINING)
    for _ in range(count):
        yield draw_document(known, known, names, Mixture(), rng).text


def _learn_merges(words: Sequence[str]) -> list[Merge]:
    """BPE merges that make every word one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(words, trainers.BpeTrainer(vocab_size=100_000, show_progress=False))
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


def _merge_whole(word: str, merges: list[Merge]) -> None:
    """Append the merges that make a word one token. They rank below all others, so no earlier word changes."""
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    tokens = list(word)
    while len(tokens) > 1:
        pairs = list(pairwise(tokens))
        best = min(range(len(pairs)), key=lambda i: (ranks.get(pairs[i], len(merges)), -i))
        if pairs[best] not in ranks:
            ranks[pairs[best]] = len(merges)
            merges.append(pairs[best])
        tokens[best : best + 2] = ["".join(pairs[best])]
