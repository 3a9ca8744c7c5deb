"""A teacher and a judge at an endpoint, in a whole system."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rookery.cli.quickstart import STUDENT_RECIPE, as_messages
from rookery.v1.adaptation_service_pb2 import STATE_SUCCEEDED
from rookery.v1.recipe_pb2 import GRADER_JUDGE
from rookery.v1.run_service_pb2 import Run, RunPlan
from rookery_shared.grids.configuration import Configuration, Strategy, write_configuration
from rookery_tiny.contexts import make_contexts
from rookery_tiny.world import Surnames
from tests.e2e.conftest import running_system
from tests.e2e.systems import System, finish, rookery
from tests.servers.openai import Asked, OpenAIServer, Said, start_openai

MODEL, TEACHER = "gpt-4.1", "profiles/remote-teacher"
CONFIGURATION = Configuration(
    groups=("use_basic_augmentations",), strategy=Strategy.OUTPUT, learning_rate=1e-3, epochs=2
)
TASK = {
    "train": [{"input": [[n, 0], [0, 0]], "output": [[0, n], [0, 0]]} for n in (1, 2, 3)],
    "test": [{"input": [[4, 0], [0, 0]], "output": [[0, 4], [0, 0]]}],
}


def answer(asked: Asked) -> Said:
    """As a judge, that all is right; as a teacher, the passage again, or a configuration for a task."""
    if asked.body["model"] == "judge-model":
        return Said(text="yes")
    if "configuring a training pipeline" in asked.prompt:
        return Said(text=write_configuration(CONFIGURATION))
    return Said(text=asked.prompt.partition("Passage:\n")[2].partition("\n\nImplications:")[0])


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with start_openai(answer) as running:
        yield running


@pytest.fixture(scope="module")
def remote_system(server: OpenAIServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    settings = {
        "ROOKERY_OPENAI_URL": server.url,
        "ROOKERY_OPENAI_KEY": "sk-teacher",
        "ROOKERY_JUDGE_URL": server.url,
        "ROOKERY_JUDGE_KEY": "sk-judge",
        "ROOKERY_JUDGE_MODEL": "judge-model",
    }
    with running_system(tmp_path_factory.mktemp("remote-system"), **settings) as started:
        rookery(started, "models", "create", "teacher", "remote-teacher", "--model", MODEL, "--engine", "openai")
        yield started


def test_a_run_measures_a_teacher_at_an_endpoint_by_a_judge(remote_system: System, server: OpenAIServer) -> None:
    plan = RunPlan(rounds=0, test_self_edits=1, reward=GRADER_JUDGE, student_recipe=STUDENT_RECIPE)
    contexts = as_messages(make_contexts(Surnames.TEST, 2, seed=3))
    asked = Run(teacher=TEACHER, student=remote_system.student, test_contexts=contexts, plan=plan)
    done = finish(remote_system.client, remote_system.client.create_run(asked).name)
    assert {measured.n for measured in done.measurements} == {2}
    assert all(0.5 < measured.mean <= 1 for measured in done.measurements), "right wherever it is not blank"
    by_key = {asked.key: asked.body["model"] for asked in server.asked}
    assert by_key == {"sk-teacher": MODEL, "sk-judge": "judge-model"}
    assert f"trainer-{TEACHER.removeprefix('profiles/')}" not in remote_system.cluster.names
    logs = "".join(path.read_text() for path in (remote_system.cluster.folder / "logs").iterdir())
    assert "asked an endpoint" in logs
    assert "sk-" not in logs


def test_a_task_and_a_text_are_learned_at_once_by_the_same_workers(remote_system: System, tmp_path: Path) -> None:
    """The tiny student has never seen a grid, so nothing is asked of its score."""
    context = as_messages(make_contexts(Surnames.TEST, 1, seed=5))[0]
    text = remote_system.client.create_adaptation(
        teacher=TEACHER,
        student=remote_system.student,
        title=context.title,
        passage=context.passage,
        questions=context.questions,
        recipe=STUDENT_RECIPE,
    )
    (tmp_path / "mirror.json").write_text(json.dumps(TASK))
    options = ("--teacher", TEACHER, "--student", remote_system.student, "--rank", "16", "--self-edits", "2", "--json")
    said = json.loads(rookery(remote_system, "adapt", "--task", tmp_path / "mirror.json", *options))
    assert said["state"] == "STATE_SUCCEEDED"
    assert said["domain"] == "few_shot"
    assert json.loads(said["self_edit"])["training"]["num_train_epochs"] == 2
    assert [(answer["question"], answer["gold"]) for answer in said["answers"]] == [("4 0\n0 0", "0 4\n0 0")]
    full = remote_system.client.get_adapter(said["adapter"])
    assert len(full.training.losses) > 100, "as many steps as its augmentations and epochs ask for"
    ended = [*remote_system.client.watch_adaptation(text.name)][-1].adaptation
    assert ended.state == STATE_SUCCEEDED


def test_without_a_judge_work_that_it_pays_fails_and_says_so(system: System, tmp_path: Path) -> None:
    context = make_contexts(Surnames.TEST, 1, seed=4)[0]
    (tmp_path / "passage.txt").write_text(context.passage)
    questions = [{"question": q.question, "answer": q.answer} for q in context.questions]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    options = ("--questions", tmp_path / "questions.json", "--self-edits", "1", "--reward", "judge")
    said = rookery(system, "adapt", "--passage", tmp_path / "passage.txt", *options, fails=True)
    assert "NO_JUDGE" in said
    assert "ROOKERY_JUDGE_URL" in said
