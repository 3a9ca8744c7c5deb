"""The frozen model that adapters change, as training sees it.

Shapes: T tokens, P predicted tokens, D dimensions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from rookery_training import attention
from rookery_training.packing import Packed

FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma", "gemma2", "gemma3_text")
"""Values of `model_type` whose forward pass is known to be what training takes it for."""


class NotTrainable(Exception):
    """A base model or a task that cannot be trained; the message says why."""


class FrozenBase:
    """A base model, its tokenizer, and what training needs to know of them.

    Raises NotTrainable for one that is not served.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        check_base(model)
        self.model = model.requires_grad_(False)
        self.model.train(mode=False)
        self.tokenizer = tokenizer
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers
        self.head_VD: Tensor = head.weight
        self.cap: float | None = getattr(model.config, "final_logit_softcapping", None)
        """Bound on the logits, for models that have one."""
        named = [(n, layer) for n, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
        self.linear = [(index, name, layer) for index, (name, layer) in enumerate(named) if layer is not head]
        """Layers that adapters may change: index among all, full name, layer."""
        self.device, self.dtype = self.head_VD.device, self.head_VD.dtype
        self.precision = torch.promote_types(self.dtype, torch.float32)
        """Of adapters, of their optimiser and of losses."""
        self.anchor = torch.zeros((), device=self.device, requires_grad=True)
        """Something that requires a gradient: what the first layers see does not."""

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())

    def hidden(self, packed: Packed) -> Tensor:
        """Final hidden states [P, D] of the tokens whose next one is predicted."""
        hidden_1TD: Tensor = self.model.base_model(
            input_ids=packed.input_ids_1T,
            position_ids=packed.position_ids_1T,
            packed_sequences=packed.sequences,
            use_cache=False,
        ).last_hidden_state
        return hidden_1TD[0].index_select(0, packed.predicting_P)

    def recompute_activations(self, *, on: bool) -> None:
        """Keep only the inputs of the model's blocks for the backward pass, and compute the rest again there."""
        if on:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.gradient_checkpointing_disable()  # type: ignore[no-untyped-call]  # transformers
            self.model.disable_input_require_grads()  # type: ignore[no-untyped-call]  # which enabling has asked for
        for module in self.model.modules():  # transformers looks at the block's mode; what is in it stays in evaluation
            if isinstance(module, GradientCheckpointingLayer):
                module.training = on

    @contextmanager
    def packed_attention(self) -> Iterator[None]:
        """The model attends within packed sequences, and as before afterwards."""
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(attention.NAME)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)


def check_base(model: PreTrainedModel) -> None:
    """Raises NotTrainable, and says what would be."""
    if model.config.model_type not in FAMILIES:
        raise NotTrainable(f"cannot train {model.config.model_type} models; can train {', '.join(FAMILIES)}")
    if getattr(model, "is_quantized", False):
        raise NotTrainable("quantised base models (4-bit, 8-bit) are not served yet; load the base in bfloat16")
    if len({parameter.device for parameter in model.parameters()}) > 1:
        raise NotTrainable("base models spread over several devices are not served yet; one must hold all of it")
