"""`rookery-teacher serve | trainer`."""

from __future__ import annotations

import argparse

from rookery_shared import telemetry
from rookery_shared.jobs.device import require_device
from rookery_shared.jobs.queues import improve_queue
from rookery_shared.jobs.worker import run_worker
from rookery_shared.metrics import serve_metrics
from rookery_shared.rpc.server import run_service
from rookery_shared.store.probing import open_store
from rookery_teacher.settings import TeacherSettings


def main() -> None:
    parser = argparse.ArgumentParser(prog="rookery-teacher", description="Writes self-edits with one teacher profile.")
    parser.add_argument(
        "command",
        nargs="?",
        default="serve",
        choices=("serve", "trainer"),
        help="serve self-edits (default), or train the next policies",
    )
    settings = TeacherSettings()  # type: ignore[call-arg]  # its fields come from the environment
    if parser.parse_args().command == "serve":
        telemetry.configure(settings, service="teacher")
        serve_metrics(settings.metrics_port, host=settings.metrics_host)
        run_service(_serve(settings))
    else:
        telemetry.configure(settings, service="trainer")
        require_device(settings.device)
        open_store(settings, writes=True)
        run_worker(
            settings,
            service="trainer",
            queues=(improve_queue(settings.profile),),
            runner="rookery_teacher.worker:build_runner",
            concurrency=1,
        )


async def _serve(settings: TeacherSettings) -> None:
    from rookery_engines.connect import open_profile
    from rookery_shared.profiles import fetch_active_adapter
    from rookery_shared.rpc.server import RpcServer, run_until_signalled
    from rookery_shared.store.connect import open_cache
    from rookery_teacher.server import TeacherApi
    from rookery_teacher.writing import Teacher

    store = open_store(settings, writes=False)
    profile, engine = open_profile(settings, remote=settings.openai)
    teacher = Teacher(engine, open_cache(store, settings))
    active = fetch_active_adapter(settings.coordinator_target, profile)
    if active:
        await teacher.activate(active)
    api = TeacherApi(teacher, max_new_tokens=profile.limits.max_new_tokens)
    server = RpcServer([api.servicer()], address=settings.address, settings=settings)
    await run_until_signalled([server], background=[engine.watch])


if __name__ == "__main__":
    main()
