"""Does a student's answer say what a short gold answer says? A grader without a model.

It reads both as words (`read`), so that numbers, units, inflection and spelling stop mattering, and asks whether the
answer holds enough of what the gold adds to the question. The rules are set by hand; there is nothing to train. It
knows no synonyms: an answer that says the same in other words is refused. How far it agrees with GPT-4.1's verdicts is
measured by `tests.bench.matching`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

VERSION = "2"

ENOUGH = 0.6
"""The share of the gold's words that an answer must hold."""
ENOUGH_ALONE = 0.5
"""The share that is enough where the answer says nothing else."""
REACH = 3
"""How many words a negation reaches forward."""


def _listed(names: str) -> tuple[str, ...]:
    return tuple(names.split())


_FOLD = str.maketrans(
    {"æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O", "ß": "ss", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D"}
    | {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "−": "-"}
    | {"%": " percent ", "$": " dollar ", "£": " pound ", "€": " euro ", "&": " and "}
)
_POSSESSIVE = re.compile(r"'s\b|(?<=s)'(?=\s|$)")
_NOT = re.compile(r"(?:n't|(?<=\bcan)not)\b")
_DOTTED = re.compile(r"\b([A-Za-z])\.(?=[A-Za-z]\b)")
_TOKEN = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+\.\d+|\d+(?:st|nd|rd|th|s)?\b|\d+|[^\W\d_]+\d*")
_DIGITS = re.compile(r"([\d,]+(?:\.\d+)?)(st|nd|rd|th)?")
_DECADE = re.compile(r"(\d+)0s")

_SMALL = _listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = {name: 10 * i for i, name in enumerate(_listed("twenty thirty forty fifty sixty seventy eighty ninety"), 2)}
_CARDINALS = {name: i for i, name in enumerate(_SMALL)} | _TENS
_ORDINALS = (
    {f"{name}th": value for name, value in _CARDINALS.items() if value in {4, 6, 7, 10, 11, *range(13, 20)}}
    | {f"{name[:-1]}ieth": value for name, value in _TENS.items()}
    | {"first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12}
)
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MONTHS = frozenset(_listed("january february march april may june july august september october november december"))
_SHORT = {month[:3]: month for month in _MONTHS} | {
    "sept": "september",
    "km": "kilometer",
    "cm": "centimeter",
    "mm": "millimeter",
    "kg": "kilogram",
    "mi": "mile",
    "ft": "foot",
    "feet": "foot",
    "lb": "pound",
    "lbs": "pound",
    "us": "usa",
    "saint": "st",
    "mount": "mt",
    "doctor": "dr",
}
_NEGATIONS = frozenset(_listed("not no never none neither nor without"))
_OPTIONAL = frozenset(
    _listed("mr mrs ms dr prof professor sir lord lady king queen emperor president pope general st jr sr")
)
"""Titles: a name is the same without them."""
_VAGUE = frozenset(
    _listed("early late mid middle about approximately around nearly almost roughly least estimated over")
)
"""What qualifies a number or a time and is often left out."""
_STOP = _NEGATIONS | frozenset(
    _listed(
        "a an the of in on at to for by with from as into over under through between during after before out up about "
        "and or but if because while so than then is are was were be been being am do does did has have had it its "
        "they them their he she his her him this that these those there here which who whom whose what when where why "
        "how can could may might will would should must some any each both all such same own only also just very "
        "more most"
    )
)
_ENDINGS = (
    *(("ization", "iz"), ("isation", "iz"), ("ation", "at"), ("ities", "iti"), ("ement", ""), ("ment", "")),
    *(("ness", ""), ("ings", ""), ("ing", ""), ("ions", ""), ("ion", ""), ("ies", "i"), ("ied", "i"), ("edly", "")),
    *(("ily", "i"), ("ly", ""), ("ise", "iz"), ("our", "or"), ("tre", "ter"), ("ers", "er"), ("ed", ""), ("es", "")),
    *(("s", ""), ("e", "")),
)

_NEXT_PROMPT = re.compile(r"\n\s*(?:Q|Question|Topic|Passage|Context|Human|User)\s*\d*\s*:|You are an? AI\b", re.I)
"""Where a model goes on to ask itself something else."""
_LABEL = re.compile(r"^\s*(?:A|Answer)\s*:\s*", re.I)
_BRACKETS = re.compile(r"\(([^()]*)\)|\[([^\[\]]*)\]")
_QUOTED = re.compile(r'"([^"]+)"')
_ANY_OF = re.compile(r"\b(?:examples?|some|any|one (?:of|type|kind|way|reason|thing|name)|an? \w+ of)\b", re.I)
"""A question that any item of a list answers."""
_WHO = re.compile(r"\bwho(?:m|se)?\b", re.I)
_OR = re.compile(r",?\s+or\s+|(?<=[^\W\d])\s*/\s*(?=[^\W\d])", re.I)
_AND = re.compile(r"\s*[,;]\s*(?:and|or)?\s+|\s+and(?:/or)?\s+|\s*&\s*", re.I)
_YES_NO_QUESTION = re.compile(r"\W*(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would|should)\b", re.I)
_YES_NO = re.compile(r"\W*(yes|no)\b", re.I)


@dataclass(frozen=True, slots=True)
class Word:
    text: str
    """Lower case, without accents; a number as written."""
    key: str
    """What is compared: the stem of a word, the value of a number, with `th` if it is an ordinal."""
    is_number: bool = False
    """Or a month: what must not differ."""
    is_name: bool = False
    """It has a capital."""


def match(*, answer: str, gold: str, question: str = "") -> float:
    """1 if the answer says what the gold says, else 0. A blank answer is never right.

    The question is optional: its words count neither for nor against, and it tells who is meant from what.
    """
    answer = first_answer(answer, question)
    if not answer:
        return 0.0
    if (agrees := _same_yes_or_no(answer, gold, question)) is not None:
        return float(agrees)
    return float(any(_says(answer, reading, question) for reading in _readings(gold)))


@lru_cache(maxsize=4096)  # a gold answer and its question come again with every adapter
def read(text: str) -> tuple[Word, ...]:
    """A text's words. Numbers in words become values, so that "two million" and "2,000,000" are one word each."""
    folded = unicodedata.normalize("NFKD", text.translate(_FOLD))
    plain = "".join(char for char in folded if not unicodedata.combining(char))
    tokens = _TOKEN.findall(_DOTTED.sub(r"\1", _NOT.sub(" not", _POSSESSIVE.sub("", plain))))
    words: list[Word] = []
    at = 0
    while at < len(tokens):
        word, at = _read_word(tokens, at)
        words.append(word)
    return tuple(words)


def _read_word(tokens: Sequence[str], at: int) -> tuple[Word, int]:
    """The word that starts at a token, and where the next one starts."""
    token = tokens[at]
    text = token.lower()
    is_scale = text in _SCALES and at > 0 and tokens[at - 1].lower() == "a"  # as in "a thousand"
    if text in _CARDINALS or text.removesuffix("s") in _ORDINALS or text[0].isdigit() or is_scale:
        return _read_number(tokens, at)
    text = _SHORT.get(text, text)
    if text in _MONTHS and token[0].isupper():  # "may" has no capital where it is a verb
        return Word(text, text, is_number=True), at + 1
    return Word(text, _stem(text), is_name=token[0].isupper()), at + 1


def _read_number(tokens: Sequence[str], start: int) -> tuple[Word, int]:
    text = tokens[start].lower()
    if _DECADE.fullmatch(text):
        return Word(text, text, is_number=True), start + 1
    total, current, ordinal = 0.0, 0.0, False
    at = start
    while at < len(tokens):
        token = tokens[at].lower()
        before = tokens[at - 1].lower() if at > start else ""
        digits = _DIGITS.fullmatch(token)
        if not before and digits:
            current, ordinal = float(digits[1].replace(",", "")), bool(digits[2])
        elif token in _SCALES:
            current = _SCALES[token] * (current if before else 1)
            if token != "hundred":
                total, current = total + current, 0.0
        elif token in _CARDINALS and _continues(before, _CARDINALS[token]):
            current += _CARDINALS[token]
        elif token.removesuffix("s") in _ORDINALS and _continues(before, _ORDINALS[token.removesuffix("s")]):
            current, ordinal = current + _ORDINALS[token.removesuffix("s")], True
        elif not (token == "and" and before in _SCALES and tokens[at + 1 : at + 2] and tokens[at + 1] in _CARDINALS):
            break
        at += 1
    near = {
        _SHORT.get(token.lower(), token.lower()) for token in (*tokens[max(0, start - 1) : start], *tokens[at : at + 2])
    }
    suffix = "th" if ordinal and not near & _MONTHS else ""  # "July 4th" is "July 4"
    return Word(text, f"{total + current:.12g}{suffix}", is_number=True), max(at, start + 1)


def _continues(before: str, value: int) -> bool:
    """Whether a number in words goes on after another: "twenty" with "one", "hundred" (and) with anything."""
    return not before or before in _SCALES or before == "and" or (before in _TENS and 0 < value < 10)


def _stem(text: str) -> str:
    """Crude on purpose: it only has to bring inflections of one word together."""
    for ending, instead in _ENDINGS:
        if text.endswith(ending) and len(text) - len(ending) >= 3 and not text.endswith("ss"):
            text = text.removesuffix(ending) + instead
            break
    if len(text) > 3 and text[-1] == text[-2] and text[-1] not in "ls":
        text = text[:-1]
    return text[:-1] + "i" if len(text) > 3 and text.endswith("y") else text


def first_answer(answer: str, question: str) -> str:
    """What was said before the model went on to something else, without a repetition of the question."""
    text, asked = answer.strip(), question.strip()
    if asked and text.lower().startswith(asked.lower()):
        text = text[len(asked) :]
    text = _LABEL.sub("", text).strip()
    following = _NEXT_PROMPT.search(text)
    return text[: following.start()].strip() if following else text


def _same_yes_or_no(answer: str, gold: str, question: str) -> bool | None:
    """Whether a yes or no agrees with the gold's; None where it is not a matter of yes and no."""
    said, meant = _YES_NO.match(answer), _YES_NO.match(gold)
    if meant and len(read(gold)) == 1:
        denies = said[1].lower() == "no" if said else _negative(read(answer))
        return denies == (meant[1].lower() == "no")
    if said and _YES_NO_QUESTION.match(question) and " or " not in question:
        return (said[1].lower() == "no") == _negative(read(gold))
    return None


def _readings(gold: str) -> Iterator[str]:
    """The gold, then what it offers instead of itself: without brackets, what is in them, and each side of an "or"."""
    yield gold
    aliases = [part for found in _BRACKETS.findall(gold) for part in found if part]
    bare = _BRACKETS.sub(" ", gold) if aliases else gold
    if aliases:
        yield bare
    yield from (alias for alias in (*aliases, *_QUOTED.findall(gold.translate(_FOLD))) if len(alias) > 2)
    sides = _OR.split(bare)
    if len(sides) > 1:
        yield from (side for side in sides if side.strip())


def _says(answer: str, gold: str, question: str) -> bool:
    said, meant, asked = read(answer), read(gold), read(question)
    if not meant or (not _negative(asked) and _denied(said, meant)):
        return False
    if _stands_in(meant, said):
        return True
    new = _without(_content(meant), asked)
    if not new:
        return False  # the question has all of it, so that to repeat the question would do
    told = _without(said, asked)
    items = [item for text in _AND.split(gold) if (item := _without(_content(read(text)), asked))]
    if len(items) > 1:
        return _has_items(items, told, any_of=bool(_ANY_OF.search(question)))
    if _WHO.search(question) and _is_person(meant) and _named(meant, told):
        return True
    return _has(new, told) or _abbreviates(meant, said)


def _has_items(items: Sequence[Sequence[Word]], told: Sequence[Word], *, any_of: bool) -> bool:
    """Whether the answer has the items of a list: each in part, all of their numbers, and enough of all of them."""
    left = list(told)
    found = [[_take(word, left) for word in item] for item in items]
    if any_of and any(map(all, found)):
        return True
    hits = [hit for item in found for hit in item]
    missed = [
        word
        for item, item_hits in zip(items, found, strict=True)
        for word, hit in zip(item, item_hits, strict=True)
        if not hit
    ]
    return all(map(any, found)) and not any(word.is_number for word in missed) and sum(hits) >= ENOUGH * len(hits)


def _has(new: Sequence[Word], told: Sequence[Word]) -> bool:
    """Whether words hold enough of what the gold adds to the question, and all of its numbers."""
    found = _found(new, told)
    if not all(hit for word, hit in zip(new, found, strict=True) if word.is_number):
        return False
    if sum(found) >= ENOUGH * len(found):
        return True
    alone = all(any(_same(word, other) for word in new) for other in _content(told))
    return alone and sum(found) >= ENOUGH_ALONE * len(found)


def _is_person(gold: Sequence[Word]) -> bool:
    return 2 <= len(gold) <= 5 and all(word.is_name and not word.is_number for word in gold)


def _named(person: Sequence[Word], told: Sequence[Word]) -> bool:
    """Whether the surname is there and no other first name before it."""
    names = _content(person)
    for before, word in zip((None, *told), told, strict=False):
        if word.key == names[-1].key:
            other = before and before.is_name and before.text not in _STOP | _OPTIONAL
            return not other or any(name.text[0] == before.text[0] for name in person if before)  # or an initial
    return False


def _content(words: Sequence[Word]) -> list[Word]:
    """The words that carry meaning; all of them where none does. Initials before a name carry little."""
    kept = [word for word in words if word.is_number or word.text not in _STOP | _OPTIONAL | _VAGUE] or list(words)
    return [word for word in kept[:-1] if len(word.text) > 1 or word.is_number] + kept[-1:]


def _without(words: Sequence[Word], others: Sequence[Word]) -> list[Word]:
    keys = {other.key for other in others}
    return [word for word in words if word.key not in keys]


def _stands_in(gold: Sequence[Word], said: Sequence[Word]) -> bool:
    """Whether the gold stands in the answer in one piece, but for articles."""

    def line(words: Sequence[Word]) -> str:
        return " ".join(["", *(word.key for word in words if word.text not in {"a", "an", "the"}), ""])

    return line(gold) in line(said)


def _found(gold: Sequence[Word], said: Sequence[Word]) -> list[bool]:
    """For each word of the gold, whether the answer has it; a word of the answer serves once."""
    left = list(said)
    return [_take(word, left) for word in gold]


def _take(word: Word, left: list[Word]) -> bool:
    same = next((other for other in left if word.key == other.key), None)
    same = same or next((other for other in left if _alike(word, other)), None)
    if same:
        left.remove(same)
    return same is not None


def _same(one: Word, other: Word) -> bool:
    return one.key == other.key or _alike(one, other)


def _alike(gold: Word, said: Word) -> bool:
    if gold.is_number or said.is_number:
        return gold.is_number and said.is_number and _within(gold, said)
    return _one_root(gold.text, said.text) or _misspelt(gold.text, said.text)


def _within(gold: Word, said: Word) -> bool:
    """Whether a year lies in a decade."""
    decade = _DECADE.fullmatch(gold.key)
    return decade is not None and said.key[:-1] == decade[1] and said.key.isdigit()


def _one_root(one: str, other: str) -> bool:
    """Whether two words begin alike for most of their length, as "journalist" and "journalism"."""
    shorter, longer = sorted((one, other), key=len)
    same = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(shorter))
    return (same >= 5 and same >= 0.6 * len(longer)) or (
        same >= 4 and same >= len(shorter) - 1 and len(longer) - same <= 4
    )


def _misspelt(one: str, other: str) -> bool:
    """Whether two long words differ by few letters: one in five, so that short words must be equal."""
    allowed = min(len(one), len(other)) // 5
    if abs(len(one) - len(other)) > allowed or not allowed:
        return False
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != b)))
    return row[-1] <= allowed


def _denied(said: Sequence[Word], gold: Sequence[Word]) -> bool:
    """Whether the answer negates what the gold states, or states what the gold negates."""
    if _negative(gold):
        return not _negative(said)
    keys = {word.key for word in _content(gold)}
    at = next((i for i, word in enumerate(said) if word.key in keys), 0)
    return _negative(said[max(0, at - REACH) : at])


def _negative(words: Sequence[Word]) -> bool:
    return any(word.text in _NEGATIONS for word in words)


def _abbreviates(gold: Sequence[Word], said: Sequence[Word]) -> bool:
    """Whether one of them has the initials of the other."""

    def initials(words: Sequence[Word]) -> str:
        return "".join(word.text[0] for word in words if word.is_name)

    def short(words: Sequence[Word]) -> set[str]:
        return {word.text for word in words if word.is_name and 2 < len(word.text) < 7}

    return bool({initials(gold)} & short(said)) or any(word in initials(said) for word in short(gold) if len(gold) == 1)
