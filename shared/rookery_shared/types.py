"""The nouns that more than one service speaks of: contexts, examples, recipes, sampling. Torch-free and frozen.

Protobuf messages become these at a service's edge (`wire.py`) and nowhere else.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question with its gold answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """An input with its output. A grid is its text, as `rookery.grids` reads it."""

    input: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What must be learned, a passage or a task, and the questions that tell whether it was."""

    title: str
    passage: str = ""
    questions: tuple[Question, ...] = ()
    demonstrations: tuple[Demonstration, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One text to train on: its prompt, if it has one, and what follows. A recipe says which of it the loss counts."""

    completion: str
    prompt: str = ""
    end: bool = False
    """Close the text with the end-of-text token and learn to write it."""


class Schedule(StrEnum):
    """How the learning rate moves after the warm-up."""

    LINEAR = "linear"
    """Down to zero at the last step."""
    COSINE = "cosine"
    """Half a cosine, down to zero."""
    CONSTANT = "constant"


ALL_LINEAR = "all-linear"
"""Target for every linear layer of the model but its output head, as PEFT understands it."""


LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What these are called in the models that are trained. Every engine serves adapters of them, and of nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRecipe:
    """How one adapter is trained. The defaults are SEAL's for its inner loop, its targets made explicit."""

    rank: int = 32
    alpha: int = 64
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    epochs: int = 10
    learning_rate: float = 1e-3
    schedule: Schedule = Schedule.LINEAR
    warmup_steps: int = 0
    batch_size: int = 1
    """Sequences in a batch; 0 puts all of them into one."""
    gradient_accumulation: int = 1
    max_gradient_norm: float = 1.0
    """Clip above this norm; 0 does not clip."""
    weight_decay: float = 0.0
    max_tokens: int = 2048
    """Longer sequences are cut to this many tokens, and counted."""
    completion_only_loss: bool = True
    """Leave the prompt's tokens out of the loss."""
    end_mask: str = ""
    """Leave everything out of the loss up to the end of this text's first occurrence; empty leaves nothing out."""
    max_steps: int = 0
    """A self-edit that asks for more optimiser steps is refused. 0 takes the domain's limit, if it has one."""
    reference_padding: int = 0
    """Train as SEAL's code does on sequences padded to this many tokens (2,048 there), without computing the padding:
    the end-of-text token is a target after every sequence, and losses are means over the padded length. 0 does not."""

    def most_examples(self, steps: int) -> int:
        """With which training stays within so many optimiser steps, as SEAL's code counts them: epochs * examples over
        the batch size, rounded down."""
        a_step = self.batch_size * self.gradient_accumulation
        if not a_step:  # all examples are one batch
            return sys.maxsize if self.epochs <= steps else 0
        return ((steps + 1) * a_step - 1) // self.epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradient:
    """GRPO's objective for a training's examples, in the place of their likelihood."""

    advantages: tuple[float, ...]
    """Of each example."""
    kl_coefficient: float
    """Weight of the divergence from the base, in nats per token."""
    clip_range: float
    """A token's probability is moved for its advantage only within this share of what it was at the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """What happened while one adapter was trained."""

    losses: tuple[float, ...] = ()
    """Mean loss of each optimiser step, in nats per predicted token; with a policy gradient, what it minimises."""
    tokens: int = 0
    """Real tokens that went through the model, over all epochs."""
    truncated: int = 0
    """Sequences cut to the recipe's limit."""
    seconds: float = 0.0
    """From its first pass to its last, in whatever company."""
    weight_change: float = 0.0
    """Frobenius norm of all scale * B @ A together."""
    peak_memory_bytes: int = 0
    """The most that the device (a GPU) or the process (on CPU) has held until then, in whatever company."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a text is drawn. Temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 0.95
    max_new_tokens: int = 8192


REMOTE_ENGINE = "openai"
"""The engine of models at an endpoint: they write and judge; nothing can be trained over them."""

BASE_ADAPTER = "base"
"""Stands for no adapter where an adapter's name is expected: the base model itself."""

MAX_REDRAWS = 16
"""How often a text that is nothing new may be drawn again."""

MAX_RETENTION_TEXTS = 1_000
"""That one adapter is asked about."""
