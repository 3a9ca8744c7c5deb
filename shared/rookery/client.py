"""The synchronous client: one method for each call, resumable watches, downloads.

Methods return the messages of `rookery.v1`, whose fields the protos document, and raise `CallFailed` with the server's
reason. Creates carry a request id, so a retry never makes a second one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import grpc

from rookery.errors import CallFailed
from rookery.transport import call, open_channel, stream
from rookery.v1 import (
    adaptation_service_pb2,
    adapter_service_pb2,
    model_service_pb2,
    recipe_pb2,
    run_service_pb2,
)
from rookery.v1.adaptation_service_pb2_grpc import AdaptationServiceStub
from rookery.v1.adapter_service_pb2_grpc import AdapterServiceStub
from rookery.v1.context_pb2 import Context, Demonstration, Question
from rookery.v1.model_service_pb2_grpc import ModelServiceStub
from rookery.v1.run_service_pb2_grpc import RunServiceStub

Recipe = recipe_pb2.LoraRecipe
Sampling = recipe_pb2.Sampling

DOWNLOAD_SECONDS = 600.0
VERIFY_SECONDS = 86_400.0
WATCH_SECONDS = 3600.0
"""A watch that is still open after this long is taken up again."""
RECONNECT_SECONDS = 60.0
"""How long a watch tries to reach a server that went away."""
LOST_SECONDS = 0.5
"""Between two attempts."""
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What a watch is told that nobody here has ended: gRPC itself cancels calls that wait 30 s to be taken up."""


class _Event(Protocol):
    @property
    def sequence(self) -> int: ...


Event = TypeVar("Event", bound=_Event)
Item = TypeVar("Item")


class Client:
    """A connection to a coordinator at `host:port`, or over TLS at `https://host:port`.

    Close it, or use it in a `with` block.
    """

    def __init__(self, target: str = "localhost:7070") -> None:
        self._channel = open_channel(target)
        self._adaptations = AdaptationServiceStub(self._channel)
        self._runs = RunServiceStub(self._channel)
        self._models = ModelServiceStub(self._channel)
        self._adapters = AdapterServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- adaptations -----------------------------------------------------------------------------------------------

    def create_adaptation(
        self,
        *,
        teacher: str,
        student: str,
        title: str,
        passage: str = "",
        questions: Iterable[Question] = (),
        demonstrations: Iterable[Demonstration] = (),
        domain: str = "",
        self_edits: int = 0,
        seeds: int = 0,
        reward: recipe_pb2.Grader.ValueType = recipe_pb2.GRADER_UNSPECIFIED,
        recipe: Recipe | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> adaptation_service_pb2.Adaptation:
        """Ask for an adapter that knows a passage or, in the domain "few_shot", a task by its demonstrations.

        Zeros, None and empty texts take the server's defaults.
        """
        adaptation = adaptation_service_pb2.Adaptation(
            teacher=teacher,
            student=student,
            domain=domain,
            context=Context(title=title, passage=passage, questions=questions, demonstrations=demonstrations),
            self_edits=self_edits,
            seeds=seeds,
            reward=reward,
            recipe=recipe,
            sampling=sampling,
            seed=seed,
        )
        request = adaptation_service_pb2.CreateAdaptationRequest(adaptation=adaptation, request_id=request_id())
        return call(self._adaptations.CreateAdaptation, request)

    def get_adaptation(self, name: str) -> adaptation_service_pb2.Adaptation:
        return call(self._adaptations.GetAdaptation, adaptation_service_pb2.GetAdaptationRequest(name=name))

    def list_adaptations(self) -> Iterator[adaptation_service_pb2.Adaptation]:
        """Newest first."""
        return _pages(
            self._adaptations.ListAdaptations, adaptation_service_pb2.ListAdaptationsRequest, lambda r: r.adaptations
        )

    def cancel_adaptation(self, name: str) -> adaptation_service_pb2.Adaptation:
        return call(self._adaptations.CancelAdaptation, adaptation_service_pb2.CancelAdaptationRequest(name=name))

    def pause_adaptation(self, name: str) -> adaptation_service_pb2.Adaptation:
        return call(self._adaptations.PauseAdaptation, adaptation_service_pb2.PauseAdaptationRequest(name=name))

    def resume_adaptation(self, name: str) -> adaptation_service_pb2.Adaptation:
        return call(self._adaptations.ResumeAdaptation, adaptation_service_pb2.ResumeAdaptationRequest(name=name))

    def watch_adaptation(
        self, name: str, *, after_sequence: int = 0
    ) -> Iterator[adaptation_service_pb2.AdaptationEvent]:
        """Events until the adaptation has ended; survives a server that restarts."""
        return _watch(
            self._adaptations.WatchAdaptation,
            lambda after: adaptation_service_pb2.WatchAdaptationRequest(name=name, after_sequence=after),
            after_sequence,
        )

    # --- runs --------------------------------------------------------------------------------------------------------

    def create_run(self, run: run_service_pb2.Run) -> run_service_pb2.Run:
        """Start a run that trains a teacher."""
        return call(self._runs.CreateRun, run_service_pb2.CreateRunRequest(run=run, request_id=request_id()))

    def get_run(self, name: str) -> run_service_pb2.Run:
        return call(self._runs.GetRun, run_service_pb2.GetRunRequest(name=name))

    def list_runs(self) -> Iterator[run_service_pb2.Run]:
        """Newest first."""
        return _pages(self._runs.ListRuns, run_service_pb2.ListRunsRequest, lambda r: r.runs)

    def list_self_edits(
        self,
        run: str,
        *,
        round: int | None = None,  # noqa: A002  # as the field is called
    ) -> Iterator[run_service_pb2.SelfEdit]:
        """What was written in a run, or in one of its rounds, by round and context, and what came of it."""
        return _pages(
            self._runs.ListSelfEdits,
            lambda **page: run_service_pb2.ListSelfEditsRequest(parent=run, round=round, **page),
            lambda r: r.self_edits,
        )

    def cancel_run(self, name: str) -> run_service_pb2.Run:
        return call(self._runs.CancelRun, run_service_pb2.CancelRunRequest(name=name))

    def pause_run(self, name: str) -> run_service_pb2.Run:
        """No further job of the run starts until it is resumed; those that run finish."""
        return call(self._runs.PauseRun, run_service_pb2.PauseRunRequest(name=name))

    def resume_run(self, name: str) -> run_service_pb2.Run:
        return call(self._runs.ResumeRun, run_service_pb2.ResumeRunRequest(name=name))

    def watch_run(self, name: str, *, after_sequence: int = 0) -> Iterator[run_service_pb2.RunEvent]:
        """Events until the run has ended; survives a server that restarts."""
        return _watch(
            self._runs.WatchRun,
            lambda after: run_service_pb2.WatchRunRequest(name=name, after_sequence=after),
            after_sequence,
        )

    # --- models ------------------------------------------------------------------------------------------------------

    def create_profile(self, profile: model_service_pb2.Profile) -> model_service_pb2.Profile:
        request = model_service_pb2.CreateProfileRequest(profile=profile, request_id=request_id())
        return call(self._models.CreateProfile, request)

    def get_profile(self, name: str) -> model_service_pb2.Profile:
        return call(self._models.GetProfile, model_service_pb2.GetProfileRequest(name=name))

    def list_profiles(self) -> Iterator[model_service_pb2.Profile]:
        """Oldest first."""
        return _pages(self._models.ListProfiles, model_service_pb2.ListProfilesRequest, lambda r: r.profiles)

    def list_policies(self, profile: str) -> Iterator[model_service_pb2.Policy]:
        """The versions of a teacher, oldest first."""
        return _pages(
            self._models.ListPolicies,
            lambda **page: model_service_pb2.ListPoliciesRequest(parent=profile, **page),
            lambda r: r.policies,
        )

    def set_active_policy(self, policy: str) -> model_service_pb2.Profile:
        return call(self._models.SetActivePolicy, model_service_pb2.SetActivePolicyRequest(policy=policy))

    # --- adapters ----------------------------------------------------------------------------------------------------

    def get_adapter(self, name: str) -> adapter_service_pb2.Adapter:
        return call(self._adapters.GetAdapter, adapter_service_pb2.GetAdapterRequest(name=name))

    def list_adapters(self, profile: str = "") -> Iterator[adapter_service_pb2.Adapter]:
        """Newest first."""
        return _pages(
            self._adapters.ListAdapters,
            lambda **page: adapter_service_pb2.ListAdaptersRequest(profile=profile, **page),
            lambda r: r.adapters,
        )

    def promote_adapter(self, name: str, *, alias: str = "live", expected: str = "") -> adapter_service_pb2.Alias:
        request = adapter_service_pb2.PromoteAdapterRequest(name=name, alias=alias, expected=expected)
        return call(self._adapters.PromoteAdapter, request)

    def rollback_adapter(self, profile: str, *, alias: str = "live") -> adapter_service_pb2.Alias:
        request = adapter_service_pb2.RollbackAdapterRequest(profile=profile, alias=alias)
        return call(self._adapters.RollbackAdapter, request)

    def verify_store(
        self, *, remove_orphans: bool = False, grace_seconds: float | None = None
    ) -> Iterator[adapter_service_pb2.VerifyStoreResponse]:
        """Have every adapter in the store read and compared with the database. None takes the server's default."""
        request = adapter_service_pb2.VerifyStoreRequest(remove_orphans=remove_orphans)
        if grace_seconds is not None:
            request.grace.FromMilliseconds(round(grace_seconds * 1000))
        return stream(self._adapters.VerifyStore, request, seconds=VERIFY_SECONDS)

    def create_download_links(self, name: str, *, seconds: float | None = None) -> adapter_service_pb2.DownloadLinks:
        """Links to the adapter's files in the object store, with their digests. None takes the server's default."""
        request = adapter_service_pb2.CreateDownloadLinksRequest(name=name)
        if seconds is not None:
            request.lifetime.FromMilliseconds(round(seconds * 1000))
        return call(self._adapters.CreateDownloadLinks, request)

    def download_adapter(self, name: str, folder: str | Path) -> Path:
        """Write an adapter's files into a folder, which `peft.PeftModel.from_pretrained` loads. Returns the folder."""
        download = Download(Path(folder))
        request = adapter_service_pb2.DownloadAdapterRequest(name=name)
        for part in stream(self._adapters.DownloadAdapter, request, seconds=DOWNLOAD_SECONDS):
            download.add(part)
        return download.finish()


class Download:
    """Files that come in parts. They have their names once all are there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._partial: dict[str, Path] = {}

    def add(self, part: adapter_service_pb2.DownloadAdapterResponse) -> None:
        file = Path(part.file).name  # never outside of the folder
        if file not in self._partial:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._partial[file] = self._folder / f".{file}.part"
            self._partial[file].unlink(missing_ok=True)
        with self._partial[file].open("ab") as opened:
            opened.write(part.chunk)

    def finish(self) -> Path:
        """Returns the folder."""
        for file, path in self._partial.items():
            path.replace(self._folder / file)
        return self._folder


class Watch:
    """How far the events of a run or an adaptation were heard, and whether to go on after a call that broke off."""

    def __init__(self, after: int) -> None:
        self.after = after
        """The sequence number of the last event."""
        self._lost_since: float | None = None

    def heard(self, event: Event) -> Event:
        self.after, self._lost_since = event.sequence, None
        return event

    def broke_off(self, error: CallFailed) -> float:
        """Seconds to wait before the next call. Raises the error if there is no hope in one."""
        if error.code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return 0.0
        now = time.monotonic()
        self._lost_since = self._lost_since or now
        if error.code not in _LOST or now - self._lost_since > RECONNECT_SECONDS:
            raise error
        return LOST_SECONDS


def request_id() -> str:
    return str(uuid.uuid4())


def _pages(
    method: Callable[..., Any], request: Callable[..., Any], items: Callable[[Any], Iterable[Item]]
) -> Iterator[Item]:
    token = ""
    while True:
        response = call(method, request(page_token=token))
        yield from items(response)
        token = response.next_page_token
        if not token:
            return


def _watch(method: Callable[..., Iterator[Event]], request: Callable[[int], Any], after: int) -> Iterator[Event]:
    """Follow a stream of events to its end, and take it up where it broke off if the server goes away."""
    watch = Watch(after)
    while True:
        try:
            for event in stream(method, request(watch.after), seconds=WATCH_SECONDS):
                yield watch.heard(event)
            return
        except CallFailed as error:
            time.sleep(watch.broke_off(error))
