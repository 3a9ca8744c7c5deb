"""The training of one adapter: what a loss is, what a step is, what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from rookery_shared.types import ALL_LINEAR, Example, LoraRecipe, Schedule, TrainingRecord
from rookery_training.batch import AdapterTask, BatchTrainer
from rookery_training.packing import Piece, pack
from rookery_training.schedules import schedule_scale
from rookery_training.sequences import MicroBatch, micro_batches, tokenize
from tests.models import random_model, small_tokenizer

TEXTS = [Example(completion=f"Edda was born in Norwick number {i} of {i * i}.") for i in range(5)]
RECIPE = LoraRecipe(rank=4, alpha=16, targets=(ALL_LINEAR,), epochs=3, learning_rate=5e-2, batch_size=2)


class Trainer:
    """Trains one adapter after the other over one base."""

    def __init__(self) -> None:
        self._trainer = BatchTrainer(random_model(), small_tokenizer())

    def train(
        self,
        examples: Sequence[Example],
        recipe: LoraRecipe,
        *,
        seed: int,
        out: Path,
        start: Path | None = None,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> TrainingRecord:
        task = AdapterTask(key="it", examples=examples, recipe=recipe, seed=seed, out=out, start=start)
        [outcome] = self._trainer.train([task], on_tick=on_step)
        assert outcome.failure == ""
        return outcome.record


@pytest.fixture
def trainer() -> Trainer:
    return Trainer()


def weights(folder: Path) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = load_file(folder / "adapter_model.safetensors")
    return loaded


def piece_of(batch: MicroBatch) -> Piece:
    return Piece(
        slot=0, sequences=batch.sequences, before=0, counted=batch.counted, scale=1.0, dropout=0.0, seed=0, draw=0
    )


def test_labels_are_the_completion_and_the_end() -> None:
    tokenizer = small_tokenizer()
    examples = [Example(prompt="Where was Edda born?\n", completion="Norwick", end=True), Example(completion="Oster")]
    recipe = LoraRecipe(batch_size=0, epochs=1)
    sequences, truncated = tokenize(examples, tokenizer, recipe)
    [batch] = micro_batches(sequences, recipe, seed=0)
    packed = pack([piece_of(batch)], device=torch.device("cpu"), dtype=torch.float32)
    learned = packed.targets_P.tolist()
    first = [*tokenizer.encode("Norwick"), tokenizer.eos_token_id]
    second = tokenizer.encode("Oster")[1:]
    assert learned in (first + second, second + first), "the first token of a text follows nothing"
    following = packed.input_ids_1T[0, packed.predicting_P + 1].tolist()
    assert following == learned
    assert packed.weights_P.sum().item() == pytest.approx(1.0)
    assert truncated == 0


def test_long_sequences_are_cut_and_counted() -> None:
    sequences, truncated = tokenize(TEXTS, small_tokenizer(), LoraRecipe(max_tokens=4))
    assert truncated == len(TEXTS)
    assert all(len(s.tokens) == 4 for s in sequences)


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_are_those_of_transformers(schedule: Schedule, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if schedule is Schedule.CONSTANT else schedule.value
    theirs = transformers.get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=10)
    for step in range(10):
        assert schedule_scale(schedule, step=step, steps=10, warmup=warmup) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_a_seed_names_the_adapter(trainer: Trainer, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trainer.train(TEXTS, RECIPE, seed=seed, out=tmp_path / name)
    files = {name: (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "abc"}
    assert files["a"] == files["b"], "training leaves nothing behind in the base"
    assert files["a"] != files["c"]
    configs = {name: (tmp_path / name / "adapter_config.json").read_bytes() for name in "abc"}
    assert configs["a"] == configs["b"]
    assert json.loads(configs["a"])["target_modules"] == sorted(json.loads(configs["a"])["target_modules"])


def test_the_loss_falls_and_the_record_tells(trainer: Trainer, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    record = trainer.train(TEXTS, RECIPE, seed=0, out=tmp_path, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(i, 9) for i in range(9)], "three batches of two, two and one, three times"
    assert len(record.losses) == 9
    assert record.losses[-1] < record.losses[0] - 0.1
    tokens = sum(len(small_tokenizer().encode(e.completion)) for e in TEXTS)
    assert record.tokens == 3 * tokens
    assert record.weight_change > 0
    assert record.seconds > 0


def test_weight_change_is_the_norm_of_the_product(trainer: Trainer, tmp_path: Path) -> None:
    record = trainer.train(TEXTS, RECIPE, seed=0, out=tmp_path)
    factors = weights(tmp_path)
    squares = sum(
        (4.0 * factors[key.replace("lora_A", "lora_B")] @ factors[key]).norm().item() ** 2
        for key in factors
        if "lora_A" in key
    )
    assert record.weight_change == pytest.approx(squares**0.5, rel=1e-5)


def test_accumulating_two_batches_is_one_larger_batch(trainer: Trainer, tmp_path: Path) -> None:
    recipe = LoraRecipe(rank=4, alpha=8, epochs=2, learning_rate=1e-3, batch_size=4, weight_decay=0.1)
    split = LoraRecipe(
        rank=4, alpha=8, epochs=2, learning_rate=1e-3, batch_size=2, gradient_accumulation=2, weight_decay=0.1
    )
    one = trainer.train(TEXTS[:4], recipe, seed=3, out=tmp_path / "one")
    other = trainer.train(TEXTS[:4], split, seed=3, out=tmp_path / "other")
    assert other.losses == pytest.approx(one.losses, abs=1e-5)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "other")
    assert all(torch.allclose(first[key], second[key], atol=1e-4) for key in first)


def test_training_goes_on_from_an_adapter(trainer: Trainer, tmp_path: Path) -> None:
    first = trainer.train(TEXTS, RECIPE, seed=0, out=tmp_path / "first")
    second = trainer.train(TEXTS, RECIPE, seed=0, out=tmp_path / "second", start=tmp_path / "first")
    assert second.losses[0] < first.losses[0] - 0.1


def test_plain_peft_loads_what_comes_out(trainer: Trainer, tmp_path: Path) -> None:
    trainer.train(TEXTS, RECIPE, seed=0, out=tmp_path)
    tokens = torch.tensor([small_tokenizer().encode(TEXTS[0].completion)])
    base = random_model()
    before = base(input_ids=tokens).logits
    after = PeftModel.from_pretrained(base, str(tmp_path))(input_ids=tokens).logits
    assert not torch.allclose(before, after, atol=1e-3)


def test_only_the_named_layers_change(trainer: Trainer, tmp_path: Path) -> None:
    trainer.train(TEXTS, LoraRecipe(rank=2, alpha=4, epochs=1), seed=0, out=tmp_path)
    assert {key.split(".")[-3] for key in weights(tmp_path)} == {"q_proj", "v_proj"}


def test_a_step_may_stop_the_training(trainer: Trainer, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        trainer.train(TEXTS, RECIPE, seed=0, out=tmp_path / "a", on_step=stop)
    trainer.train(TEXTS, RECIPE, seed=1, out=tmp_path / "b")
    Trainer().train(TEXTS, RECIPE, seed=1, out=tmp_path / "c")
    assert (tmp_path / "b" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "c" / "adapter_model.safetensors"
    ).read_bytes(), "the base came out clean"
