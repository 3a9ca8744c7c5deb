"""Messages of callers to plans, with defaults filled in and bounds checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict

from sqlalchemy.orm import Session

from rookery.v1 import adaptation_service_pb2, model_service_pb2, recipe_pb2, run_service_pb2
from rookery_coordinator.api.messages import ALLOCATIONS, GRADERS, KEEP, ROLES
from rookery_coordinator.policies import active_recipe
from rookery_coordinator.types import AdaptationPlan, Grpo, Limits, RestEm, Reward, RewardShape, Role, RunPlan
from rookery_coordinator.works import find_profile, limits_of
from rookery_engines.ranks import bound
from rookery_shared.domains import DEFAULT_DOMAIN, find_domain
from rookery_shared.errors import InvalidField
from rookery_shared.types import MAX_REDRAWS, REMOTE_ENGINE, LoraRecipe, Sampling
from rookery_shared.wire import recipe_from_proto, retention_texts_from_proto, sampling_from_proto

ENGINES = ("transformers", "vllm", REMOTE_ENGINE)
DTYPES = ("float32", "bfloat16")
_PROFILE_NAME = re.compile(r"profiles/[a-z0-9-]{1,40}")
_REWARDS: Mapping[int, Reward] = {number: reward for reward, number in GRADERS.items()}
_ALLOCATIONS = {number: allocation for allocation, number in ALLOCATIONS.items()}
_KEEP = {number: keep for keep, number in KEEP.items()}
_ROLES = {number: role for role, number in ROLES.items()}


def run_plan_from_proto(session: Session, run: run_service_pb2.Run) -> RunPlan:
    """Raises InvalidField, or UnknownProfile since the teacher's limits bound the sampling."""
    plan, default = run.plan, RunPlan()
    domain = run.domain or DEFAULT_DOMAIN
    optimiser = _optimiser(plan.optimiser)
    teacher_recipe = active_recipe(session, find_profile(session, run.teacher, role=Role.TEACHER), optimiser)
    return RunPlan(
        domain=domain,
        style=plan.style or find_domain(domain).styles[0],
        rounds=_within(plan.rounds, 0, 100, "plan.rounds") if plan.HasField("rounds") else default.rounds,
        self_edits=_within(plan.self_edits or default.self_edits, 1, 64, "plan.self_edits"),
        seeds=_within(plan.seeds or default.seeds, 1, 16, "plan.seeds"),
        test_self_edits=_within(plan.test_self_edits or default.test_self_edits, 1, 64, "plan.test_self_edits"),
        reward=_reward(plan.reward, domain, field="plan.reward"),
        keep_without_gain=plan.keep_without_gain,
        control=plan.control,
        optimiser=optimiser,
        sampling=_sampling(session, run.teacher, plan.sampling),
        student_recipe=_student_recipe(plan.student_recipe, domain, field="plan.student_recipe"),
        teacher_recipe=recipe_from_proto(plan.teacher_recipe, default=teacher_recipe, field="plan.teacher_recipe"),
        seed=_seed(plan.seed, "plan.seed"),
        seed_allocation=_ALLOCATIONS.get(plan.seed_allocation, default.seed_allocation),
        race_confidence=_confidence(plan) if plan.HasField("race_confidence") else default.race_confidence,
        reward_shape=_reward_shape(plan.reward_shape),
        retention_texts=_retention_texts(plan),
        baselines=tuple(plan.baselines),
        test_grader=_reward(plan.test_grader or plan.reward, domain, field="plan.test_grader"),
        test_every=_within(plan.test_every or default.test_every, 1, 100, "plan.test_every"),
        redraws=_redraws(plan.redraws, "plan.redraws") if plan.HasField("redraws") else _usual_redraws(optimiser),
    )


def adaptation_plan_from_proto(session: Session, asked: adaptation_service_pb2.Adaptation) -> AdaptationPlan:
    """Raises InvalidField, or UnknownProfile since the teacher's limits bound the sampling."""
    default = AdaptationPlan()
    domain = asked.domain or DEFAULT_DOMAIN
    return AdaptationPlan(
        domain=domain,
        style=asked.style or find_domain(domain).styles[0],
        self_edits=_within(asked.self_edits or default.self_edits, 1, 64, "self_edits"),
        seeds=_within(asked.seeds or default.seeds, 1, 16, "seeds"),
        reward=_reward(asked.reward, domain, field="reward"),
        sampling=_sampling(session, asked.teacher, asked.sampling),
        student_recipe=_student_recipe(asked.recipe, domain, field="recipe"),
        seed=_seed(asked.seed, "seed"),
        redraws=_redraws(asked.redraws, "redraws") if asked.HasField("redraws") else default.redraws,
    )


def profile_role(profile: model_service_pb2.Profile) -> Role:
    """Raises InvalidField if there is none."""
    if profile.role not in _ROLES:
        raise InvalidField("profile.role must be teacher or student", field="profile.role")
    return _ROLES[profile.role]


def check_profile(profile: model_service_pb2.Profile) -> None:
    """Raises InvalidField for a name, source, engine or dtype that cannot be, RankNotServed for a rank."""
    if not _PROFILE_NAME.fullmatch(profile.name):
        form = "profiles/ and 1-40 of a-z, 0-9 and '-'"
        raise InvalidField(f"profile.name must be {form}, not {profile.name!r}", field="profile.name")
    if not profile.model.source:
        raise InvalidField("profile.model.source is empty", field="profile.model.source")
    for field, value, known in (("engine", profile.engine, ENGINES), ("dtype", profile.dtype, DTYPES)):
        if value and value not in known:
            raise InvalidField(f"profile.{field} must be one of {', '.join(known)}", field=f"profile.{field}")
    if profile.engine == REMOTE_ENGINE and profile.role == model_service_pb2.ROLE_STUDENT:
        raise InvalidField(f"a student is trained, and {REMOTE_ENGINE} trains nothing", field="profile.engine")
    if profile.engine == REMOTE_ENGINE and profile.chat:
        how = "profile.chat is for models that run here; ROOKERY_OPENAI_API says how an endpoint is asked"
        raise InvalidField(how, field="profile.chat")
    bound(profile.engine, profile.limits.max_lora_rank, field="profile.limits.max_lora_rank")


def limits_from_proto(message: model_service_pb2.Limits) -> Limits:
    default = Limits()
    return Limits(
        max_passage_characters=message.max_passage_characters or default.max_passage_characters,
        max_new_tokens=message.max_new_tokens or default.max_new_tokens,
        max_lora_rank=message.max_lora_rank or default.max_lora_rank,
        trials_per_job=message.trials_per_job or default.trials_per_job,
    )


def _sampling(session: Session, teacher: str, message: recipe_pb2.Sampling) -> Sampling:
    limits = limits_of(find_profile(session, teacher, role=Role.TEACHER))
    return sampling_from_proto(message, max_new_tokens=limits.max_new_tokens)


def _optimiser(message: run_service_pb2.PolicyOptimiser) -> RestEm | Grpo:
    if message.WhichOneof("method") != "grpo":
        number = message.rest_em.keep
        if number and number not in _KEEP:
            raise InvalidField(f"plan.optimiser.rest_em.keep: {number} is none", field="plan.optimiser")
        least_gain = message.rest_em.least_gain
        if not 0 <= least_gain < math.inf:
            raise InvalidField("plan.optimiser.rest_em.least_gain must be at least 0", field="plan.optimiser")
        return RestEm(keep=_KEEP.get(number), least_gain=least_gain)
    asked, default = message.grpo, Grpo()
    chosen = Grpo(
        kl_coefficient=asked.kl_coefficient if asked.HasField("kl_coefficient") else default.kl_coefficient,
        clip_range=asked.clip_range if asked.HasField("clip_range") else default.clip_range,
    )
    if not 0 <= chosen.kl_coefficient <= 10:
        raise InvalidField("plan.optimiser.grpo.kl_coefficient must be in [0, 10]", field="plan.optimiser")
    if not 0 < chosen.clip_range <= 1:
        raise InvalidField("plan.optimiser.grpo.clip_range must be in (0, 1]", field="plan.optimiser")
    return chosen


def _reward(grader: int, domain: str, *, field: str) -> Reward:
    if not grader:
        return Reward(find_domain(domain).rewards[0])
    if grader not in _REWARDS:
        raise InvalidField(f"{field}: there is no grader {grader}", field=field)
    return _REWARDS[grader]


def _student_recipe(message: recipe_pb2.LoraRecipe, domain: str, *, field: str) -> LoraRecipe:
    return recipe_from_proto(message, default=find_domain(domain).student_recipe, field=field)


def _usual_redraws(optimiser: RestEm | Grpo) -> int:
    """GRPO learns from what the policy writes as it comes: that a blank text earns nothing, too."""
    return 0 if isinstance(optimiser, Grpo) else RunPlan().redraws


def _redraws(value: int, field: str) -> int:
    return _within(value, 0, MAX_REDRAWS, field)


def _confidence(plan: run_service_pb2.RunPlan) -> float:
    if not 0.5 < plan.race_confidence < 1:
        raise InvalidField("plan.race_confidence must be in (0.5, 1)", field="plan.race_confidence")
    return plan.race_confidence


def _reward_shape(message: run_service_pb2.RunPlan.RewardShape) -> RewardShape:
    shape = RewardShape(
        scale=message.scale if message.HasField("scale") else RewardShape().scale,
        clip=message.clip,
        weight_change=message.weight_change,
        forgetting=message.forgetting,
        compute=message.compute,
    )
    for name, value in asdict(shape).items():
        if not 0 <= value < math.inf or (name == "scale" and not value):
            field = f"plan.reward_shape.{name}"
            raise InvalidField(f"{field} must be {'above' if name == 'scale' else 'at least'} 0", field=field)
    return shape


def _retention_texts(plan: run_service_pb2.RunPlan) -> tuple[str, ...]:
    field = "plan.retention_texts"
    if plan.reward_shape.forgetting and not plan.retention_texts:
        raise InvalidField(f"{field} is empty: there is nothing to forget", field=field)
    return retention_texts_from_proto(plan.retention_texts, field=field)


def _within(value: int, low: int, high: int, field: str) -> int:
    if not low <= value <= high:
        raise InvalidField(f"{field} must be in [{low}, {high}]", field=field)
    return value


def _seed(value: int, field: str) -> int:
    return _within(value, 0, 2**63 - 1, field)
