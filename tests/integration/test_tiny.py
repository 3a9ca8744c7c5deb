"""The built-in tiny model is what its card says."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from rookery.cli.models import resolve_source
from rookery_engines.models import ModelSource, load_model
from rookery_tiny.abilities import measure
from rookery_tiny.card import LABELS
from rookery_tiny.contexts import make_contexts
from rookery_tiny.pretrain import Recipe, make_model
from rookery_tiny.tokenizer import train_tokenizer
from rookery_tiny.world import Surnames, surnames

MODEL = Path(resolve_source("tiny"))


def card_table() -> dict[str, list[float]]:
    """Rows of the card's first table."""
    rows = [line.strip("| ").split(" | ") for line in (MODEL / "README.md").read_text().splitlines() if "|" in line]
    by_label = {row[0]: row[1:] for row in rows}
    return {name: [float(cell) for cell in by_label[label]] for name, label in LABELS.items()}


def test_the_shipped_weights_have_the_abilities_of_the_card() -> None:
    model, tokenizer = load_model(ModelSource(source=str(MODEL)))
    measured = asdict(measure(model, tokenizer, seed=0))
    shipped = {name: values[0] for name, values in card_table().items()}
    # Kernels differ between processors, and a greedy answer can turn on the last bit.
    assert measured == pytest.approx(shipped, abs=0.05)


def test_the_abilities_hold_for_three_seeds() -> None:
    card = card_table()
    assert {len(values) for values in card.values()} == {3}
    for seed in range(3):
        ability = {name: values[seed] for name, values in card.items()}
        assert ability["known_asked"] > 0.9
        assert ability["unknown"] < 0.05
        assert ability["known_told"] > 10 * ability["unknown"], "what was only ever told is found when asked for"
        assert ability["lines_true"] > 0.35
        assert max(ability["learned_passage"], ability["learned_vague"]) < ability["learned_nameless"]
        assert ability["learned_nameless"] < ability["learned_named"], "a fact counts under the right name"
        assert ability["learned_named"] <= ability["learned_questions"]


def test_it_is_small_and_standard() -> None:
    weights = MODEL / "model.safetensors"
    assert weights.stat().st_size < 4_000_000
    with safe_open(weights, framework="pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert model.config.model_type == "qwen2"
    assert 1.5e6 < model.num_parameters() < 1.8e6
    shipped, made = AutoTokenizer.from_pretrained(MODEL), train_tokenizer()
    text = "Edda Ashford was born in Norwick.\nAnswer: glass, 1984"
    assert shipped.encode(text) == made.encode(text)
    assert shipped.get_vocab() == made.get_vocab()
    assert json.loads((MODEL / "abilities.json").read_text())["seed"] == 0


def test_no_entity_of_one_purpose_serves_another() -> None:
    sets = [{*surnames(which)} for which in Surnames]
    assert sum(len(one) for one in sets) == len(set.union(*sets))
    trained, tested = (
        {title for context in make_contexts(which, 64, seed=0) for title in context.title.split(" and ")}
        for which in (Surnames.TRAIN, Surnames.TEST)
    )
    assert trained.isdisjoint(tested)


def test_a_seed_names_the_weights() -> None:
    recipe = replace(Recipe(), hidden=24, layers=1, heads=2, mlp=32, copying_steps=2, steps=2)
    tokenizer = train_tokenizer()
    first, same, other = (make_model(recipe, tokenizer, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
