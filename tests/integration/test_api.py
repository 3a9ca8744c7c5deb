"""The coordinator's public API, over the wire, from a real server process without any worker."""

from __future__ import annotations

import base64
import json
import math
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from sqlalchemy import select

from rookery import CallFailed, Client, Recipe
from rookery.internal.v1.job_service_pb2 import ClaimRequest, FailRequest
from rookery.internal.v1.job_service_pb2_grpc import JobServiceStub
from rookery.local.cluster import wait_until_serving
from rookery.local.ports import free_port
from rookery.transport import call, open_channel
from rookery.v1 import adaptation_service_pb2, model_service_pb2, run_service_pb2
from rookery.v1.adaptation_service_pb2 import STATE_CANCELLED, STATE_FAILED, STATE_PAUSED, STATE_RUNNING
from rookery.v1.adaptation_service_pb2_grpc import AdaptationServiceStub
from rookery.v1.context_pb2 import Context, Question
from rookery.v1.model_service_pb2 import ROLE_STUDENT, ROLE_TEACHER, Limits, ModelSource, Profile
from rookery.v1.model_service_pb2_grpc import ModelServiceStub
from rookery.v1.recipe_pb2 import GRADER_CELLS, GRADER_JUDGE
from rookery.v1.run_service_pb2 import PolicyOptimiser, RestEm, Run, RunPlan
from rookery.v1.run_service_pb2_grpc import RunServiceStub
from rookery_coordinator.database import Database
from rookery_coordinator.tables import Job

TEACHER, STUDENT = "profiles/teacher", "profiles/student"
REMOTE_TEACHER = "profiles/remote-teacher"


class Coordinator:
    """A server process."""

    def __init__(self, environment: dict[str, str], target: str) -> None:
        self.environment = environment
        self.target = target
        self.start()

    def start(self) -> None:
        argv = [sys.executable, "-m", "rookery_coordinator"]
        self.process = subprocess.Popen([*argv, "serve"], env=self.environment)
        wait_until_serving(self.target)

    def restart(self) -> None:
        self.process.kill()
        self.process.wait()
        self.start()


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    folder = tmp_path_factory.mktemp("coordinator")
    target = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "ROOKERY_DATABASE_URL": f"sqlite:///{folder}/rookery.db",
        "ROOKERY_STORE_URL": f"file://{folder}/objects",
        "ROOKERY_CACHE_FOLDER": str(folder / "cache"),
        "ROOKERY_BROKER_URL": f"redis://127.0.0.1:{free_port()}/0",  # nobody is there
        "ROOKERY_ADDRESS": target,
        "ROOKERY_JOB_ADDRESS": f"127.0.0.1:{free_port()}",
        "ROOKERY_LOG_LEVEL": "ERROR",
    }
    subprocess.run([sys.executable, "-m", "rookery_coordinator", "migrate"], env=environment, check=True)
    server = Coordinator(environment, target)
    with Client(target) as client:
        limits = Limits(max_passage_characters=100, max_new_tokens=50, max_lora_rank=16)
        for name, role in ((TEACHER, ROLE_TEACHER), (STUDENT, ROLE_STUDENT)):
            client.create_profile(Profile(name=name, role=role, model=ModelSource(source="m"), limits=limits))
        there = Profile(name=REMOTE_TEACHER, role=ROLE_TEACHER, model=ModelSource(source="gpt"), engine="openai")
        client.create_profile(there)
    yield server
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=20) == 0


@pytest.fixture
def client(coordinator: Coordinator) -> Iterator[Client]:
    with Client(coordinator.target) as opened:
        yield opened


def test_the_store_is_verified(coordinator: Coordinator, client: Client) -> None:
    assert [*client.verify_store()] == []
    objects = Path(coordinator.environment["ROOKERY_STORE_URL"].removeprefix("file://"))
    orphan = f"adapters/{'0' * 64}"
    (objects / orphan).mkdir(parents=True)
    (objects / orphan / "adapter_config.json").write_text("{}")
    argv = [sys.executable, "-m", "rookery.cli.app", "store", "verify", "--json", "--server", coordinator.target]

    def verify(*options: str) -> tuple[int, list[dict[str, Any]]]:
        done = subprocess.run([*argv, *options], capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout)

    assert verify() == (0, []), "it is too young"
    code, [found] = verify("--grace-hours", "0")
    assert (code, found["kind"], found["key"]) == (1, "KIND_ORPHAN", orphan)
    code, [found] = verify("--grace-hours", "0", "--remove-orphans")
    assert (code, found["removed"]) == (0, True)
    assert verify("--grace-hours", "0") == (0, [])
    with pytest.raises(CallFailed) as caught:
        [*client.verify_store(grace_seconds=-1)]
    assert caught.value.metadata == {"field": "grace"}


QUESTIONS = [Question(question="Q?", answer="A")]


def make_adaptation(client: Client, **changes: Any) -> adaptation_service_pb2.Adaptation:
    asked: dict[str, Any] = {
        "teacher": TEACHER,
        "student": STUDENT,
        "title": "T",
        "passage": "P",
        "questions": QUESTIONS,
        "recipe": Recipe(rank=8, alpha=16),
        **changes,
    }
    return client.create_adaptation(**asked)


def a_run(**changes: Any) -> Run:
    context = Context(title="T", passage="P", questions=QUESTIONS)
    asked: dict[str, Any] = {
        "teacher": TEACHER,
        "student": STUDENT,
        "train_contexts": [context, context],
        "plan": RunPlan(student_recipe=Recipe(rank=8, alpha=16), teacher_recipe=Recipe(rank=8, alpha=16)),
        **changes,
    }
    return Run(**asked)


def everything(client: Client) -> tuple[int, int]:
    return len(list(client.list_runs())), len(list(client.list_adaptations()))


BAD: dict[str, tuple[Callable[[Client], Any], grpc.StatusCode, str, dict[str, str]]] = {
    "an empty passage": (
        lambda client: make_adaptation(client, passage=" \n"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "EMPTY_PASSAGE",
        {"field": "context.passage"},
    ),
    "a passage over the limit": (
        lambda client: make_adaptation(client, passage="x" * 101),
        grpc.StatusCode.INVALID_ARGUMENT,
        "PASSAGE_TOO_LONG",
        {"field": "context.passage"},
    ),
    "no title": (
        lambda client: make_adaptation(client, title=""),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "context.title"},
    ),
    "an unknown student": (
        lambda client: make_adaptation(client, student="profiles/nobody"),
        grpc.StatusCode.NOT_FOUND,
        "UNKNOWN_PROFILE",
        {"name": "profiles/nobody"},
    ),
    "a teacher as a student": (
        lambda client: make_adaptation(client, student=TEACHER),
        grpc.StatusCode.NOT_FOUND,
        "UNKNOWN_PROFILE",
        {"name": TEACHER},
    ),
    "a rank that the engine cannot serve": (
        lambda client: make_adaptation(client, recipe=Recipe(rank=17)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "RANK_NOT_SERVED",
        {"field": "recipe.rank", "profile": STUDENT},
    ),
    "a student's rank over its limit": (
        lambda client: client.create_run(a_run(plan=RunPlan(student_recipe=Recipe(rank=17)))),
        grpc.StatusCode.INVALID_ARGUMENT,
        "RANK_NOT_SERVED",
        {"field": "plan.student_recipe.rank", "profile": STUDENT},
    ),
    "a bound on ranks that vLLM does not have": (
        lambda client: client.create_profile(
            Profile(
                name="profiles/x",
                role=ROLE_STUDENT,
                model=ModelSource(source="m"),
                engine="vllm",
                limits=Limits(max_lora_rank=513),
            )
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "RANK_NOT_SERVED",
        {"field": "profile.limits.max_lora_rank"},
    ),
    "an adapter of the output head": (
        lambda client: make_adaptation(client, recipe=Recipe(rank=8, targets=["q_proj", "lm_head"])),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "recipe.targets"},
    ),
    "a teacher's adapter of the embeddings": (
        lambda client: client.create_run(
            a_run(plan=RunPlan(teacher_recipe=Recipe(rank=8, targets=["model.embed_tokens"])))
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.teacher_recipe.targets"},
    ),
    "a limit of a teacher's steps": (
        lambda client: client.create_run(
            a_run(plan=RunPlan(student_recipe=Recipe(rank=8), teacher_recipe=Recipe(rank=8, max_steps=100)))
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.teacher_recipe.max_steps"},
    ),
    "a question without an answer": (
        lambda client: make_adaptation(client, questions=[Question(question="Q?")]),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "context.questions[0]"},
    ),
    "too many self-edits": (
        lambda client: make_adaptation(client, self_edits=65),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "self_edits"},
    ),
    "a recipe without epochs": (
        lambda client: make_adaptation(client, recipe=Recipe(rank=8, epochs=0)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "recipe.epochs"},
    ),
    "a run whose second context is empty": (
        lambda client: client.create_run(
            a_run(
                train_contexts=[
                    Context(title="T", passage="P", questions=QUESTIONS),
                    Context(title="T", passage="", questions=QUESTIONS),
                ]
            )
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "EMPTY_PASSAGE",
        {"field": "train_contexts[1].passage"},
    ),
    "nothing to measure": (
        lambda client: client.create_run(a_run(test_contexts=[Context(title="T", passage="P")])),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "test_contexts[0].questions"},
    ),
    "too many redraws": (
        lambda client: client.create_run(a_run(plan=RunPlan(redraws=17))),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.redraws"},
    ),
    "a race without a trial to move": (
        lambda client: client.create_run(
            a_run(
                plan=RunPlan(
                    seeds=2,
                    seed_allocation=RunPlan.SEED_ALLOCATION_RACE,
                    student_recipe=Recipe(rank=8),
                    teacher_recipe=Recipe(rank=8),
                )
            )
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.seeds"},
    ),
    "a text to keep that the student cannot read": (
        lambda client: client.create_run(
            a_run(
                plan=RunPlan(
                    retention_texts=["x" * 100_000], student_recipe=Recipe(rank=8), teacher_recipe=Recipe(rank=8)
                )
            )
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "PASSAGE_TOO_LONG",
        {"field": "plan.retention_texts[0]"},
    ),
    "a race for certainty": (
        lambda client: client.create_run(a_run(plan=RunPlan(race_confidence=1))),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.race_confidence"},
    ),
    "a penalty that pays": (
        lambda client: client.create_run(a_run(plan=RunPlan(reward_shape=RunPlan.RewardShape(compute=-1)))),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.reward_shape.compute"},
    ),
    "the best or all that gain": (
        lambda client: client.create_run(
            a_run(
                plan=RunPlan(
                    keep_without_gain=True,
                    optimiser=PolicyOptimiser(rest_em=RestEm(keep=RestEm.KEEP_GAINING)),
                    student_recipe=Recipe(rank=8),
                    teacher_recipe=Recipe(rank=8),
                )
            )
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.optimiser"},
    ),
    "kept as nobody keeps": (
        lambda client: client.create_run(
            a_run(plan=RunPlan(optimiser=PolicyOptimiser(rest_em=RestEm(keep=9))))  # type: ignore[arg-type]
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.optimiser"},
    ),
    "measured every so many rounds": (
        lambda client: client.create_run(a_run(plan=RunPlan(test_every=101))),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.test_every"},
    ),
    "tested by what its domain has not": (
        lambda client: client.create_run(
            a_run(plan=RunPlan(test_grader=GRADER_CELLS, student_recipe=Recipe(rank=8), teacher_recipe=Recipe(rank=8)))
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.test_grader"},
    ),
    "tested by a grader of another release": (
        lambda client: client.create_run(a_run(plan=RunPlan(test_grader=99))),  # type: ignore[arg-type]
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.test_grader"},
    ),
    "paid by a grader of another release": (
        lambda client: client.create_run(a_run(plan=RunPlan(reward=99))),  # type: ignore[arg-type]
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.reward"},
    ),
    "nothing to forget": (
        lambda client: client.create_run(a_run(plan=RunPlan(reward_shape=RunPlan.RewardShape(forgetting=1)))),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.retention_texts"},
    ),
    "a blank text to keep": (
        lambda client: client.create_run(a_run(plan=RunPlan(retention_texts=["x", " "]))),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.retention_texts[1]"},
    ),
    "more rounds than contexts": (
        lambda client: client.create_run(
            a_run(plan=RunPlan(rounds=3, student_recipe=Recipe(rank=8), teacher_recipe=Recipe(rank=8)))
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "train_contexts"},
    ),
    "a teacher's rank over its limit": (
        lambda client: client.create_run(a_run(plan=RunPlan(student_recipe=Recipe(rank=8)))),
        grpc.StatusCode.INVALID_ARGUMENT,
        "RANK_NOT_SERVED",
        {"field": "plan.teacher_recipe.rank", "profile": TEACHER},
    ),
    "an unknown style": (
        lambda client: client.create_run(a_run(plan=RunPlan(style="haiku"))),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.style"},
    ),
    "an unknown domain": (
        lambda client: client.create_run(a_run(domain="cooking")),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "domain"},
    ),
    "a run that is not there": (
        lambda client: client.get_run("runs/none"),
        grpc.StatusCode.NOT_FOUND,
        "UNKNOWN_RESOURCE",
        {"name": "runs/none"},
    ),
    "an adapter that is not there": (
        lambda client: client.download_adapter("adapters/none", "/nowhere/at/all"),
        grpc.StatusCode.NOT_FOUND,
        "UNKNOWN_RESOURCE",
        {"name": "adapters/none"},
    ),
    "a profile's name with capitals": (
        lambda client: client.create_profile(
            Profile(name="profiles/Big", role=ROLE_STUDENT, model=ModelSource(source="m"))
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "profile.name"},
    ),
    "a profile's name that is taken": (
        lambda client: client.create_profile(Profile(name=TEACHER, role=ROLE_TEACHER, model=ModelSource(source="m"))),
        grpc.StatusCode.ALREADY_EXISTS,
        "NAME_TAKEN",
        {"name": TEACHER},
    ),
    "an engine that does not exist": (
        lambda client: client.create_profile(
            Profile(name="profiles/x", role=ROLE_STUDENT, model=ModelSource(source="m"), engine="steam")
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "profile.engine"},
    ),
    "a student that cannot be trained": (
        lambda client: client.create_profile(
            Profile(name="profiles/x", role=ROLE_STUDENT, model=ModelSource(source="m"), engine="openai")
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "profile.engine"},
    ),
    "a chat template for an endpoint, which has its own": (
        lambda client: client.create_profile(
            Profile(name="profiles/x", role=ROLE_TEACHER, model=ModelSource(source="m"), engine="openai", chat=True)
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "profile.chat"},
    ),
    "a run that trains a teacher at an endpoint": (
        lambda client: client.create_run(a_run(teacher=REMOTE_TEACHER, plan=RunPlan(rounds=1))),
        grpc.StatusCode.FAILED_PRECONDITION,
        "ENGINE_CANNOT",
        {"field": "plan.rounds", "profile": REMOTE_TEACHER},
    ),
    "a policy that does not exist": (
        lambda client: client.set_active_policy(f"{TEACHER}/policies/99"),
        grpc.StatusCode.NOT_FOUND,
        "UNKNOWN_RESOURCE",
        {"name": f"{TEACHER}/policies/99"},
    ),
    "a policy of a number that no database has": (
        lambda client: client.set_active_policy(f"{TEACHER}/policies/{10**20}"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "policy"},
    ),
    "a character that PostgreSQL does not keep": (
        lambda client: make_adaptation(client, passage="one\0two"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "context"},
    ),
    "a weight decay without end": (
        lambda client: client.create_adaptation(
            teacher=TEACHER, student=STUDENT, title="T", passage="P", recipe=Recipe(weight_decay=math.inf)
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "recipe.weight_decay"},
    ),
    "a gradient norm without end": (
        lambda client: client.create_run(a_run(plan=RunPlan(student_recipe=Recipe(max_gradient_norm=math.inf)))),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": "plan.student_recipe.max_gradient_norm"},
    ),
    "an alias with nothing before": (
        lambda client: client.rollback_adapter(STUDENT),
        grpc.StatusCode.FAILED_PRECONDITION,
        "NOTHING_TO_ROLL_BACK",
        {"alias": "live", "profile": STUDENT},
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_clear_error_and_creates_nothing(client: Client, case: str) -> None:
    ask, code, reason, metadata = BAD[case]
    before = everything(client)
    with pytest.raises(CallFailed) as caught:
        ask(client)
    assert (caught.value.code, caught.value.reason) == (code, reason)
    assert caught.value.metadata == metadata
    assert len(caught.value.message) > 10
    assert everything(client) == before


def test_the_status_has_error_info_for_clients_in_any_language(coordinator: Coordinator) -> None:
    with grpc.insecure_channel(coordinator.target) as channel, pytest.raises(grpc.RpcError) as caught:
        RunServiceStub(channel).GetRun(run_service_pb2.GetRunRequest(name="runs/none"), timeout=5)
    metadata: Any = caught.value.trailing_metadata()
    details = dict(metadata)["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    assert (info.reason, info.domain) == ("UNKNOWN_RESOURCE", "rookery")


@pytest.mark.parametrize("token", ["made up", base64.urlsafe_b64encode(b'[1.0, "\\ud800"]').decode()])
def test_a_bad_page_token_is_refused(coordinator: Coordinator, token: str) -> None:
    with open_channel(coordinator.target) as channel, pytest.raises(CallFailed, match="page_token"):
        call(RunServiceStub(channel).ListRuns, run_service_pb2.ListRunsRequest(page_token=token))


def test_a_request_id_that_cannot_be_remembered_is_refused(coordinator: Coordinator) -> None:
    asked = run_service_pb2.CreateRunRequest(run=a_run(), request_id="x" * 201)
    with open_channel(coordinator.target) as channel, pytest.raises(CallFailed, match="request_id"):
        call(RunServiceStub(channel).CreateRun, asked)


def test_watching_from_a_number_that_no_event_has_ends_with_the_work(coordinator: Coordinator, client: Client) -> None:
    name = make_adaptation(client).name
    client.cancel_adaptation(name)
    asked = adaptation_service_pb2.WatchAdaptationRequest(name=name, after_sequence=2**64 - 1)
    with open_channel(coordinator.target) as channel:
        assert [*AdaptationServiceStub(channel).WatchAdaptation(asked, timeout=10)] == []


def test_repeating_a_create_returns_what_the_first_one_made(coordinator: Coordinator, client: Client) -> None:
    request = adaptation_service_pb2.CreateAdaptationRequest(
        adaptation=adaptation_service_pb2.Adaptation(
            teacher=TEACHER,
            student=STUDENT,
            context=Context(title="T", passage="P", questions=QUESTIONS),
            recipe=Recipe(rank=8),
        ),
        request_id=str(uuid.uuid4()),
    )
    before = everything(client)
    with open_channel(coordinator.target) as channel:
        stub = AdaptationServiceStub(channel)
        futures = [stub.CreateAdaptation.future(request, timeout=10) for _ in range(5)]
        names = {future.result().name for future in futures}
        request.adaptation.recipe.rank = 10_000  # nobody asks for it: there is one with this id
        names.add(stub.CreateAdaptation(request, timeout=10).name)
    assert len(names) == 1
    assert everything(client) == (before[0], before[1] + 1)


def test_lists_come_in_pages(coordinator: Coordinator, client: Client) -> None:
    made = [make_adaptation(client).name for _ in range(5)]
    seen: list[str] = []
    token = ""
    with open_channel(coordinator.target) as channel:
        stub = AdaptationServiceStub(channel)
        while True:
            request = adaptation_service_pb2.ListAdaptationsRequest(page_size=2, page_token=token)
            page = call(stub.ListAdaptations, request)
            assert len(page.adaptations) <= 2
            seen += [adaptation.name for adaptation in page.adaptations]
            token = page.next_page_token
            if not token:
                break
    assert seen[:5] == made[::-1], "newest first"
    assert len(seen) == len(set(seen)) == everything(client)[1]


def test_the_self_edits_of_a_run_are_listed(coordinator: Coordinator, client: Client) -> None:
    """Without workers those that need no teacher: here of the passages alone."""
    run = client.create_run(a_run(test_contexts=a_run().train_contexts))
    first, second = client.list_self_edits(run.name)
    assert (first.round, first.text, len(first.trials)) == (0, "", 1)
    assert [*client.list_self_edits(run.name, round=0)] == [first, second]
    assert [*client.list_self_edits(run.name, round=1)] == []
    command = [sys.executable, "-m", "rookery.cli.app", "run", "self-edits", run.name, "--server", coordinator.target]
    for options, said in (((), "1 planned"), (("--json",), "STATE_PLANNED"), (("--round", "1", "--json"), "[]")):
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
        assert said in done.stdout
    for name, round_ in (("runs/none", None), (run.name, 99)):
        with pytest.raises(CallFailed):
            [*client.list_self_edits(name, round=round_)]
    values: list[Any] = [["a", 0, 0], [[0], 0, 0], [1e30, 0, 0], [2**70, 0, 0], [True, 0, 0], [0, 0], {}]
    forged = [base64.urlsafe_b64encode(json.dumps(value).encode()).decode() for value in values]
    for token in ("nonsense", *forged):
        request = run_service_pb2.ListSelfEditsRequest(parent=run.name, page_token=token)
        with open_channel(coordinator.target) as channel, pytest.raises(CallFailed) as caught:
            call(RunServiceStub(channel).ListSelfEdits, request)
        assert caught.value.reason == "INVALID_FIELD"


def test_what_is_created_is_shown_with_its_defaults(client: Client) -> None:
    made = make_adaptation(client, recipe=Recipe(rank=8))
    shown = client.get_adaptation(made.name)
    assert shown.state == STATE_RUNNING
    assert (shown.style, shown.self_edits, shown.seeds, shown.policy) == ("implications", 5, 2, f"{TEACHER}/policies/0")
    assert (shown.recipe.rank, shown.recipe.alpha, shown.recipe.epochs) == (8, 64, 10)
    assert list(shown.recipe.targets) == ["q_proj", "v_proj"]
    assert shown.sampling.max_new_tokens == 50, "the teacher's limit"
    assert shown.context.passage == "P"
    assert (shown.progress.trials_done, shown.progress.trials_total) == (0, 10)


def test_a_teacher_at_an_endpoint_can_be_measured_and_asked(client: Client) -> None:
    recipe = Recipe(rank=8, alpha=16)
    plan = RunPlan(rounds=0, student_recipe=recipe, teacher_recipe=recipe, reward=GRADER_JUDGE)
    run = client.create_run(a_run(teacher=REMOTE_TEACHER, plan=plan, test_contexts=a_run().train_contexts))
    assert (run.state, run.plan.reward, run.plan.test_grader) == (STATE_RUNNING, GRADER_JUDGE, GRADER_JUDGE)
    assert make_adaptation(client, teacher=REMOTE_TEACHER).state == STATE_RUNNING


def test_cancelling_ends_the_watch(client: Client) -> None:
    made = make_adaptation(client)
    client.cancel_adaptation(made.name)
    events = list(client.watch_adaptation(made.name))
    assert events[0].message == "accepted"
    assert events[-1].message == "cancelled"
    assert events[-1].adaptation.state == STATE_CANCELLED
    rest = list(client.watch_adaptation(made.name, after_sequence=events[0].sequence))
    assert [e.sequence for e in rest] == [e.sequence for e in events[1:]]
    run = client.create_run(a_run())
    assert client.cancel_run(run.name).state == STATE_CANCELLED
    assert client.cancel_run(run.name).state == STATE_CANCELLED, "cancelling again has no effect"


def test_a_paused_run_goes_on_where_it_was(client: Client) -> None:
    run = client.create_run(a_run())
    paused = client.pause_run(run.name)
    assert (paused.state, paused.progress.stage) == (STATE_PAUSED, "paused")
    assert client.pause_run(run.name).state == STATE_PAUSED, "pausing again has no effect"
    resumed = client.resume_run(run.name)
    assert (resumed.state, resumed.progress.stage) == (STATE_RUNNING, run.progress.stage)
    assert client.resume_run(run.name).state == STATE_RUNNING
    client.pause_run(run.name)
    assert client.cancel_run(run.name).state == STATE_CANCELLED
    assert client.pause_run(run.name).state == client.resume_run(run.name).state == STATE_CANCELLED
    told = [event.message for event in client.watch_run(run.name)]
    assert [told.count(what) for what in ("paused: what runs will finish", "resumed", "cancelled")] == [2, 1, 1]


def test_a_paused_adaptation_can_be_resumed(client: Client) -> None:
    made = make_adaptation(client)
    assert client.pause_adaptation(made.name).state == STATE_PAUSED
    assert client.resume_adaptation(made.name).state == STATE_RUNNING
    client.cancel_adaptation(made.name)


def test_equal_requests_at_once_make_one_adaptation(client: Client) -> None:
    """Those that share a transaction too; a request that is refused spoils no other."""
    stub = AdaptationServiceStub(client._channel)
    context = Context(title="T", passage="P")
    small = Recipe(rank=8, alpha=16)
    asked = adaptation_service_pb2.Adaptation(teacher=TEACHER, student=STUDENT, context=context, recipe=small)
    bad = adaptation_service_pb2.Adaptation(teacher=TEACHER, student="profiles/nobody", context=context)
    ids = [str(uuid.uuid4()) for _ in range(10)]
    asking = [(each, id_) for id_ in ids for each in (asked, asked)] + [(bad, str(uuid.uuid4())) for _ in ids]
    calls = [
        stub.CreateAdaptation.future(adaptation_service_pb2.CreateAdaptationRequest(adaptation=each, request_id=id_))
        for each, id_ in sorted(asking, key=lambda pair: pair[1])
    ]
    names = [call.result().name for call in calls if call.exception() is None]
    refused = [call.code() for call in calls if call.exception() is not None]
    assert len(names) == 2 * len(ids)
    assert len({*names}) == len(ids)
    assert refused == [grpc.StatusCode.NOT_FOUND] * len(ids)


def test_a_watch_outlives_the_server(coordinator: Coordinator, client: Client) -> None:
    made = make_adaptation(client)
    events = client.watch_adaptation(made.name)
    first = next(events)
    coordinator.restart()
    client.cancel_adaptation(made.name)
    rest = list(events)
    assert rest[-1].message == "cancelled"
    sequences = [first.sequence, *(e.sequence for e in rest)]
    assert sequences == sorted(set(sequences)), "nothing twice, nothing out of order"


def test_health_and_reflection_are_served(coordinator: Coordinator) -> None:
    with open_channel(coordinator.target) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "rookery.v1.RunService", "rookery.v1.AdapterService"):
            response = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert response.status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        [answer] = list(reflection.ServerReflectionInfo(iter([request]), timeout=5))
        names = {service.name for service in answer.list_services_response.service}
    public = {"RunService", "AdaptationService", "ModelService", "AdapterService"}
    assert {f"rookery.v1.{name}" for name in public} <= names
    assert not any("internal" in name for name in names), "workers have a port of their own"


def test_a_second_server_on_the_port_fails(coordinator: Coordinator) -> None:
    environment = {**coordinator.environment, "ROOKERY_JOB_ADDRESS": f"127.0.0.1:{free_port()}"}
    argv = [sys.executable, "-m", "rookery_coordinator", "serve"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0


def test_workers_talk_to_the_internal_service_only(coordinator: Coordinator) -> None:
    unknown = ClaimRequest(job="none", epoch=1, worker="w")
    with open_channel(coordinator.target) as channel, pytest.raises(CallFailed) as caught:
        call(JobServiceStub(channel).Claim, unknown)
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
    with open_channel(coordinator.environment["ROOKERY_JOB_ADDRESS"]) as channel, pytest.raises(CallFailed) as caught:
        call(JobServiceStub(channel).Claim, unknown)
    assert caught.value.reason == "UNKNOWN_RESOURCE"


def test_profiles_and_policies(coordinator: Coordinator, client: Client) -> None:
    profile = client.get_profile(TEACHER)
    assert profile.active_policy == f"{TEACHER}/policies/0"
    assert [p.name for p in client.list_policies(TEACHER)] == [f"{TEACHER}/policies/0"]
    assert client.set_active_policy(f"{TEACHER}/policies/0").active_policy == profile.active_policy
    request = model_service_pb2.ListPoliciesRequest(parent=STUDENT)
    with open_channel(coordinator.target) as channel, pytest.raises(CallFailed) as caught:
        call(ModelServiceStub(channel).ListPolicies, request)
    assert caught.value.reason == "UNKNOWN_PROFILE", "students have no policies"


def test_failures_of_jobs_reach_the_client(coordinator: Coordinator, client: Client) -> None:
    made = make_adaptation(client)
    with open_channel(coordinator.environment["ROOKERY_JOB_ADDRESS"]) as channel:
        job = _job_of(coordinator, made.name)
        stub = JobServiceStub(channel)
        claim = call(stub.Claim, ClaimRequest(job=job, epoch=1, worker="w"))
        assert claim.parent == made.name
        assert claim.generate.items[0].context.passage == "P"
        call(stub.Fail, FailRequest(job=job, epoch=1, reason="MODEL_NOT_LOADABLE", message="no such model"))
    failed = client.get_adaptation(made.name)
    assert failed.state == STATE_FAILED
    assert (failed.failure.reason, failed.failure.message) == ("MODEL_NOT_LOADABLE", "no such model")


def _job_of(coordinator: Coordinator, parent: str) -> str:
    with Database(coordinator.environment["ROOKERY_DATABASE_URL"]).read() as session:
        return session.scalars(select(Job.id).where(Job.parent == parent)).one()
