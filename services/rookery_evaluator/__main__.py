"""`rookery-evaluator`: a gRPC server that scores adapters of one student profile."""

from __future__ import annotations

import argparse

from rookery_evaluator.settings import EvaluatorSettings
from rookery_shared import telemetry
from rookery_shared.metrics import serve_metrics
from rookery_shared.rpc.server import run_service
from rookery_shared.types import REMOTE_ENGINE


def main() -> None:
    argparse.ArgumentParser(
        prog="rookery-evaluator", description="Scores adapters of one student profile."
    ).parse_args()
    settings = EvaluatorSettings()  # type: ignore[call-arg]  # its fields come from the environment
    telemetry.configure(settings, service="evaluator")
    serve_metrics(settings.metrics_port, host=settings.metrics_host)
    run_service(_serve(settings))


async def _serve(settings: EvaluatorSettings) -> None:
    from rookery_engines.connect import make_engine, open_profile
    from rookery_engines.models import ModelSource
    from rookery_evaluator.judging import Judge
    from rookery_evaluator.scoring import Evaluator
    from rookery_evaluator.server import EvaluatorApi
    from rookery_shared.rpc.server import RpcServer, run_until_signalled
    from rookery_shared.store.connect import open_cache
    from rookery_shared.store.probing import open_store

    store = open_store(settings, writes=False)
    _, engine = open_profile(settings)
    judge, told = None, settings.judge
    if told.url:
        judging = make_engine(REMOTE_ENGINE, ModelSource(source=told.model), remote=told)
        judge = Judge(judging, max_new_tokens=told.max_new_tokens)
    evaluator = Evaluator(engine, open_cache(store, settings), judge=judge)
    server = RpcServer([EvaluatorApi(evaluator).servicer()], address=settings.address, settings=settings)
    await run_until_signalled([server], background=[engine.watch])


if __name__ == "__main__":
    main()
