"""The client for asyncio: as `Client`, with `await` and `async for`.

Creates take the message itself. Everything raises `CallFailed` as `Client` does; what is cancelled ends its call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any

from rookery.client import DOWNLOAD_SECONDS, VERIFY_SECONDS, WATCH_SECONDS, Download, Watch, request_id
from rookery.errors import CallFailed
from rookery.transport import call_async, open_async_channel, stream_async
from rookery.v1 import adaptation_service_pb2, adapter_service_pb2, model_service_pb2, run_service_pb2
from rookery.v1.adaptation_service_pb2_grpc import AdaptationServiceStub
from rookery.v1.adapter_service_pb2_grpc import AdapterServiceStub
from rookery.v1.model_service_pb2_grpc import ModelServiceStub
from rookery.v1.run_service_pb2_grpc import RunServiceStub


class AsyncClient:
    """A connection to a coordinator at `host:port` or `https://host`, in one event loop. For an `async with` block."""

    def __init__(self, target: str = "localhost:7070") -> None:
        self._channel = open_async_channel(target)
        self._adaptations = AdaptationServiceStub(self._channel)
        self._runs = RunServiceStub(self._channel)
        self._models = ModelServiceStub(self._channel)
        self._adapters = AdapterServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- adaptations -----------------------------------------------------------------------------------------------

    async def create_adaptation(
        self, adaptation: adaptation_service_pb2.Adaptation
    ) -> adaptation_service_pb2.Adaptation:
        """Ask for an adapter that knows the adaptation's context."""
        request = adaptation_service_pb2.CreateAdaptationRequest(adaptation=adaptation, request_id=request_id())
        return await call_async(self._adaptations.CreateAdaptation, request)

    async def get_adaptation(self, name: str) -> adaptation_service_pb2.Adaptation:
        request = adaptation_service_pb2.GetAdaptationRequest(name=name)
        return await call_async(self._adaptations.GetAdaptation, request)

    def list_adaptations(self) -> AsyncIterator[adaptation_service_pb2.Adaptation]:
        """Newest first."""
        return _pages(
            self._adaptations.ListAdaptations, adaptation_service_pb2.ListAdaptationsRequest, lambda r: r.adaptations
        )

    async def cancel_adaptation(self, name: str) -> adaptation_service_pb2.Adaptation:
        request = adaptation_service_pb2.CancelAdaptationRequest(name=name)
        return await call_async(self._adaptations.CancelAdaptation, request)

    async def pause_adaptation(self, name: str) -> adaptation_service_pb2.Adaptation:
        request = adaptation_service_pb2.PauseAdaptationRequest(name=name)
        return await call_async(self._adaptations.PauseAdaptation, request)

    async def resume_adaptation(self, name: str) -> adaptation_service_pb2.Adaptation:
        request = adaptation_service_pb2.ResumeAdaptationRequest(name=name)
        return await call_async(self._adaptations.ResumeAdaptation, request)

    def watch_adaptation(
        self, name: str, *, after_sequence: int = 0
    ) -> AsyncIterator[adaptation_service_pb2.AdaptationEvent]:
        """Events until the adaptation has ended; survives a server that restarts."""
        return _watch(
            self._adaptations.WatchAdaptation,
            lambda after: adaptation_service_pb2.WatchAdaptationRequest(name=name, after_sequence=after),
            after_sequence,
        )

    # --- runs --------------------------------------------------------------------------------------------------------

    async def create_run(self, run: run_service_pb2.Run) -> run_service_pb2.Run:
        """Start a run that trains a teacher."""
        request = run_service_pb2.CreateRunRequest(run=run, request_id=request_id())
        return await call_async(self._runs.CreateRun, request)

    async def get_run(self, name: str) -> run_service_pb2.Run:
        return await call_async(self._runs.GetRun, run_service_pb2.GetRunRequest(name=name))

    def list_runs(self) -> AsyncIterator[run_service_pb2.Run]:
        """Newest first."""
        return _pages(self._runs.ListRuns, run_service_pb2.ListRunsRequest, lambda r: r.runs)

    def list_self_edits(
        self,
        run: str,
        *,
        round: int | None = None,  # noqa: A002  # as the field is called
    ) -> AsyncIterator[run_service_pb2.SelfEdit]:
        """What was written in a run, or in one of its rounds, by round and context, and what came of it."""
        return _pages(
            self._runs.ListSelfEdits,
            lambda **page: run_service_pb2.ListSelfEditsRequest(parent=run, round=round, **page),
            lambda r: r.self_edits,
        )

    async def cancel_run(self, name: str) -> run_service_pb2.Run:
        request = run_service_pb2.CancelRunRequest(name=name)
        return await call_async(self._runs.CancelRun, request)

    async def pause_run(self, name: str) -> run_service_pb2.Run:
        """No further job of the run starts until it is resumed; those that run finish."""
        request = run_service_pb2.PauseRunRequest(name=name)
        return await call_async(self._runs.PauseRun, request)

    async def resume_run(self, name: str) -> run_service_pb2.Run:
        request = run_service_pb2.ResumeRunRequest(name=name)
        return await call_async(self._runs.ResumeRun, request)

    def watch_run(self, name: str, *, after_sequence: int = 0) -> AsyncIterator[run_service_pb2.RunEvent]:
        """Events until the run has ended; survives a server that restarts."""
        return _watch(
            self._runs.WatchRun,
            lambda after: run_service_pb2.WatchRunRequest(name=name, after_sequence=after),
            after_sequence,
        )

    # --- models ------------------------------------------------------------------------------------------------------

    async def create_profile(self, profile: model_service_pb2.Profile) -> model_service_pb2.Profile:
        request = model_service_pb2.CreateProfileRequest(profile=profile, request_id=request_id())
        return await call_async(self._models.CreateProfile, request)

    async def get_profile(self, name: str) -> model_service_pb2.Profile:
        request = model_service_pb2.GetProfileRequest(name=name)
        return await call_async(self._models.GetProfile, request)

    def list_profiles(self) -> AsyncIterator[model_service_pb2.Profile]:
        """Oldest first."""
        return _pages(self._models.ListProfiles, model_service_pb2.ListProfilesRequest, lambda r: r.profiles)

    def list_policies(self, profile: str) -> AsyncIterator[model_service_pb2.Policy]:
        """The versions of a teacher, oldest first."""
        return _pages(
            self._models.ListPolicies,
            lambda **page: model_service_pb2.ListPoliciesRequest(parent=profile, **page),
            lambda r: r.policies,
        )

    async def set_active_policy(self, policy: str) -> model_service_pb2.Profile:
        request = model_service_pb2.SetActivePolicyRequest(policy=policy)
        return await call_async(self._models.SetActivePolicy, request)

    # --- adapters ----------------------------------------------------------------------------------------------------

    async def get_adapter(self, name: str) -> adapter_service_pb2.Adapter:
        request = adapter_service_pb2.GetAdapterRequest(name=name)
        return await call_async(self._adapters.GetAdapter, request)

    def list_adapters(self, profile: str = "") -> AsyncIterator[adapter_service_pb2.Adapter]:
        """Newest first."""
        return _pages(
            self._adapters.ListAdapters,
            lambda **page: adapter_service_pb2.ListAdaptersRequest(profile=profile, **page),
            lambda r: r.adapters,
        )

    async def promote_adapter(self, name: str, *, alias: str = "live", expected: str = "") -> adapter_service_pb2.Alias:
        request = adapter_service_pb2.PromoteAdapterRequest(name=name, alias=alias, expected=expected)
        return await call_async(self._adapters.PromoteAdapter, request)

    async def rollback_adapter(self, profile: str, *, alias: str = "live") -> adapter_service_pb2.Alias:
        request = adapter_service_pb2.RollbackAdapterRequest(profile=profile, alias=alias)
        return await call_async(self._adapters.RollbackAdapter, request)

    def verify_store(
        self, *, remove_orphans: bool = False, grace_seconds: float | None = None
    ) -> AsyncIterator[adapter_service_pb2.VerifyStoreResponse]:
        """Have every adapter in the store read and compared with the database. None takes the server's default."""
        request = adapter_service_pb2.VerifyStoreRequest(remove_orphans=remove_orphans)
        if grace_seconds is not None:
            request.grace.FromMilliseconds(round(grace_seconds * 1000))
        return stream_async(self._adapters.VerifyStore, request, seconds=VERIFY_SECONDS)

    async def create_download_links(
        self, name: str, *, seconds: float | None = None
    ) -> adapter_service_pb2.DownloadLinks:
        """Links to the adapter's files in the object store, with their digests. None takes the server's default."""
        request = adapter_service_pb2.CreateDownloadLinksRequest(name=name)
        if seconds is not None:
            request.lifetime.FromMilliseconds(round(seconds * 1000))
        return await call_async(self._adapters.CreateDownloadLinks, request)

    async def download_adapter(self, name: str, folder: str | Path) -> Path:
        """Write an adapter's files into a folder, which `peft.PeftModel.from_pretrained` loads. Returns the folder."""
        download = Download(Path(folder))
        request = adapter_service_pb2.DownloadAdapterRequest(name=name)
        parts = stream_async(self._adapters.DownloadAdapter, request, seconds=DOWNLOAD_SECONDS)
        async for part in parts:
            await asyncio.to_thread(download.add, part)
        return await asyncio.to_thread(download.finish)


async def _pages(
    method: Callable[..., Any], request: Callable[..., Any], items: Callable[[Any], Any]
) -> AsyncIterator[Any]:
    token = ""
    while True:
        response = await call_async(method, request(page_token=token))
        for item in items(response):
            yield item
        token = response.next_page_token
        if not token:
            return


async def _watch(method: Callable[..., Any], request: Callable[[int], Any], after: int) -> AsyncGenerator[Any]:
    """Follow a stream of events to its end, and take it up where it broke off if the server goes away."""
    watch = Watch(after)
    while True:
        try:
            async with aclosing(stream_async(method, request(watch.after), seconds=WATCH_SECONDS)) as events:
                async for event in events:
                    yield watch.heard(event)
            return
        except CallFailed as error:
            await asyncio.sleep(watch.broke_off(error))
