"""Very small models with random weights, for tests that need a model and not its abilities."""

from __future__ import annotations

from functools import lru_cache

import torch
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from rookery_tiny.tokenizer import train_tokenizer


@lru_cache(maxsize=1)
def small_tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(documents=50)


def random_model(*, seed: int = 0) -> Qwen2ForCausalLM:
    """Two layers, 32 dimensions, 4 heads of which 2 are shared; not of any use but for its shapes."""
    torch.manual_seed(seed)
    tokenizer = small_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]  # transformers
    model.train(mode=False)
    return model
