"""Protobuf messages to dataclasses and back, for the nouns that more than one service speaks of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from rookery.internal.v1 import job_service_pb2
from rookery.v1 import adapter_service_pb2, context_pb2, recipe_pb2
from rookery_shared.errors import InvalidField
from rookery_shared.types import (
    ALL_LINEAR,
    LINEAR_LAYERS,
    MAX_RETENTION_TEXTS,
    Context,
    Demonstration,
    Example,
    LoraRecipe,
    PolicyGradient,
    Question,
    Sampling,
    Schedule,
    TrainingRecord,
)

_SCHEDULES = {
    recipe_pb2.SCHEDULE_LINEAR: Schedule.LINEAR,
    recipe_pb2.SCHEDULE_COSINE: Schedule.COSINE,
    recipe_pb2.SCHEDULE_CONSTANT: Schedule.CONSTANT,
}
_SCHEDULES_BACK = {schedule: number for number, schedule in _SCHEDULES.items()}


def context_from_proto(message: context_pb2.Context) -> Context:
    return Context(
        title=message.title,
        passage=message.passage,
        questions=tuple(questions_from_proto(message.questions)),
        demonstrations=tuple(Demonstration(input=d.input, output=d.output) for d in message.demonstrations),
    )


def context_to_proto(context: Context) -> context_pb2.Context:
    return context_pb2.Context(
        title=context.title,
        passage=context.passage,
        questions=questions_to_proto(context.questions),
        demonstrations=[context_pb2.Demonstration(input=d.input, output=d.output) for d in context.demonstrations],
    )


def sampling_from_proto(message: recipe_pb2.Sampling, *, max_new_tokens: int) -> Sampling:
    """Unset fields take the defaults; `max_new_tokens` is both the default and the bound. Raises InvalidField."""
    sampling = Sampling(
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        top_p=message.top_p if message.HasField("top_p") else 0.95,
        max_new_tokens=message.max_new_tokens if message.HasField("max_new_tokens") else max_new_tokens,
    )
    _require(0 <= sampling.temperature <= 2, "sampling.temperature", "in [0, 2]")
    _require(0 < sampling.top_p <= 1, "sampling.top_p", "in (0, 1]")
    bound = f"in [1, {max_new_tokens}], the profile's limit"
    _require(1 <= sampling.max_new_tokens <= max_new_tokens, "sampling.max_new_tokens", bound)
    return sampling


def sampling_to_proto(sampling: Sampling) -> recipe_pb2.Sampling:
    return recipe_pb2.Sampling(
        temperature=sampling.temperature, top_p=sampling.top_p, max_new_tokens=sampling.max_new_tokens
    )


def recipe_from_proto(message: recipe_pb2.LoraRecipe, *, default: LoraRecipe, field: str) -> LoraRecipe:
    """Unset fields take those of `default`. Raises InvalidField, naming `field` and the part of it."""

    def chosen(name: str) -> bool:
        return message.HasField(name)  # type: ignore[arg-type]  # every name below is a field

    recipe = LoraRecipe(
        rank=message.rank if chosen("rank") else default.rank,
        alpha=message.alpha if chosen("alpha") else default.alpha,
        dropout=message.dropout if chosen("dropout") else default.dropout,
        targets=tuple(message.targets) or default.targets,
        epochs=message.epochs if chosen("epochs") else default.epochs,
        learning_rate=message.learning_rate if chosen("learning_rate") else default.learning_rate,
        schedule=_SCHEDULES.get(message.schedule, default.schedule),
        warmup_steps=message.warmup_steps if chosen("warmup_steps") else default.warmup_steps,
        batch_size=message.batch_size if chosen("batch_size") else default.batch_size,
        gradient_accumulation=(
            message.gradient_accumulation if chosen("gradient_accumulation") else default.gradient_accumulation
        ),
        max_gradient_norm=message.max_gradient_norm if chosen("max_gradient_norm") else default.max_gradient_norm,
        weight_decay=message.weight_decay if chosen("weight_decay") else default.weight_decay,
        completion_only_loss=(
            message.completion_only_loss if chosen("completion_only_loss") else default.completion_only_loss
        ),
        end_mask=message.end_mask if chosen("end_mask") else default.end_mask,
        reference_padding=message.reference_padding if chosen("reference_padding") else default.reference_padding,
        max_tokens=message.max_tokens if chosen("max_tokens") else default.max_tokens,
        max_steps=message.max_steps if chosen("max_steps") else default.max_steps,
    )
    _require(recipe.rank >= 1, f"{field}.rank", "at least 1")
    _require(recipe.alpha >= 1, f"{field}.alpha", "at least 1")
    _require(0 <= recipe.dropout < 1, f"{field}.dropout", "in [0, 1)")
    _require(1 <= recipe.epochs <= 1000, f"{field}.epochs", "in [1, 1000]")
    _require(0 < recipe.learning_rate <= 1, f"{field}.learning_rate", "in (0, 1]")
    _require(recipe.gradient_accumulation >= 1, f"{field}.gradient_accumulation", "at least 1")
    _require(0 <= recipe.max_gradient_norm < math.inf, f"{field}.max_gradient_norm", "at least 0, and finite")
    _require(0 <= recipe.weight_decay <= 1, f"{field}.weight_decay", "in [0, 1]")
    _require(recipe.reference_padding <= 65_536, f"{field}.reference_padding", "at most 65,536")
    _require(16 <= recipe.max_tokens <= 65_536, f"{field}.max_tokens", "in [16, 65,536]")
    _require(recipe.max_steps <= 1_000_000, f"{field}.max_steps", "at most 1,000,000")
    alone = ALL_LINEAR not in recipe.targets or recipe.targets == (ALL_LINEAR,)
    _require(alone, f"{field}.targets", f"layer names, or {ALL_LINEAR!r} alone")
    known = recipe.targets == (ALL_LINEAR,) or all(t.rpartition(".")[2] in LINEAR_LAYERS for t in recipe.targets)
    _require(known, f"{field}.targets", f"among {', '.join(LINEAR_LAYERS)}, or {ALL_LINEAR!r}")
    return recipe


def recipe_to_proto(recipe: LoraRecipe) -> recipe_pb2.LoraRecipe:
    return recipe_pb2.LoraRecipe(
        rank=recipe.rank,
        alpha=recipe.alpha,
        dropout=recipe.dropout,
        targets=recipe.targets,
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        schedule=_SCHEDULES_BACK[recipe.schedule],
        warmup_steps=recipe.warmup_steps,
        batch_size=recipe.batch_size,
        gradient_accumulation=recipe.gradient_accumulation,
        max_gradient_norm=recipe.max_gradient_norm,
        weight_decay=recipe.weight_decay,
        completion_only_loss=recipe.completion_only_loss,
        end_mask=recipe.end_mask,
        reference_padding=recipe.reference_padding,
        max_tokens=recipe.max_tokens,
        max_steps=recipe.max_steps,
    )


def training_from_proto(message: adapter_service_pb2.Training) -> TrainingRecord:
    return TrainingRecord(
        losses=tuple(message.losses),
        tokens=message.tokens,
        truncated=message.truncated,
        seconds=message.seconds,
        weight_change=message.weight_change,
        peak_memory_bytes=message.peak_memory_bytes,
        seed=message.seed,
    )


def training_to_proto(record: TrainingRecord) -> adapter_service_pb2.Training:
    return adapter_service_pb2.Training(**asdict(record))


def retention_texts_from_proto(messages: Sequence[str], *, field: str) -> tuple[str, ...]:
    """Raises InvalidField for too many, or for a blank one."""
    if len(messages) > MAX_RETENTION_TEXTS:
        raise InvalidField(f"{field} may have at most {MAX_RETENTION_TEXTS} texts", field=field)
    for position, text in enumerate(messages):
        if not text.strip():
            raise InvalidField(f"{field}[{position}] is blank", field=f"{field}[{position}]")
    return tuple(messages)


def questions_from_proto(messages: Iterable[context_pb2.Question]) -> list[Question]:
    return [Question(question=m.question, answer=m.answer) for m in messages]


def questions_to_proto(questions: Iterable[Question]) -> list[context_pb2.Question]:
    return [context_pb2.Question(question=q.question, answer=q.answer) for q in questions]


def examples_to_proto(examples: Iterable[Example]) -> list[job_service_pb2.Example]:
    return [job_service_pb2.Example(prompt=e.prompt, completion=e.completion, end=e.end) for e in examples]


def examples_from_proto(messages: Iterable[job_service_pb2.Example]) -> list[Example]:
    return [Example(prompt=m.prompt, completion=m.completion, end=m.end) for m in messages]


def gradient_to_proto(gradient: PolicyGradient) -> job_service_pb2.PolicyGradient:
    return job_service_pb2.PolicyGradient(**asdict(gradient))


def gradient_from_proto(message: job_service_pb2.PolicyGradient) -> PolicyGradient:
    return PolicyGradient(
        advantages=tuple(message.advantages),
        kl_coefficient=message.kl_coefficient,
        clip_range=message.clip_range,
    )


def _require(holds: bool, field: str, bound: str) -> None:
    if not holds:
        raise InvalidField(f"{field} must be {bound}", field=field)
