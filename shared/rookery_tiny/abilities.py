"""What a tiny model can do: the figures of its card, measured on entities that are in no quickstart's test.

Shapes: B texts, T tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rookery_engines.adapted import AdaptedModel
from rookery_engines.decoding import Row, decode
from rookery_engines.models import ModelSource, load_model, pad_token, stop_tokens
from rookery_shared.domains import knowledge
from rookery_shared.types import ALL_LINEAR, Example, LoraRecipe, Sampling
from rookery_tiny.documents import STYLES
from rookery_tiny.pretrain import Recipe
from rookery_tiny.world import ATTRIBUTES, Pair, Question, Surnames, draw_world, passage, test_questions
from rookery_training.batch import AdapterTask, BatchTrainer

STUDENT = LoraRecipe(
    rank=16, alpha=32, targets=(ALL_LINEAR,), epochs=10, learning_rate=5e-3, batch_size=3, max_tokens=1024
)
WORLD_SEED = 1000
PASSAGES_READ = 24
SELF_EDITS_EACH = 4
PASSAGES_LEARNED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """Shares in [0, 1] of questions answered exactly right, unless said otherwise."""

    known_asked: float
    """Entities of pre-training whose questions were in it."""
    known_told: float
    """Entities of pre-training that were told of and never asked about: knowledge that was extracted, not memorised."""
    unknown: float
    """Entities that it never met."""
    lines_true: float
    """Share of a self-edit's lines with a fact in them whose fact is in the passage and under the right name."""
    facts_covered: float
    """Share of a passage's ten facts that a self-edit states with their names."""
    learned_passage: float
    """After training on a passage alone."""
    learned_vague: float
    """After training on a passage and lines that say nothing."""
    learned_nameless: float
    """After training on a passage and all of its facts, with pronouns for names."""
    learned_named: float
    """After training on a passage and all of its facts with their names."""
    learned_questions: float
    """After training on a passage and all of its facts as questions with answers."""
    learned_questions_joint: float
    """Of the last, the questions that ask for the same fact of both subjects: right only if both are bound."""
    swapped: float
    """Of the last but one, plain questions answered with the other subject's fact."""


def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Abilities:
    """All abilities of the model that was pre-trained with this seed."""
    recipe = Recipe()
    known = list(draw_world(Surnames.PRETRAINING, recipe.known_pairs, seed=seed))
    fresh = list(draw_world(Surnames.TRAIN, PASSAGES_READ, seed=WORLD_SEED))
    lines_true, facts_covered = _read(model, tokenizer, fresh)
    learned = {style: _learn(model, tokenizer, fresh[:PASSAGES_LEARNED], style) for style in ("", *_FACTUAL, "vague")}
    return Abilities(
        known_asked=_share(model, tokenizer, known[: recipe.quizzed_pairs]),
        known_told=_share(model, tokenizer, known[recipe.quizzed_pairs :]),
        unknown=_share(model, tokenizer, fresh),
        lines_true=lines_true,
        facts_covered=facts_covered,
        learned_passage=learned[""].right,
        learned_vague=learned["vague"].right,
        learned_nameless=learned["nameless"].right,
        learned_named=learned["named"].right,
        learned_questions=learned["questions"].right,
        learned_questions_joint=learned["questions"].joint,
        swapped=learned["questions"].swapped,
    )


_FACTUAL = ("nameless", "named", "questions")


# --- answering -----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, title: str, questions: Sequence[Question]
) -> list[str]:
    """Greedy answers without a passage."""
    prompts = [knowledge.answer_prompt(title=title, question=q.question) for q in questions]
    return write(model, tokenizer, prompts, Sampling(temperature=0.0, max_new_tokens=12))


def write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], sampling: Sampling
) -> list[str]:
    """One text a prompt; prompt i draws from seed i."""
    rows = [Row(index=i, prompt=tokenizer.encode(p), sampling=sampling, seed=i) for i, p in enumerate(prompts)]
    for _ in decode(AdaptedModel(model), rows, pad=pad_token(tokenizer), stop=stop_tokens(model, tokenizer)):
        pass
    return [str(tokenizer.decode(row.tokens)).strip() for row in rows]


def _share(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Iterable[Pair]) -> float:
    """Share of all test questions that are answered right."""
    right: list[bool] = []
    for pair in pairs:
        questions = test_questions(pair)
        given = answers(model, tokenizer, pair.title, questions)
        right += [text == q.answer for text, q in zip(given, questions, strict=True)]
    return statistics.mean(right)


# --- reading -------------------------------------------------------------------------------------------------------


def _read(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> tuple[float, float]:
    """How many of the lines that it writes about passages are true, and how many facts they cover."""
    rng = random.Random(WORLD_SEED)
    asked = [(pair, passage(pair, rng)) for pair in pairs]
    prompts = [
        knowledge.self_edit_prompt(title=pair.title, passage=text, style="implications")
        for pair, text in asked
        for _ in range(SELF_EDITS_EACH)
    ]
    texts = write(model, tokenizer, prompts, Sampling(max_new_tokens=256))
    true, total, covered = 0, 0, []
    for i, text in enumerate(texts):
        facts = true_lines(pairs[i // SELF_EDITS_EACH])
        lines = [line.split(". ", 1)[-1] for line in text.splitlines()]
        stated = [line for line in lines if not _says_nothing(line, pairs[i // SELF_EDITS_EACH])]
        true += sum(line in facts for line in stated)
        total += len(stated)
        covered.append(len({facts[line] for line in stated if facts.get(line)}) / 10)
    return true / max(1, total), statistics.mean(covered)


def true_lines(pair: Pair) -> dict[str, str]:
    """Every true line about a pair, to the fact that it binds to a name; "" for a line without a name."""
    found: dict[str, str] = {}
    for fact in pair.facts:
        key = f"{fact.subject.name}/{fact.attribute.key}"
        for template in fact.attribute.pronoun_statements:
            found.setdefault(fact.subject.say(template, value=fact.value), "")
        for template in fact.attribute.statements:
            found[fact.subject.say(template, value=fact.value)] = key
        for template in fact.attribute.questions[:-1]:
            found[f"{fact.subject.say(template)} {fact.value}."] = key
    return found


def _says_nothing(line: str, pair: Pair) -> bool:
    return line in {fact.subject.say(fact.attribute.vague) for fact in pair.facts}


# --- learning ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    right: float
    joint: float
    swapped: float


def _learn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], style: str) -> Learned:
    """Means over pairs after training on the passage and, in this style, on all facts of it."""
    rng = random.Random(WORLD_SEED)
    results = [_learn_one(model, tokenizer, pair, style, rng) for pair in pairs]
    return Learned(
        right=statistics.mean(r.right for r in results),
        joint=statistics.mean(r.joint for r in results),
        swapped=statistics.mean(r.swapped for r in results),
    )


def _learn_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pair: Pair, style: str, rng: random.Random
) -> Learned:
    lines = next((s.lines(pair, pair.facts, rng) for s in STYLES if s.name == style), [])
    self_edit = "\n".join(f"{i}. {line}" for i, line in enumerate(lines, start=1))
    sequences = knowledge.training_sequences(title=pair.title, passage=passage(pair, rng), self_edit=self_edit)
    questions = test_questions(pair)
    with tempfile.TemporaryDirectory() as folder:
        examples = [Example(completion=sequence) for sequence in sequences]
        task = AdapterTask(key=pair.title, examples=examples, recipe=STUDENT, seed=0, out=Path(folder))
        BatchTrainer(model, tokenizer).train_one(task)
        adapted = PeftModel.from_pretrained(model, folder)
        given = answers(model, tokenizer, pair.title, questions)  # PEFT's layers are inside the model itself
        adapted.unload()
    right = [text == q.answer for text, q in zip(given, questions, strict=True)]
    plain, joint = right[: len(pair.facts)], right[len(pair.facts) :]
    assert len(joint) == len(ATTRIBUTES[pair.first.kind])
    others = [pair.other(fact.subject).facts[fact.attribute.key] for fact in pair.facts]
    swapped = Counter(text == other for text, other in zip(given, others, strict=False))[True]
    return Learned(right=statistics.mean(right), joint=statistics.mean(joint), swapped=swapped / len(plain))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a tiny model, and write `abilities.json` beside its weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="the seed that it was pre-trained with")
    arguments = parser.parse_args()
    model, tokenizer = load_model(ModelSource(source=str(arguments.folder)))
    measured = {name: round(v, 4) for name, v in asdict(measure(model, tokenizer, seed=arguments.seed)).items()}
    text = json.dumps({"seed": arguments.seed, "parameters": model.num_parameters(), **measured}, indent=2)
    (arguments.folder / "abilities.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
