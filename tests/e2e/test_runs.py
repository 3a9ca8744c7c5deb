"""Runs through all services."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from rookery.cli.recipes import OptimiserName
from rookery.v1.recipe_pb2 import GRADER_LOGLIK
from rookery.v1.run_service_pb2 import Round
from tests.e2e.conftest import running_system
from tests.e2e.systems import System, finish, kill, rookery, small_run, wait_for
from tests.servers.s3 import S3Server
from tests.waiting import wait_until

CONTEXTS, TRAIN_TRIALS, TEST_TRIALS = 4, 4 * 2, 3 * 2
"""Four contexts of two self-edits; two contexts on the passage alone, before and after."""


def processes(system: System) -> list[str]:
    teacher, student = system.teacher.removeprefix("profiles/"), system.student.removeprefix("profiles/")
    return [
        "coordinator",
        "worker",
        "redis",
        f"teacher-{teacher}",
        f"trainer-{teacher}",
        f"student-{student}",
        f"evaluator-{student}",
    ]


SERVICES = ["coordinator", "worker", "redis", "teacher", "trainer", "student", "evaluator"]


def kill_half_way(system: System, service: str, *, seed: int) -> None:
    """With a run half done, kill one service: the run completes with as many trials as it planned, none twice."""
    [process] = [name for name in processes(system) if name.split("-")[0] == service]
    run = system.client.create_run(small_run(seed=seed))
    half = wait_for(system.client, run.name, trials=(TRAIN_TRIALS + TEST_TRIALS) // 2)
    assert 0 < half.progress.trials_done < TRAIN_TRIALS + TEST_TRIALS, "half done"
    kill(system, process)
    done = finish(system.client, run.name)
    assert done.progress.trials_done == done.progress.trials_total == TRAIN_TRIALS + TEST_TRIALS
    assert [r.trials_done for r in done.rounds] == [r.trials_total for r in done.rounds] == [2, 2, TRAIN_TRIALS, 2]
    assert done.rounds[2].self_edits == TRAIN_TRIALS
    assert done.rounds[2].kept == CONTEXTS
    assert [m.n for m in done.measurements] == [2, 2, 2, 2]


@pytest.mark.parametrize("service", SERVICES)
def test_kill_any_service_and_the_run_completes_once(system: System, service: str) -> None:
    kill_half_way(system, service, seed=100 + SERVICES.index(service))


@pytest.mark.parametrize("service", ["coordinator"])
def test_kill_on_postgresql(postgres_system: System, service: str) -> None:
    kill_half_way(postgres_system, service, seed=200 + SERVICES.index(service))


def test_no_trial_is_in_the_database_twice(shared_system: System) -> None:
    """After all the killing above: one row a self-edit and seed, one adapter a trial, every job ended once.

    A teacher may still be about to load a policy.
    """
    engine = create_engine(f"sqlite:///{shared_system.cluster.folder}/rookery.db")

    def rows(query: str) -> list[tuple[object, ...]]:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def left() -> list[tuple[object, ...]]:
        """Jobs that have not ended, and messages that have not been sent."""
        query = "SELECT id, kind, parent, state, attempts FROM jobs WHERE state IN ('queued', 'running')"
        return rows(query) + rows("SELECT job, epoch, queue FROM outbox")

    assert rows("SELECT self_edit, position, count(*) FROM trials GROUP BY 1, 2 HAVING count(*) > 1") == []
    unscored = (
        "SELECT trials.id FROM trials JOIN rounds ON rounds.id = trials.round "
        "WHERE trials.state <> 'scored' AND rounds.state = 'succeeded'"
    )
    assert rows(unscored) == []
    wait_until(lambda: not left(), seconds=60, what=lambda: f"every job ends: {left()}")


def test_two_rounds_with_a_control_make_two_lines_of_policies(system: System) -> None:
    done = finish(system.client, system.client.create_run(small_run(rounds=2, control=True, contexts=3, seed=1)).name)
    purposes = [r.purpose for r in done.rounds]
    assert purposes.count(Round.PURPOSE_TRAIN) == purposes.count(Round.PURPOSE_CONTROL) == 2
    made = [r.next_policy for r in done.rounds if r.next_policy]
    assert len(set(made)) == 4
    names = [m.name for m in done.measurements]
    assert names[:3] == ["base", "passage only", "self-edits before RL"]
    assert {*names[3:]} == {"after round 1", "after round 2", "control"}
    policies = {policy.name: policy.adapter for policy in system.client.list_policies(system.teacher)}
    assert all(policies[name].startswith("adapters/") for name in made)


def test_grpo_makes_two_policies_and_a_control(system: System) -> None:
    """The second goes on from the first. Rewarded by log-likelihood, which is never the same twice."""
    asked = small_run(rounds=2, control=True, contexts=4, seed=5, optimiser=OptimiserName.grpo)
    asked.plan.reward = GRADER_LOGLIK
    done = finish(system.client, system.client.create_run(asked).name)
    assert done.plan.optimiser.grpo.kl_coefficient == pytest.approx(0.04)
    trained = [r for r in done.rounds if r.purpose == Round.PURPOSE_TRAIN]
    assert all(r.kept > r.contexts for r in trained), "of a context all self-edits, not the best alone"
    made = [r.next_policy for r in done.rounds if r.next_policy]
    assert len(set(made)) == 4
    policies = {policy.name: policy.adapter for policy in system.client.list_policies(system.teacher)}
    losses = [system.client.get_adapter(policies[name]).training.losses for name in made]
    assert all(losses)
    assert min(min(of_one) for of_one in losses) < 0, "an objective, not a likelihood"


def test_a_run_without_questions_is_paid_by_the_teacher_s_own(system: System) -> None:
    """The tests' questions are the true ones; those that pay are written by the teacher."""
    asked = small_run(seed=6)
    for context in asked.train_contexts:
        context.ClearField("questions")
    done = finish(system.client, system.client.create_run(asked).name)
    [trained] = [r for r in done.rounds if r.purpose == Round.PURPOSE_TRAIN]
    assert trained.kept == CONTEXTS
    assert trained.gain.mean > 0, "its own questions are answered better than before"
    assert [m.n for m in done.measurements] == [2, 2, 2, 2]


def test_the_same_run_gives_the_same_result(system: System) -> None:
    """Every draw has its seed from the request, and nothing is trained twice."""
    first = finish(system.client, system.client.create_run(small_run(seed=2)).name)
    started_from = first.rounds[2].policy
    system.client.set_active_policy(started_from)
    adapters = sum(1 for _ in system.client.list_adapters(system.student))
    again = finish(system.client, system.client.create_run(small_run(seed=2)).name)
    assert [(m.name, m.mean) for m in again.measurements] == [(m.name, m.mean) for m in first.measurements]
    assert again.rounds[2].policy == started_from
    assert sum(1 for _ in system.client.list_adapters(system.student)) == adapters, "nothing was trained twice"


def test_adapters_in_s3_with_nothing_but_settings_changed(
    tmp_path: Path, moto_server: S3Server, system: System
) -> None:
    reference = finish(system.client, system.client.create_run(small_run(seed=3)).name)
    own = {"ROOKERY_STORE_URL": f"s3://{moto_server.bucket}/{tmp_path.name}"}  # the servers of a process share buckets
    with running_system(tmp_path, **moto_server.settings | own) as in_s3:
        done = finish(in_s3.client, in_s3.client.create_run(small_run(seed=3)).name)
        adapter = next(iter(in_s3.client.list_adapters(in_s3.student)))
        folder = in_s3.client.download_adapter(adapter.name, tmp_path / "adapter")
        steps = [*in_s3.client.verify_store(grace_seconds=0)]
        links = in_s3.client.create_download_links(adapter.name).links
    assert steps[-1].checked == steps[-1].total > 1
    assert [step.finding for step in steps if step.HasField("finding")] == []
    assert {link.file for link in links} == {path.name for path in folder.iterdir()}
    objects = [o.object_name for o in moto_server.client().list_objects(moto_server.bucket, recursive=True)]
    assert f"{tmp_path.name}/{adapter.name}/manifest.json" in objects
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert not (in_s3.cluster.folder / "objects").exists(), "nothing went to the local folder"
    assert [m.mean for m in done.measurements] == [m.mean for m in reference.measurements]


def test_a_second_up_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    with running_system(tmp_path) as first:
        name = first.client.create_run(small_run(seed=4)).name
        wait_for(first.client, name, trials=4)
    with running_system(tmp_path) as second:
        done = finish(second.client, name)
    assert done.progress.trials_done == TRAIN_TRIALS + TEST_TRIALS


def test_real_passages_are_learned(system: System, seal_data: Path) -> None:
    """The first eight passages of squad_val.json, rewarded by log-likelihood, through the command."""
    dataset = seal_data / "knowledge" / "squad_val.json"
    done = rookery(
        system, "run", "create", "--dataset", dataset, "--limit", "8", "--rounds", "1", "--self-edits", "2", "--json"
    )
    run = json.loads(rookery(system, "run", "get", json.loads(done.splitlines()[-1])["run"]["name"], "--json"))
    gains = {r["purpose"]: r["gain"]["mean"] for r in run["rounds"] if "gain" in r}
    assert gains["PURPOSE_TRAIN"] > 0
    means = {m["name"]: m["mean"] for m in run["measurements"]}
    assert means["passage only"] > means["base"]
    assert means["self-edits before RL"] > means["base"]
