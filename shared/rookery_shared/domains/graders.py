"""Graders of short answers against a gold answer, without a model.

Normalisation is that of SQuAD's evaluation script: lower case, no punctuation, no articles, single spaces. `match`, in
`matching`, reads more into the words.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping

from rookery_shared.domains import matching
from rookery_shared.types import Question

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(gold: str, answer: str) -> float:
    """1 if the two are equal after normalisation. A blank answer is right only for a blank gold."""
    return float(normalise(gold) == normalise(answer))


def f1(gold: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the bags of tokens."""
    gold_tokens, answer_tokens = normalise(gold).split(), normalise(answer).split()
    common = (Counter(gold_tokens) & Counter(answer_tokens)).total()
    if not common:
        return float(gold_tokens == answer_tokens)
    precision, recall = common / len(answer_tokens), common / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


def contains(gold: str, answer: str) -> float:
    """1 if the gold tokens stand in the answer in one piece."""
    return float(f" {normalise(gold)} " in f" {normalise(answer)} ")


GRADERS: Mapping[str, Callable[[Question, str], float]] = {
    "exact": lambda question, answer: exact(question.answer, answer),
    "f1": lambda question, answer: f1(question.answer, answer),
    "contains": lambda question, answer: contains(question.answer, answer),
    "match": lambda question, answer: matching.match(answer=answer, gold=question.answer, question=question.question),
}
VERSION = "1"
LOGLIK = "loglik"
"""The grade that an engine gives: mean log-likelihood of the gold answer's tokens, in nats."""
LIKELIHOOD = "likelihood"
"""The same as the geometric mean of the tokens' probabilities."""
JUDGE = "judge"
"""The grade that a judge gives, where there is one: 1 for yes, 0 for no."""
_VERSIONS = {"match": matching.VERSION}
NAMES = tuple(f"{name}/{_VERSIONS.get(name, VERSION)}" for name in (*GRADERS, LOGLIK, LIKELIHOOD))
