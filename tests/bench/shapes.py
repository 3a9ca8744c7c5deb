"""What benches train: models with random weights, and data of the shape of SEAL's own self-edits.

Torch, transformers and peft are all that this and the training bench need, as on a bare machine with a GPU.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rookery_shared.types import Example, LoraRecipe
from rookery_training.batch import AdapterTask

SEAL = LoraRecipe(rank=32, alpha=64, epochs=10, learning_rate=1e-3, batch_size=1)
"""Its inner loop."""
SEQUENCES, TOKENS = 8, 55
"""Of an adapter, and about how many in each: the medians of its published training sets (research: 7-11, 50-56)."""

TINY = Path(__file__).parents[2] / "shared" / "rookery_tiny" / "model"
_QWEN: Mapping[str, Mapping[str, int | bool]] = {
    "4m": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8},
    "10m": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6},
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
    },
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    },
}
SHAPES = ("tiny", *_QWEN)
"""The built-in model's, two between, and those of Qwen 2.5."""


def load_tokenizer() -> PreTrainedTokenizerBase:
    """The built-in model's, for all shapes."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def make_model(shape: str, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, device: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if shape == "tiny":
        config = AutoConfig.from_pretrained(TINY)
    else:
        sizes = {"vocab_size": len(tokenizer), "tie_word_embeddings": True, **_QWEN[shape]}
        heads = sizes["num_attention_heads"]
        config = Qwen2Config(**{"num_key_value_heads": heads, **sizes}, eos_token_id=tokenizer.eos_token_id)  # type: ignore[arg-type]
    with torch.device(device):
        model = Qwen2ForCausalLM._from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]  # transformers
    assert isinstance(model, PreTrainedModel)
    return model


def multiplied_weights(model: PreTrainedModel) -> int:
    """Weights that every token is multiplied by: all linear layers, the output head among them."""
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    return sum(layer.in_features * layer.out_features for layer in layers)


def make_tasks(
    count: int, tokenizer: PreTrainedTokenizerBase, out: Path, *, tokens: int = TOKENS, epochs: int = SEAL.epochs
) -> list[AdapterTask]:
    rng, words = random.Random(0), [word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha()]
    recipe = LoraRecipe(
        rank=SEAL.rank, alpha=SEAL.alpha, epochs=epochs, learning_rate=SEAL.learning_rate, batch_size=SEAL.batch_size
    )
    return [
        AdapterTask(
            key=str(i),
            examples=[Example(completion=_text(tokenizer, rng, sorted(words), tokens)) for _ in range(SEQUENCES)],
            recipe=recipe,
            seed=i,
            out=out / str(i),
        )
        for i in range(count)
    ]


def _text(tokenizer: PreTrainedTokenizerBase, rng: random.Random, words: Sequence[str], tokens: int) -> str:
    length, text = max(10, round(rng.gauss(tokens, tokens / 4))), ""
    while (missing := length - len(tokenizer.encode(text))) > 0:
        text += " " + " ".join(rng.choices(words, k=max(1, missing // 2)))
    return text
