"""One trace for one adaptation: from a program's call through outbox, queue, workers, store and model servers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest as Request
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse as Response
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from rookery.local.ports import free_port
from rookery_tiny.contexts import make_contexts
from rookery_tiny.world import Surnames
from tests.e2e.conftest import running_system
from tests.e2e.systems import System
from tests.waiting import wait_until

PROGRAM = """
import sys
from opentelemetry import trace
from rookery import Client
from rookery.cli.quickstart import STUDENT_RECIPE, as_messages
from rookery_shared.telemetry import send_spans
from rookery_tiny.contexts import make_contexts
from rookery_tiny.world import Surnames

url, address, teacher, student = sys.argv[1:]
send_spans(url, service="program")
[context] = as_messages(make_contexts(Surnames.TEST, 1, seed=11))
with Client(address) as client, trace.get_tracer("program").start_as_current_span("program"):
    adaptation = client.create_adaptation(
        teacher=teacher,
        student=student,
        title=context.title,
        passage=context.passage,
        questions=context.questions,
        self_edits=2,
        seeds=1,
        recipe=STUDENT_RECIPE,
    )
    for event in client.watch_adaptation(adaptation.name):
        state = event.adaptation.state
print(adaptation.name, state)
"""
SERVICES = {"program", "coordinator", "coordinator-worker", "teacher", "student", "evaluator"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    name: str
    service: str
    process: str
    trace: str
    id: str
    parent: str | None
    start: str
    """Of one unit in one trace."""
    failed: bool


@dataclass
class Collector(TraceServiceServicer):
    """What takes spans as OpenTelemetry sends them."""

    address: str
    requests: list[Request] = field(default_factory=list)

    def Export(self, request: Request, _: grpc.ServicerContext) -> Response:
        self.requests.append(request)
        return Response()

    def spans(self) -> list[Span]:
        found = []
        for request in [*self.requests]:
            for group in request.resource_spans:
                resource = {entry.key: entry.value.string_value for entry in group.resource.attributes}
                found += [
                    Span(
                        name=span.name,
                        service=resource["service.name"].removeprefix("rookery-"),
                        process=resource["service.instance.id"],
                        trace=f"0x{span.trace_id.hex()}",
                        id=f"0x{span.span_id.hex()}",
                        parent=f"0x{span.parent_span_id.hex()}" if span.parent_span_id else None,
                        start=f"{span.start_time_unix_nano:020}",
                        failed=span.status.code == Status.STATUS_CODE_ERROR,
                    )
                    for scope in group.scope_spans
                    for span in scope.spans
                ]
        return sorted(found, key=lambda span: span.start)


@contextmanager
def running_collector() -> Iterator[Collector]:
    server = grpc.server(ThreadPoolExecutor(4))
    collector = Collector(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]  # generated
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def read_spans(folder: Path) -> list[Span]:
    found = []
    for file in folder.glob("*.jsonl"):
        for line in file.read_text().split("\n")[:-1]:  # the last may be on its way
            told = json.loads(line)
            resource = told["resource"]["attributes"]
            found.append(
                Span(
                    name=told["name"],
                    service=resource["service.name"].removeprefix("rookery-"),
                    process=resource["service.instance.id"],
                    trace=told["context"]["trace_id"],
                    id=told["context"]["span_id"],
                    parent=told["parent_id"],
                    start=told["start_time"],
                    failed=told["status"]["status_code"] == "ERROR",
                )
            )
    return sorted(found, key=lambda span: span.start)


def tree(spans: list[Span]) -> Iterator[str]:
    """A line for each, below the one that it goes on from."""
    below = defaultdict(list)
    for span in spans:
        below[span.parent].append(span)

    def lines(parent: str | None, depth: int) -> Iterator[str]:
        for span in below[parent]:
            yield f"{'  ' * depth}{span.name}  [{span.service}]{'  failed' if span.failed else ''}"
            yield from lines(span.id, depth + 1)

    yield from lines(None, 0)


def test_one_trace_goes_through_every_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "spans"
    with running_system(tmp_path / "system", ROOKERY_TRACES_URL=f"file://{folder}") as system:
        trace, spans = trace_program(system, f"file://{folder}", lambda: read_spans(folder))
        logs = "".join(path.read_text() for path in (system.cluster.folder / "logs").glob("student*"))
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *tree(spans), ""]))
    assert {span.service for span in spans} == SERVICES
    assert [span.name for span in spans if span.parent is None] == ["program"], "all go on from the program's"
    assert [span.name for span in spans if span.failed or "Watch" in span.name] == []
    queue = f"train.{system.student.removeprefix('profiles/')}"
    names = [span.name for span in spans]
    assert [names.count(f"send {to}") for to in ("generate", queue, "evaluate")] == [1, 1, 1], "through the outbox"
    assert [names.count(f"job {kind}") for kind in ("generate", "train", "evaluate")] == [1, 1, 1], "and the queues"
    assert len({span.process for span in spans if span.service == "student"}) == 2, "the worker, and who has the device"
    assert names.count("publish adapter") in (1, 2), "two texts; if they are the same, one"
    assert {span.service for span in spans if span.name == "fetch adapter"} == {"evaluator"}
    assert trace.removeprefix("0x") in logs, "logs name it"
    told = "".join(path.read_text() for path in folder.iterdir())
    [context] = make_contexts(Surnames.TEST, 1, seed=11)
    assert context.passage[:40] not in told, "spans hold nothing that was read"
    assert all(question.question not in told for question in context.questions)


def test_a_collector_is_told(tmp_path: Path) -> None:
    with running_collector() as collector:
        url = f"http://{collector.address}"
        with running_system(tmp_path / "system", ROOKERY_TRACES_URL=url, OTEL_BSP_SCHEDULE_DELAY="200") as system:
            _, spans = trace_program(system, url, collector.spans)
        assert {span.service for span in spans} == SERVICES
        assert [span.name for span in spans if span.parent is None] == ["program"]
        assert len({span.process for span in spans if span.service == "student"}) == 2


def test_without_its_collector_a_program_ends_all_the_same() -> None:
    program = """
import sys
from opentelemetry import trace
from rookery_shared.telemetry import send_spans

send_spans(sys.argv[1], service="program")
with trace.get_tracer("program").start_as_current_span("program"):
    print("done")
"""
    started = time.monotonic()
    argv = [sys.executable, "-c", program, f"http://127.0.0.1:{free_port()}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 30


def trace_program(system: System, url: str, read: Callable[[], list[Span]]) -> tuple[str, list[Span]]:
    """Have the program run. Returns its trace's id, and the trace's spans in the order in which they began.

    All that has `url` as its collector sends to where `read` reads.
    """
    argv = [sys.executable, "-c", PROGRAM, url, system.address, system.teacher, system.student]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    [root] = [span for span in read() if span.name == "program"]

    def ours() -> list[Span]:
        return [span for span in read() if span.trace == root.trace]

    def whole() -> bool:
        """Every process has told of its part, and what ends last has ended: the span of a job."""
        spans = ours()
        processes = {(span.service, span.process) for span in spans}
        parents = {span.parent for span in spans} - {None}
        return parents <= {span.id for span in spans} and len(processes) == len(SERVICES) + 1

    wait_until(whole, seconds=20, what=lambda: "a whole trace:\n" + "\n".join(tree(ours())))
    return root.trace, ours()
