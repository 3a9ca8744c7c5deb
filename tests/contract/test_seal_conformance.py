"""Against the data published with the SEAL paper: rewards, selection and sizes, to the bit.

The data are of the repository Continual-Intelligence/SEAL; ROOKERY_SEAL_DATA names the folder.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from rookery.datasets import load_dataset
from rookery_coordinator.rewards import REFERENCE_DECIMALS, Candidate, keep_of, sft_example, trial_score
from rookery_shared.domains.knowledge import Knowledge, training_sequences
from rookery_shared.types import Context, Example


@pytest.fixture(scope="module")
def ranking(seal_data: Path) -> list[dict[str, Any]]:
    content = json.loads((seal_data / "knowledge" / "rank_iter0.json").read_text())
    articles: list[dict[str, Any]] = content["articles"]
    return articles


def as_candidate(completion: dict[str, Any]) -> Candidate:
    """From every verdict of every repetition, not from the stored means."""
    by_repetition: dict[int, list[dict[str, Any]]] = {}
    for question in completion["questions"]:
        by_repetition.setdefault(question["rep"], []).append(question)
    after, before = (
        [
            trial_score([float(q[f"{which}_correct"]) for q in asked], decimals=REFERENCE_DECIMALS)
            for asked in by_repetition.values()
        ]
        for which in ("adapter", "baseline")
    )
    return Candidate(text=completion["text"], scores=after, baseline=statistics.mean(before))


def sft_line(example: Example) -> str:
    """As the reference writes it: JSON with its default separators and characters unescaped."""
    return json.dumps({"prompt": example.prompt, "completion": example.completion}, ensure_ascii=False)


def test_rewards_equal_the_published_ones_to_the_bit(ranking: list[dict[str, Any]]) -> None:
    completions = [completion for article in ranking for completion in article["completions"]]
    assert len(completions) == 250
    for completion in completions:
        assert as_candidate(completion).reward == completion["stats"]["adapter_mean"]


def test_selection_gives_the_published_sft_file_byte_for_byte(ranking: list[dict[str, Any]], seal_data: Path) -> None:
    rows = []
    for article in ranking:
        candidates = [as_candidate(completion) for completion in article["completions"]]
        kept = keep_of(candidates, least_gain=-math.inf)
        if kept is not None:
            rows.append(sft_line(sft_example(prompt=article["prompt"], text=candidates[kept].text)))
    published = (seal_data / "knowledge" / "sft_best1of5_iter0.jsonl").read_bytes()
    assert ("\n".join(rows) + "\n").encode() == published


def test_our_own_rule_leaves_out_what_does_not_beat_the_base(ranking: list[dict[str, Any]]) -> None:
    candidates = [[as_candidate(completion) for completion in article["completions"]] for article in ranking]
    kept = [keep_of(article) for article in candidates]
    left_out = [article for article, chosen in zip(candidates, kept, strict=True) if chosen is None]
    assert len(left_out) == 10, "three are worse than the base and seven are equal to it"
    assert all(max(c.reward for c in article) <= article[0].baseline for article in left_out)


def test_prompts_equal_the_published_ones(ranking: list[dict[str, Any]]) -> None:
    for article in ranking:
        context = Context(title=article["title"], passage=article["context"])
        assert Knowledge().self_edit_prompt(context, style="implications") == article["prompt"]


def test_sequences_have_the_published_sizes(seal_data: Path) -> None:
    """Per article and completion of base_val: mean 8.4, median 7, 95th percentile 13, at most 78."""
    articles = json.loads((seal_data / "knowledge" / "base_val.json").read_text())
    counts = sorted(
        len(training_sequences(title=article["title"], passage=article["context"], self_edit=completion))
        for article in articles
        for completion in article["completions"]
    )
    assert len(counts) == 1000
    assert round(statistics.mean(counts), 1) == 8.4
    assert statistics.median(counts) == 7
    assert counts[949] == 13, "95 % have at most 13"
    assert counts[-1] == 78


def test_the_continued_pretraining_run_had_2000_sequences(seal_data: Path) -> None:
    """Five completions an article without splitting lines: 5 x 200 texts and as many passages, none dropped."""
    articles = json.loads((seal_data / "knowledge" / "base_val.json").read_text())
    published = json.loads((seal_data / "knowledge" / "cpt_base.json").read_text())["train_sequences"]
    sequences = [
        sequence
        for article in articles
        for completion in article["completions"]
        for sequence in training_sequences(
            title=article["title"], passage=article["context"], self_edit=completion, split_newlines=False
        )
    ]
    assert len(sequences) == published == 2000


def test_the_whole_validation_set_loads(seal_data: Path) -> None:
    contexts = load_dataset(seal_data / "knowledge" / "squad_val.json")
    assert len(contexts) == 2067
    assert sum(len(context.questions) for context in contexts) == 10_570
