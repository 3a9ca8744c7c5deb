"""Loading a model and its tokenizer with transformers, for inference and for training alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rookery_engines.devices import find_device
from rookery_shared.errors import ModelNotLoadable


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model comes from, and how it is used."""

    source: str
    """What the model is called: a hub name, a folder or an S3 prefix."""
    revision: str = ""
    dtype: str = "float32"
    chat: bool = False
    """Ask through the tokenizer's chat template."""
    folder: str = ""
    """Where its files are, if not where `from_pretrained` finds `source`."""
    device: str = ""
    """`cpu` or `cuda`; empty takes the GPU if there is one."""

    @property
    def path(self) -> str:
        return self.folder or self.source

    @property
    def rounding(self) -> float:
        """Nats by which a text's mean log-likelihood may differ between batches, with much to spare."""
        return 0.01 if self.dtype == "float32" else 0.5


def load_model(source: ModelSource) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The frozen model, on its device, and its tokenizer. Code from the model's repository is never run.

    Raises NoDevice, ModelNotLoadable.
    """
    revision, device = source.revision or None, find_device(source.device)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.path, revision=revision, dtype=getattr(torch, source.dtype), trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(source.path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelNotLoadable(f"cannot load {source.source}: {error}", source=source.source) from error
    model.name_or_path = source.source  # what adapters name as their base
    if device.type != "cpu":
        model.to(device)  # type: ignore[arg-type]  # transformers wraps the method
    return model.requires_grad_(False).train(mode=False), tokenizer


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token, or the end-of-text token of a tokenizer that has none."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """All tokens that close a text: the tokenizer's and those of the model's generation config."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    tokens = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in (*tokens, tokenizer.eos_token_id) if token is not None)
