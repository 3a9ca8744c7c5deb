"""9. A job that takes its process down does so a few times, alone, and has then failed; its neighbours succeed."""

from __future__ import annotations

from rookery_coordinator.leases import MAX_DEATHS
from rookery_coordinator.types import JobState
from tests.requirements.isolation import isolated_worker, job_row, noted
from tests.requirements.light import Light
from tests.requirements.removal import Removal
from tests.waiting import wait_until

TEST = "test_a_job_that_kills_its_process_fails_and_its_neighbours_succeed"
REMOVALS = [
    Removal(
        what="a bound for attempts that killed their process",
        file="services/rookery_coordinator/leases.py",
        old=" or job.deaths >= MAX_DEATHS:",
        new=":",
        test=TEST,
    ),
    Removal(
        what="suspects run alone",
        file="services/rookery_coordinator/leases.py",
        old="    return job.deaths > 0 or",
        new="    return",
        test=TEST,
    ),
    Removal(
        what="the worker outlives the process",
        file="shared/rookery_shared/jobs/isolation.py",
        old="            self._listen(connection)\n",
        new="            self._listen(connection)\n            os._exit(1)\n",
        test=TEST,
    ),
]


def test_a_job_that_kills_its_process_fails_and_its_neighbours_succeed(tidy_light: Light) -> None:
    with isolated_worker(tidy_light, slots=3) as worker:
        poison, *neighbours = tidy_light.submit("1 kills", "3 seconds", "3 seconds")
        wait_until(lambda: tidy_light.states([poison]) == [JobState.FAILED], seconds=60, what="the poison has failed")
        tidy_light.finish(neighbours, seconds=60)
        assert tidy_light.starts(poison) == MAX_DEATHS
        failed = job_row(tidy_light, poison)
        assert failed.failure_reason == "TRAINER_DIED"
        assert failed.failure_message == "the process that ran the job was killed by SIGKILL"
        assert [job_row(tidy_light, job).attempts for job in neighbours] == [1, 1], (
            "one was cut short beside the poison"
        )
        assert worker.alive
        tidy_light.finish(tidy_light.submit("0 seconds"), seconds=60)
        for epoch in range(2, MAX_DEATHS + 1):
            [started] = noted(tidy_light, poison, "started", epoch=epoch)
            together = [
                entry
                for entry in tidy_light.journal()
                if entry["pid"] == started["pid"] and entry["job"] != poison and entry["time"] > started["time"]
            ]
            assert not together, "one was in the process with the poison"


def test_those_that_died_with_a_job_are_done_one_after_the_other_in_one_new_process(tidy_light: Light) -> None:
    """To start it may take minutes. Unless the poison is done between them, and ends it again."""
    with isolated_worker(tidy_light, slots=3):
        poison, *neighbours = tidy_light.submit("1 kills", "3 seconds", "3 seconds")
        tidy_light.finish(neighbours, seconds=60)
        attempts = (
            [*noted(tidy_light, job, "started", epoch=2), *noted(tidy_light, job, "ended", epoch=2)]
            for job in neighbours
        )
        [first, second] = sorted(attempts, key=lambda attempt: attempt[0]["time"])
        assert first[1]["time"] < second[0]["time"], "one after the other"
        poisoned = [
            entry
            for entry in tidy_light.journal("started")
            if entry["job"] == poison and first[0]["time"] < entry["time"] < second[0]["time"]
        ]
        assert poisoned or first[0]["pid"] == second[0]["pid"], "nothing has ended the process between them"
        wait_until(lambda: tidy_light.states([poison]) == [JobState.FAILED], seconds=60, what="the poison has failed")
