"""An adapter that was trained in company is the adapter that it would have become alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Dataset

from rookery_shared.types import ALL_LINEAR, Example, LoraRecipe, Schedule
from rookery_training.base import FAMILIES, NotTrainable
from rookery_training.batch import AdapterTask, BatchTrainer, Outcome
from rookery_training.sequences import Tokens, micro_batches, tokenize
from tests.adapters import factors, relative_difference, with_adapter
from tests.models import random_model, small_tokenizer

WORDS = ["Edda", "was", "born", "in", "Norwick", "number", "of", "stone", "glass", "baker", "Oster"]
ALONE = 32


def draw_task(index: int, out: Path) -> AdapterTask:
    """Something else every time, from a grid of everything that a recipe has."""
    rng = random.Random(index)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 30))) for _ in range(rng.randint(1, 6))]
    recipe = LoraRecipe(
        rank=rng.choice([2, 4, 8]),
        alpha=rng.choice([8, 16]),
        targets=rng.choice([("q_proj", "v_proj"), (ALL_LINEAR,), ("down_proj",)]),
        epochs=rng.randint(1, 4),
        learning_rate=rng.choice([1e-3, 1e-2]),
        schedule=rng.choice(list(Schedule)),
        warmup_steps=rng.choice([0, 2]),
        batch_size=rng.choice([0, 1, 2, 3]),
        gradient_accumulation=rng.choice([1, 2]),
        max_gradient_norm=rng.choice([0.0, 0.1, 1.0]),
        weight_decay=rng.choice([0.0, 0.01]),
    )
    examples = [
        Example(prompt=t[:10] if rng.random() < 0.3 else "", completion=t, end=rng.random() < 0.5) for t in texts
    ]
    return AdapterTask(key=str(index), examples=examples, recipe=recipe, seed=index, out=out / str(index))


def train(trainer: BatchTrainer, tasks: Sequence[AdapterTask]) -> dict[str, Outcome]:
    outcomes = {outcome.key: outcome for outcome in trainer.train(tasks)}
    assert {*outcomes} == {task.key for task in tasks}
    return outcomes


def furthest(one: Path, other: Path) -> float:
    first, second = factors(one), factors(other)
    assert first.keys() == second.keys()
    return max((first[key] - second[key]).abs().max().item() for key in first)


def test_in_float64_company_changes_nothing(tmp_path: Path) -> None:
    model, tokenizer = random_model().double(), small_tokenizer()
    together = train(
        BatchTrainer(model, tokenizer, slots=12, tokens_per_pass=300),
        [draw_task(i, tmp_path / "together") for i in range(ALONE)],
    )
    for i in range(ALONE):
        alone = train(BatchTrainer(model, tokenizer), [draw_task(i, tmp_path / "alone")])[str(i)]
        assert furthest(tmp_path / "together" / str(i), tmp_path / "alone" / str(i)) <= 1e-9
        assert together[str(i)].record.losses == pytest.approx(alone.record.losses, abs=1e-9)


def test_dropout_is_the_same_in_any_company(tmp_path: Path) -> None:
    model, tokenizer = random_model().double(), small_tokenizer()

    def dropping(i: int, out: Path) -> AdapterTask:
        task = draw_task(i, out)
        return replace(task, recipe=replace(task.recipe, dropout=0.1 * (i % 3)))

    train(BatchTrainer(model, tokenizer, slots=5), [dropping(i, tmp_path / "together") for i in range(9)])
    for i in range(9):
        train(BatchTrainer(model, tokenizer), [dropping(i, tmp_path / "alone")])
        assert furthest(tmp_path / "together" / str(i), tmp_path / "alone" / str(i)) <= 1e-9
    train(BatchTrainer(model, tokenizer), [draw_task(1, tmp_path / "without")])
    assert furthest(tmp_path / "without" / "1", tmp_path / "alone" / "1") > 1e-4, "it does drop"


def test_in_float32_the_product_is_the_same(tmp_path: Path) -> None:
    model, tokenizer = random_model(), small_tokenizer()
    tasks = [draw_task(i, tmp_path / "together") for i in range(ALONE)]
    together = train(BatchTrainer(model, tokenizer), tasks)
    for i in range(ALONE):
        alone = train(BatchTrainer(model, tokenizer), [draw_task(i, tmp_path / "alone")])[str(i)]
        assert relative_difference(tmp_path / "together" / str(i), tmp_path / "alone" / str(i)) <= 1e-3
        assert together[str(i)].record.losses == pytest.approx(alone.record.losses, abs=1e-3)


# --- against transformers and PEFT ---------------------------------------------------------------------------------


class Rows(Dataset[dict[str, Any]]):
    """All sequences in the order of training, so that a trainer that does not shuffle sees what ours sees."""

    def __init__(self, sequences: Sequence[Tokens]) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: int) -> dict[str, Any]:
        s = self._sequences[index]
        return {"input_ids": s.tokens, "labels": [-100] * s.predict_from + s.tokens[s.predict_from :]}


def padded(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": -100}
    batch = {
        key: torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows]) for key, value in fill.items()
    }
    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    return {**batch, "attention_mask": torch.tensor(mask)}


def loss_in_full(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    """transformers' own loss, but for its cast to float32, which alone costs eight digits."""
    logits_V = outputs.logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits_V, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


class InOrder(transformers.Trainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # Rows has a length


def train_with_transformers(task: AdapterTask, folder: Path) -> None:
    """PEFT's adapter and transformers' Trainer; leaves the first weights in `first` and the last in `last`."""
    recipe = task.recipe
    adapted = with_adapter(random_model().double(), recipe, seed=task.seed)
    adapted.save_pretrained(str(folder / "first"))
    sequences, _ = tokenize(task.examples, small_tokenizer(), recipe)
    ordered = [s for batch in micro_batches(sequences, recipe, seed=task.seed) for s in batch.sequences]
    name = "constant_with_warmup" if recipe.schedule is Schedule.CONSTANT else recipe.schedule.value
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"),
        use_cpu=True,
        num_train_epochs=1,  # the rows of all epochs, one after the other
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=name,
        warmup_steps=recipe.warmup_steps,
        max_grad_norm=recipe.max_gradient_norm,
        weight_decay=recipe.weight_decay,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = InOrder(
        model=adapted,
        args=arguments,
        train_dataset=Rows(ordered),
        data_collator=padded,
        compute_loss_func=loss_in_full,
    )
    trainer.train()
    adapted.save_pretrained(str(folder / "last"))


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize(("rank", "batch_size", "epochs"), [(2, 1, 2), (8, 2, 1), (4, 2, 3)])
def test_it_is_what_transformers_and_peft_make(
    schedule: Schedule, rank: int, batch_size: int, epochs: int, tmp_path: Path
) -> None:
    recipe = LoraRecipe(
        rank=rank,
        alpha=16,
        targets=("q_proj", "v_proj", "up_proj"),
        epochs=epochs,
        learning_rate=1e-2,
        schedule=schedule,
        warmup_steps=2,
        batch_size=batch_size,
        weight_decay=0.01,
    )
    texts = [" ".join(WORDS[: 3 + 2 * i]) for i in range(4)]
    examples = [Example(prompt="Where?\n" * (i % 2), completion=text, end=True) for i, text in enumerate(texts)]
    task = AdapterTask(key="it", examples=examples, recipe=recipe, seed=5, out=tmp_path / "ours")
    train_with_transformers(task, tmp_path)
    company = [draw_task(i, tmp_path / "company") for i in range(4)]
    ours = replace(task, start=tmp_path / "first")
    train(BatchTrainer(random_model().double(), small_tokenizer()), [*company, ours])
    assert furthest(tmp_path / "ours", tmp_path / "last") <= 1e-9
    assert furthest(tmp_path / "first", tmp_path / "last") > 1e-4, "there was something to learn"


# --- families, failures, files -------------------------------------------------------------------------------------


def small_config(family: str) -> transformers.PretrainedConfig:
    shape: dict[str, Any] = {
        "vocab_size": len(small_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    if family in {"mistral", "gemma2", "gemma3_text"}:
        shape["sliding_window"] = 6
    if family == "gemma3_text":
        shape["layer_types"] = ["sliding_attention", "full_attention"]
    config = transformers.AutoConfig.for_model(family, **shape)
    assert isinstance(config, transformers.PretrainedConfig)
    return config


def random_of(family: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    make = transformers.AutoModelForCausalLM.from_config
    model = make(small_config(family), attn_implementation="eager")  # type: ignore[no-untyped-call]
    assert isinstance(model, transformers.PreTrainedModel)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_the_model_itself(family: str, tmp_path: Path) -> None:
    """The first step's loss, of untouched weights, is transformers' own; later, PEFT loads what came out."""
    model = random_of(family).double()
    model.train(mode=False)
    text = " ".join(WORDS)
    recipe = LoraRecipe(rank=2, alpha=4, targets=(ALL_LINEAR,), epochs=5, learning_rate=1e-2, batch_size=0)
    examples = [Example(completion=text), Example(completion=text[:20])]
    task = AdapterTask(key="it", examples=examples, recipe=recipe, seed=0, out=tmp_path / "it")
    [outcome] = BatchTrainer(model, small_tokenizer()).train([task])
    sequences, _ = tokenize(examples, small_tokenizer(), recipe)

    def loss(of: torch.nn.Module) -> float:
        total = sum(
            of(input_ids=torch.tensor([s.tokens]), labels=torch.tensor([s.tokens])).loss.item() * s.predicted
            for s in sequences
        )
        return float(total / sum(s.predicted for s in sequences))

    assert outcome.record.losses[0] == pytest.approx(loss(model), rel=1e-6)
    after = loss(PeftModel.from_pretrained(model, str(tmp_path / "it")))
    assert after < outcome.record.losses[-1] < outcome.record.losses[0]


def test_one_that_breaks_harms_nobody(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    tasks = [draw_task(i, tmp_path / "with") for i in range(6)]
    broken = replace(tasks[2], recipe=replace(tasks[2].recipe, learning_rate=float("inf"), warmup_steps=0, epochs=4))
    outcomes = train(BatchTrainer(random_model().double(), tokenizer), [*tasks[:2], broken, *tasks[3:]])
    assert "not a number at step 2" in outcomes["2"].failure
    assert not (tmp_path / "with" / "2").exists()
    for i in (0, 1, 3, 4, 5):
        assert outcomes[str(i)].failure == ""
        train(BatchTrainer(random_model().double(), tokenizer), [draw_task(i, tmp_path / "alone")])
        assert furthest(tmp_path / "with" / str(i), tmp_path / "alone" / str(i)) <= 1e-9


def test_what_cannot_be_trained_fails_with_its_reason(tmp_path: Path) -> None:
    good = draw_task(0, tmp_path)
    nothing = replace(good, key="nothing", examples=[Example(prompt="only a prompt", completion="")])
    nowhere = replace(good, key="nowhere", recipe=replace(good.recipe, targets=("q_proj", "z_proj")))
    outcomes = train(BatchTrainer(random_model(), small_tokenizer()), [nothing, good, nowhere])
    assert outcomes["nothing"].failure == "no example has a token to predict"
    assert outcomes["nowhere"].failure == "the model has no linear layer named z_proj"
    assert outcomes["0"].failure == ""


def test_bases_that_are_not_served_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    monkeypatch.setattr(type(model.config), "model_type", "mamba")
    with pytest.raises(NotTrainable, match="cannot train mamba models; can train qwen2"):
        BatchTrainer(model, small_tokenizer())
    monkeypatch.undo()
    quantised = random_model()
    quantised.is_quantized = True  # type: ignore[assignment]  # as transformers marks them
    with pytest.raises(NotTrainable, match="4-bit"):
        BatchTrainer(quantised, small_tokenizer())
