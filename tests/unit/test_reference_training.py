"""What the loss counts: SEAL's options, and its padded training without the padding."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rookery_shared.types import Example, LoraRecipe
from rookery_tiny.world import VALUES
from rookery_training.batch import AdapterTask, BatchTrainer
from rookery_training.sequences import PADS, micro_batches, tokenize
from tests.adapters import products, with_adapter
from tests.bench.shapes import TINY
from tests.models import small_tokenizer

TEXT = "Edda was born in Norwick. She is a baker."


def learned(example: Example, recipe: LoraRecipe) -> str:
    """The text that the loss counts."""
    [sequence], _ = tokenize([example], small_tokenizer(), recipe)
    return str(small_tokenizer().decode(sequence.tokens[sequence.predict_from :])).strip()


def test_the_loss_counts_the_completion_or_all_of_it() -> None:
    example = Example(prompt="Who is a baker?\n", completion="Edda")
    assert learned(example, LoraRecipe()) == "Edda"
    assert learned(example, LoraRecipe(completion_only_loss=False)).endswith("is a baker?\nEdda")


@pytest.mark.parametrize(
    ("example", "mask", "expected"),
    [
        (Example(completion=TEXT), "Norwick.", "She is a baker."),
        (Example(completion=TEXT + " " + TEXT), "Norwick.", "She is a baker. " + TEXT),
        (Example(completion=TEXT), "nowhere", "was born in Norwick. She is a baker."),
        (Example(prompt="Norwick.\n", completion=TEXT), "Norwick.", TEXT),
        (Example(prompt="Now:\n", completion=TEXT), "Norwick.", "She is a baker."),
    ],
)
def test_an_end_mask_hides_everything_through_its_first_occurrence(example: Example, mask: str, expected: str) -> None:
    assert learned(example, LoraRecipe(end_mask=mask)) == expected


def test_padding_counts_without_being_there() -> None:
    tokenizer = small_tokenizer()
    [plain], _ = tokenize([Example(completion=TEXT)], tokenizer, LoraRecipe())
    [padded], _ = tokenize([Example(completion=TEXT)], tokenizer, LoraRecipe(reference_padding=2048))
    length = len(plain.tokens)
    assert padded.tokens == [*plain.tokens, *[tokenizer.eos_token_id] * (PADS + 1)]
    assert padded.counted == 2048, "transformers divides by all labels"
    assert sum(padded.weights) == 2047, "the first label has no prediction"
    assert [pad.position for pad in padded.pads] == sorted({pad.position for pad in padded.pads})
    assert length <= padded.pads[0].position < padded.pads[-1].position <= 2046
    [short], _ = tokenize([Example(completion=TEXT)], tokenizer, LoraRecipe(reference_padding=2048, end_mask="baker."))
    assert len(short.weights) == short.predicted == PADS + 1, "nothing but the padding is left"
    [cut], _ = tokenize([Example(completion=TEXT)], tokenizer, LoraRecipe(reference_padding=length))
    assert cut.tokens == plain.tokens


def test_reference_training_ends_where_training_on_padding_ends(tmp_path: Path) -> None:
    """SEAL's recipe on the built-in model, padded to 256 as its code pads to 2,048: labels on all of the padding."""
    rng, padding = random.Random(0), 256
    texts = [" ".join(rng.choices(VALUES, k=rng.randint(15, 50))) for _ in range(4)]
    recipe = LoraRecipe(epochs=10, reference_padding=padding)
    truth, first_loss, last_loss = train_on_padding(texts, recipe, tmp_path)
    start = tmp_path / "first"
    ours, losses = train_ours(texts, recipe, start, tmp_path / "ours")
    unpadded, _ = train_ours(texts, LoraRecipe(epochs=10), start, tmp_path / "unpadded")
    assert losses[0] == pytest.approx(first_loss, rel=0.05)
    assert losses[-1] == pytest.approx(last_loss, rel=0.05)
    assert cosine(ours, truth) > 0.9
    assert cosine(unpadded, truth) < 0.5, "the padding does decide where it ends"


def cosine(one: Tensor, other: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one, other, 0).item()


def change(folder: Path) -> Tensor:
    """BA of all layers, end to end."""
    return torch.cat([product.flatten() for product in products(folder)])


def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32), AutoTokenizer.from_pretrained(TINY)


def train_ours(texts: list[str], recipe: LoraRecipe, start: Path, out: Path) -> tuple[Tensor, tuple[float, ...]]:
    examples = [Example(completion=text) for text in texts]
    task = AdapterTask(key="it", examples=examples, recipe=recipe, seed=0, out=out, start=start)
    record = BatchTrainer(*tiny()).train_one(task)
    return change(out), record.losses


def train_on_padding(texts: list[str], recipe: LoraRecipe, folder: Path) -> tuple[Tensor, float, float]:
    """PEFT's adapter, trained on every label of padded rows; leaves the first weights in `first`."""
    model, tokenizer = tiny()
    adapted = with_adapter(model.requires_grad_(False), recipe, seed=0)
    adapted.save_pretrained(str(folder / "first"))
    weights = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    sequences, _ = tokenize([Example(completion=text) for text in texts], tokenizer, LoraRecipe())
    steps, losses = len(texts) * recipe.epochs, []
    for batch in micro_batches(sequences, recipe, seed=0):
        [sequence] = batch.sequences
        pads = recipe.reference_padding - len(sequence.tokens)
        ids_1T = torch.tensor([sequence.tokens + [tokenizer.eos_token_id] * pads])
        mask_1T = torch.tensor([[1] * len(sequence.tokens) + [0] * pads])
        logits_1TV = adapted(input_ids=ids_1T, attention_mask=mask_1T).logits
        loss = torch.nn.functional.cross_entropy(logits_1TV[0, :-1], ids_1T[0, 1:], reduction="sum") / ids_1T.numel()
        torch.autograd.backward(loss)
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(weights, recipe.max_gradient_norm)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 - batch.step / steps)
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(str(folder / "last"))
    return change(folder / "last"), losses[0], losses[-1]
