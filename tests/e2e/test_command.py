"""The command, as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from sqlalchemy import create_engine, text
from transformers import AutoModelForCausalLM

from rookery.cli.models import resolve_source
from rookery.local.cluster import wait_until_serving
from rookery.local.ports import free_port
from rookery_tiny.contexts import make_contexts
from rookery_tiny.world import Surnames
from tests.e2e.systems import System, finish, rookery, small_run
from tests.prerequisites import ROOT

TINY_OPTIONS = ("--rank", "16", "--target", "all-linear", "--learning-rate", "5e-3", "--batch-size", "3")


@pytest.fixture
def passage(tmp_path: Path) -> Path:
    context = make_contexts(Surnames.TEST, 1, seed=7)[0]
    path = tmp_path / "neighbours.txt"
    path.write_text(context.passage)
    questions = [{"question": q.question, "answer": q.answer} for q in context.questions]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    (tmp_path / "title").write_text(context.title)
    return path


def test_adapt_shows_answers_before_and_after(system: System, passage: Path, tmp_path: Path) -> None:
    questions, title = tmp_path / "questions.json", (tmp_path / "title").read_text()
    options = ("--questions", questions, "--title", title, "--self-edits", "4", "--reward", "exact", *TINY_OPTIONS)
    shown = rookery(system, "adapt", "--passage", passage, *options, "--out", tmp_path / "adapter")
    assert "Answers without the text" in shown
    assert "adapters/" in shown
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 16
    adaptation = json.loads(rookery(system, "adapt", "--passage", passage, *options, "--json"))
    assert adaptation["gain"]["mean"] > 0.05
    assert adaptation["gain"]["n"] == 2
    assert len(adaptation["answers"]) == 15
    assert adaptation["policy"].startswith(system.teacher)


def test_adapt_without_questions_asks_the_teacher_for_some(system: System, passage: Path) -> None:
    adaptation = json.loads(rookery(system, "adapt", "--passage", passage, "--self-edits", "2", "--json"))
    assert adaptation["answers"], "the teacher wrote questions, and they were asked"
    assert adaptation["reward"] == "GRADER_LOGLIK"


def test_adapt_learns_a_real_passage(system: System, seal_data: Path, tmp_path: Path) -> None:
    context = json.loads((seal_data / "knowledge" / "squad_val.json").read_text())[0]
    (tmp_path / "passage.txt").write_text(context["context"])
    (tmp_path / "questions.json").write_text(json.dumps(context["questions"][:8]))
    options = ("--questions", tmp_path / "questions.json", "--title", context["title"], "--self-edits", "2")
    adaptation = json.loads(rookery(system, "adapt", "--passage", tmp_path / "passage.txt", *options, "--json"))
    assert adaptation["gain"]["mean"] > 0, "log-likelihood of the gold answers"
    assert len(adaptation["answers"]) == 8
    said = rookery(system, "adapt", "--passage", tmp_path / "passage.txt", "--self-edits", "2", fails=True)
    assert "NO_QUESTIONS" in said, "the tiny teacher can ask about its own world only, and that is said"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Four contexts of the micro-world."""
    path = tmp_path / "data.jsonl"
    path.write_text(
        "\n".join(
            json.dumps(
                {
                    "title": c.title,
                    "context": c.passage,
                    "questions": [{"question": q.question, "answer": q.answer} for q in c.questions],
                }
            )
            for c in make_contexts(Surnames.TRAIN, 4, seed=8)
        )
    )
    return path


def test_a_run_races_and_takes_off_what_a_gain_has_cost(system: System, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("Edda Falley was born in Norwick.\n\nOtto Falley keeps a collie.\n")
    options = ("--rounds", "1", "--self-edits", "2", "--seeds", "3", "--race", "--redraws", "1", *TINY_OPTIONS)
    costs = ("--forgetting-penalty", "0.5", "--retention", tmp_path / "keep.txt", "--compute-penalty", "0.01")
    said = rookery(system, "run", "create", "--dataset", dataset, *options, *costs, "--json")
    assert "could still be the best; once more" in said
    name = json.loads(said.splitlines()[-1])["run"]["name"]
    run = json.loads(rookery(system, "run", "get", name, "--json"))
    assert run["state"] == "STATE_SUCCEEDED"
    assert run["plan"]["seed_allocation"] == "SEED_ALLOCATION_RACE"
    shape = {name: value for name, value in run["plan"]["reward_shape"].items() if value}
    assert shape == {"scale": 1.0, "forgetting": 0.5, "compute": 0.01}
    with create_engine(f"sqlite:///{system.cluster.folder}/rookery.db").connect() as connection:
        query = text(
            "SELECT trials.position, trials.evaluation FROM trials JOIN rounds ON rounds.id = trials.round "
            "WHERE rounds.parent = :run AND rounds.purpose = 'train'"
        )
        trials = [
            (position, json.loads(stored)) for position, stored in connection.execute(query, {"run": run["name"]})
        ]
    assert {position for position, _ in trials} >= {0, 1}, "at least one more heat: one trial of each tells nothing"
    assert len(trials) <= 3 * 2 * 3
    assert all(stored["forgetting"] != 0 for _, stored in trials)
    [index] = [round_.get("index", 0) for round_ in run["rounds"] if round_["purpose"] == "PURPOSE_TRAIN"]
    written = json.loads(rookery(system, "run", "self-edits", run["name"], "--round", index, "--json"))
    assert any(each["text"].strip() for each in written)
    assert all(each["trials"] for each in written if each["text"].strip())
    assert sum(len(each["trials"]) for each in written) == len(trials)
    assert all("reward" in each and "gain" in each for each in written)
    assert "scored" in rookery(system, "run", "self-edits", run["name"])


def test_runs_are_created_listed_shown_and_cancelled(system: System, dataset: Path) -> None:
    created = json.loads(rookery(system, "run", "create", "--dataset", dataset, "--no-watch", "--json"))
    assert created["name"] in rookery(system, "run", "list")
    cancelled = json.loads(rookery(system, "run", "cancel", created["name"], "--json"))
    assert cancelled["state"] == "STATE_CANCELLED"
    shown = rookery(system, "run", "get", created["name"].removeprefix("runs/"))
    assert "cancelled" in shown
    assert "Rounds" in shown
    assert "CANCELLED" in rookery(system, "run", "watch", created["name"], fails=True)


@pytest.mark.parametrize("words", [["--server", "{}", "models", "list"], ["models", "list", "--server", "{}"]])
def test_the_server_is_named_before_or_after_the_command(system: System, words: list[str]) -> None:
    argv = [sys.executable, "-m", "rookery.cli.app", *(word.format(system.address) for word in words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert system.teacher in done.stdout


def test_who_starts_a_coordinator_is_not_told_of_another() -> None:
    argv = [sys.executable, "-m", "rookery.cli.app", "--server", "elsewhere:7070", "quickstart"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "--address" in done.stderr


def test_models_and_adapters(system: System, tmp_path: Path) -> None:
    run = finish(system.client, system.client.create_run(small_run(seed=9, contexts=2)).name)
    assert system.teacher in rookery(system, "models", "list")
    assert "the base model" in rookery(system, "models", "policies", system.teacher)
    activated = json.loads(rookery(system, "models", "activate", run.rounds[2].next_policy, "--json"))
    assert activated["active_policy"] == run.rounds[2].next_policy
    listed = json.loads(rookery(system, "adapters", "list", "--profile", system.student, "--limit", "3", "--json"))
    assert len(listed) == 3
    name = listed[0]["name"]
    assert name in rookery(system, "adapters", "get", name.removeprefix("adapters/"))
    refused = rookery(system, "adapters", "promote", name, fails=True)
    assert "GAIN_NOT_SIGNIFICANT" in refused, "one trial says nothing of its uncertainty"
    for adapter in listed[:2]:
        promoted = rookery(system, "adapters", "promote", adapter["name"], "--alias", "golden", "--json")
        assert json.loads(promoted)["adapter"] == adapter["name"]
    back = json.loads(rookery(system, "adapters", "rollback", system.student, "--alias", "golden", "--json"))
    assert back["adapter"] == name
    assert "golden" in rookery(system, "adapters", "get", name)
    rookery(system, "adapters", "download", name, "--out", tmp_path / "downloaded")
    base = AutoModelForCausalLM.from_pretrained(resolve_source("tiny"), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "downloaded"))
    assert adapted.peft_config["default"].to_dict()["r"] == 16


def test_bad_files_are_named_before_anything_is_sent(system: System, tmp_path: Path) -> None:
    dataset, good = tmp_path / "data.jsonl", json.dumps({"title": "T", "context": "P", "questions": []})
    dataset.write_text(f"{good}\n{{not json\n")
    said = rookery(system, "run", "create", "--dataset", dataset, fails=True)
    assert "line 2" in said
    assert "BAD_FILE" in said
    error = json.loads(rookery(system, "run", "create", "--dataset", dataset, "--json", fails=True))["error"]
    assert (error["reason"], error["metadata"]["line"]) == ("BAD_FILE", "2")
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    assert "EMPTY_PASSAGE" in rookery(system, "adapt", "--passage", empty, fails=True)
    assert "cannot read" in rookery(system, "adapt", "--passage", tmp_path / "none.txt", fails=True)
    said = rookery(system, "adapt", "--passage", dataset, "--student", "nobody", fails=True)
    assert "UNKNOWN_PROFILE" in said
    said = rookery(system, "adapt", "--passage", dataset, "--rank", "65", fails=True)
    assert "RANK_NOT_SERVED" in said


def test_without_a_server_it_says_what_to_do() -> None:
    argv = [sys.executable, "-m", "rookery.cli.app", "run", "list", "--server", f"127.0.0.1:{free_port()}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "rookery up" in done.stderr
    assert "Traceback" not in done.stderr


def test_up_runs_until_it_is_interrupted(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    argv = [sys.executable, "-m", "rookery.cli.app", "up", "--folder", str(tmp_path / "data"), "--address", address]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ROOKERY_")}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as up:
        wait_until_serving(address)
        second = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert "ALREADY_UP" in second.stderr
        time.sleep(0.5)
        up.send_signal(signal.SIGINT)
        output, _ = up.communicate(timeout=60)
    assert up.returncode == 0
    assert f"Rookery is up at {address}" in output
    assert "Stopped." in output
    assert "coordinator │" in output
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert left.stdout == "", "no process is left"


def test_killing_up_itself_leaves_nothing_behind(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    argv = [sys.executable, "-m", "rookery.cli.app", "up", "--folder", str(tmp_path / "data"), "--address", address]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ROOKERY_")}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as up:
        wait_until_serving(address)
        up.kill()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        left = subprocess.run(["pgrep", "-f", f"{address}|{tmp_path}"], capture_output=True, text=True, check=False)
        if not left.stdout:
            return
        time.sleep(0.5)
    pytest.fail(f"left behind: {left.stdout}")


def test_the_ten_line_client_of_the_readme(system: System, passage: Path, tmp_path: Path) -> None:
    """As it stands there, but for the address, the names of the profiles and the file."""
    readme = (ROOT / "README.md").read_text()
    program = readme.split("```python\n", 1)[1].split("```", 1)[0]
    assert len([line for line in program.splitlines() if line.strip()]) <= 10
    program = program.replace("localhost:7070", system.address).replace("passage.txt", str(passage))
    (tmp_path / "client.py").write_text(program)
    subprocess.run([sys.executable, "client.py"], cwd=tmp_path, check=True, timeout=120)
    base = AutoModelForCausalLM.from_pretrained(resolve_source("tiny"), dtype=torch.float32)
    tokens = torch.tensor([[5, 6, 7]])
    before = base(tokens).logits
    after = PeftModel.from_pretrained(base, str(tmp_path / "my-adapter"))(tokens).logits
    assert not torch.allclose(before, after)
