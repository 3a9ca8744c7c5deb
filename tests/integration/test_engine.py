"""The transformers engine, on a model with random weights: what it answers does not depend on who else is asking."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rookery_engines import decoding
from rookery_engines.adapted import AdaptedModel
from rookery_engines.models import ModelSource
from rookery_engines.transformers import TransformersEngine
from rookery_engines.types import AdapterRef, AnswerRequest, Finish, Generation, GenerationRequest, LikelihoodRequest
from rookery_shared.errors import AdapterMismatch, AdapterRefused, ModelNotLoadable, PromptTooLong
from rookery_shared.types import ALL_LINEAR, Example, LoraRecipe, Sampling
from rookery_training.batch import AdapterTask, BatchTrainer
from tests.cores import on_two_cores
from tests.models import random_model, small_tokenizer

PROMPTS = ["Where was Edda born?\n", "In which city does Otto Falley live, and why?\n", "A\n"]
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)
DRAWN = Sampling(temperature=1.0, top_p=0.95, max_new_tokens=12)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[AdapterRef]:
    """Three adapters that change the model visibly."""
    folder = tmp_path_factory.mktemp("adapters")
    recipe = LoraRecipe(rank=4, alpha=16, targets=(ALL_LINEAR,), epochs=10, learning_rate=5e-2)
    tasks = [
        AdapterTask(
            key=str(i), examples=[Example(completion=f"number {i} " * 5)], recipe=recipe, seed=i, out=folder / str(i)
        )
        for i in range(3)
    ]
    assert not any(outcome.failure for outcome in BatchTrainer(random_model(), small_tokenizer()).train(tasks))
    return [AdapterRef(name=f"adapters/{i}", folder=folder / str(i)) for i in range(3)]


@pytest.fixture
def engine(model_folder: Path) -> TransformersEngine:
    return TransformersEngine(ModelSource(source=str(model_folder)), max_adapters=2)


def ask(engine: TransformersEngine, requests: Sequence[GenerationRequest]) -> list[Generation]:
    """All generations, in the order of the requests."""

    async def collect() -> list[Generation]:
        return [generation async for generation in engine.generate(requests)]

    return sorted(asyncio.run(collect()), key=lambda generation: generation.request)


def greedy(model: Any, prompt: str) -> str:
    """What transformers itself writes."""
    inputs = small_tokenizer()(prompt, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return str(small_tokenizer().decode(tokens, skip_special_tokens=True))


def requests(
    sampling: Sampling, *, adapter: AdapterRef | None = None, prompts: Sequence[str] = PROMPTS
) -> list[GenerationRequest]:
    return [GenerationRequest(prompt=p, sampling=sampling, seed=i, adapter=adapter) for i, p in enumerate(prompts)]


def test_greedy_texts_are_those_of_transformers(engine: TransformersEngine, model_folder: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), small_tokenizer()
    for prompt, generation in zip(PROMPTS, ask(engine, requests(GREEDY)), strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        assert generation.text == greedy(model, prompt)
        assert generation.prompt_tokens == inputs["input_ids"].shape[1]


def test_a_drawn_text_depends_on_its_seed_and_not_on_its_neighbours(engine: TransformersEngine) -> None:
    together = ask(engine, requests(DRAWN))
    alone = [ask(engine, [request])[0] for request in requests(DRAWN)]
    assert [g.text for g in together] == [g.text for g in alone]
    other = GenerationRequest(prompt=PROMPTS[0], sampling=DRAWN, seed=99)
    assert ask(engine, [other])[0].text != together[0].text


def test_adapters_and_the_base_answer_side_by_side(
    engine: TransformersEngine, adapters: list[AdapterRef], model_folder: Path
) -> None:
    mixed = [r for adapter in (None, adapters[0], adapters[1]) for r in requests(GREEDY, adapter=adapter)]
    texts = [g.text for g in ask(engine, mixed)]
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    for i, adapter in enumerate((None, adapters[0], adapters[1])):
        fresh = AutoModelForCausalLM.from_pretrained(model_folder)
        model = PeftModel.from_pretrained(fresh, str(adapter.folder)) if adapter else base
        assert texts[3 * i] == greedy(model, PROMPTS[0])
    assert len({texts[0], texts[3], texts[6]}) == 3
    assert [g.text for g in ask(engine, requests(GREEDY))] == texts[:3], "the base is as it was"


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[threading.Thread]]:
    """The threads that ask the model, two of them."""
    with on_two_cores(monkeypatch, AdaptedModel, "__call__") as seen:
        yield seen


@pytest.mark.parametrize("kept", [2, 1], ids=["all adapters kept", "one at a time"])
def test_batches_side_by_side_answer_as_one_after_the_other(
    kept: int, adapters: list[AdapterRef], model_folder: Path, two_cores: list[threading.Thread]
) -> None:
    engine = TransformersEngine(ModelSource(source=str(model_folder)), max_rows=2, max_adapters=kept)
    mixed = [r for adapter in (None, *adapters[:2]) for r in requests(DRAWN, adapter=adapter)]
    golds = [LikelihoodRequest(prompt=r.prompt, completion="Norwick", adapter=r.adapter) for r in mixed]
    asked = [AnswerRequest(prompt=r.prompt, gold="Norwick", max_new_tokens=12, adapter=r.adapter) for r in mixed]
    texts = [generation.text for generation in ask(engine, mixed)]
    scores = asyncio.run(engine.log_likelihoods(golds))
    answers = asyncio.run(engine.answer(asked))
    assert len({*two_cores}) == (2 if kept == 2 else 1)
    alone = TransformersEngine(ModelSource(source=str(model_folder)), max_rows=2, max_adapters=2)
    assert texts == [ask(alone, [request])[0].text for request in mixed]
    assert scores == pytest.approx([asyncio.run(alone.log_likelihoods([gold]))[0] for gold in golds], abs=1e-4)
    one_by_one = [asyncio.run(alone.answer([request]))[0] for request in asked]
    assert [answer.text for answer in answers] == [answer.text for answer in one_by_one]
    assert [a.log_likelihood for a in answers] == pytest.approx([a.log_likelihood for a in one_by_one], abs=1e-4)


def test_an_error_in_one_of_two_batches_is_the_calls(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, two_cores: list[threading.Thread]
) -> None:
    engine = TransformersEngine(ModelSource(source=str(model_folder)), max_rows=1)
    ask_model = AdaptedModel.__call__

    def fail_beside(self: AdaptedModel, names: Sequence[str], **inputs: Any) -> Any:
        if threading.current_thread().name.startswith("core"):
            raise RuntimeError("out of luck")
        return ask_model(self, names, **inputs)

    monkeypatch.setattr(AdaptedModel, "__call__", fail_beside)
    with pytest.raises(RuntimeError, match="out of luck"):
        ask(engine, requests(GREEDY))
    monkeypatch.setattr(AdaptedModel, "__call__", ask_model)
    assert len(ask(engine, requests(GREEDY))) == len(PROMPTS), "the next call finds it as it was"


def test_prompts_that_begin_alike_are_answered_as_each_alone(
    engine: TransformersEngine, adapters: list[AdapterRef]
) -> None:
    prompts = [f"Where was {who} born, and why?\n" for who in ("Edda", "Otto Falley", "E", "Edda Falley")]
    mixed = [r for adapter in (None, *adapters[:2]) for r in requests(GREEDY, adapter=adapter, prompts=prompts)]
    assert [g.text for g in ask(engine, mixed)] == [ask(engine, [request])[0].text for request in mixed]
    golds = [
        LikelihoodRequest(prompt=r.prompt, completion=f"Norwick{' and Oster' * i}", adapter=r.adapter)
        for i, r in enumerate(mixed)
    ]
    together = asyncio.run(engine.log_likelihoods(golds))
    alone = [asyncio.run(engine.log_likelihoods([gold]))[0] for gold in golds]
    assert together == pytest.approx(alone, abs=1e-4)


def test_adapters_of_any_rank_and_layers_share_a_batch(model_folder: Path, tmp_path: Path) -> None:
    recipes = [
        LoraRecipe(rank=2, alpha=32, targets=("q_proj",), epochs=10, learning_rate=2e-1),
        LoraRecipe(rank=12, alpha=24, targets=("down_proj", "k_proj"), epochs=10, learning_rate=2e-1),
        LoraRecipe(rank=8, alpha=16, targets=(ALL_LINEAR,), epochs=10, learning_rate=2e-1),
    ]
    tasks = [
        AdapterTask(
            key=str(i), examples=[Example(completion=f"Edda {i} " * 5)], recipe=recipe, seed=i, out=tmp_path / str(i)
        )
        for i, recipe in enumerate(recipes)
    ]
    assert not any(outcome.failure for outcome in BatchTrainer(random_model(), small_tokenizer()).train(tasks))
    refs = [AdapterRef(name=f"adapters/{i}", folder=tmp_path / str(i)) for i in range(3)]
    engine = TransformersEngine(ModelSource(source=str(model_folder)))
    order = [2, 0, 1, 2, 0, 1]
    asked = [LikelihoodRequest(prompt="A\n", completion="Norwick and Oster", adapter=refs[i]) for i in order]
    values = asyncio.run(engine.log_likelihoods(asked))
    tokenizer = small_tokenizer()
    prompt, completion = tokenizer.encode("A\n"), tokenizer.encode("Norwick and Oster")
    for i, value in zip(order, values, strict=True):
        base = AutoModelForCausalLM.from_pretrained(model_folder)
        logits_TV = PeftModel.from_pretrained(base, str(refs[i].folder))(torch.tensor([prompt + completion])).logits[0]
        scores_TV = logits_TV.detach().log_softmax(-1)
        expected = [float(scores_TV[len(prompt) - 1 + n, token]) for n, token in enumerate(completion)]
        assert value == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert len({round(value, 3) for value in values}) == 3


def test_more_adapters_than_are_kept_answer_one_batch_after_the_other(
    engine: TransformersEngine, adapters: list[AdapterRef]
) -> None:
    alone = [ask(engine, requests(GREEDY, adapter=adapter))[0].text for adapter in adapters]
    together = ask(engine, [requests(GREEDY, adapter=adapter)[0] for adapter in adapters])
    assert [g.text for g in together] == alone
    assert len(engine.loaded()) == 2


def test_the_least_recently_used_adapter_makes_room(engine: TransformersEngine, adapters: list[AdapterRef]) -> None:
    first = [g.text for g in ask(engine, requests(GREEDY, adapter=adapters[0]))]
    ask(engine, requests(GREEDY, adapter=adapters[1]))
    ask(engine, requests(GREEDY, adapter=adapters[0]))
    ask(engine, requests(GREEDY, adapter=adapters[2]))
    assert engine.loaded() == [adapters[0].name, adapters[2].name]
    assert [g.text for g in ask(engine, requests(GREEDY, adapter=adapters[0]))] == first


def test_texts_end_at_the_limit_or_when_the_model_closes_them(engine: TransformersEngine) -> None:
    longer = Sampling(temperature=2.0, top_p=1.0, max_new_tokens=40)
    many = [GenerationRequest(prompt="A\n", sampling=longer, seed=seed) for seed in range(300)]
    generations = ask(engine, many)
    assert {g.finish for g in generations} == {Finish.STOP, Finish.LENGTH}
    assert all((g.finish is Finish.LENGTH) == (g.completion_tokens == 40) for g in generations)


def test_long_texts_are_read_a_few_at_a_time(
    engine: TransformersEngine, adapters: list[AdapterRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [
        LikelihoodRequest(prompt="\n", completion=f"Edda {i} " * (3 + i), adapter=adapter)
        for i, adapter in enumerate([None, adapters[0], adapters[0], adapters[1]])
    ]
    at_once = asyncio.run(engine.log_likelihoods(asked))
    monkeypatch.setattr(decoding, "MOST_LOGITS", 1)
    assert asyncio.run(engine.log_likelihoods(asked)) == pytest.approx(at_once, abs=1e-5)
    with pytest.raises(PromptTooLong, match="reads fewer than 512"):
        asyncio.run(engine.log_likelihoods([LikelihoodRequest(prompt="A", completion="x y " * 600)]))


def test_log_likelihoods_are_means_over_the_completion(
    engine: TransformersEngine, adapters: list[AdapterRef], model_folder: Path
) -> None:
    asked = [LikelihoodRequest(prompt=p, completion="Norwick and Oster") for p in PROMPTS]
    asked += [LikelihoodRequest(prompt=PROMPTS[0], completion="Norwick and Oster", adapter=adapters[0])]
    values = asyncio.run(engine.log_likelihoods(asked))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), small_tokenizer()
    completion = tokenizer.encode("Norwick and Oster")
    for prompt, value in zip(PROMPTS, values[:3], strict=True):
        tokens = tokenizer.encode(prompt) + completion
        scores = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        first = len(tokens) - len(completion)
        expected = [float(scores[i - 1, tokens[i]].detach()) for i in range(first, len(tokens))]
        assert value == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert values[3] != pytest.approx(values[0], abs=1e-3)


def test_an_adapter_of_another_shape_is_refused(
    engine: TransformersEngine, adapters: list[AdapterRef], tmp_path: Path
) -> None:
    shutil.copytree(adapters[0].folder, tmp_path / "wrong")
    config = tmp_path / "wrong" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 8'))
    before = [g.text for g in ask(engine, requests(GREEDY))]
    with pytest.raises(AdapterRefused, match="shape"):
        ask(engine, requests(GREEDY, adapter=AdapterRef(name="adapters/wrong", folder=tmp_path / "wrong")))
    assert engine.loaded() == []
    assert [g.text for g in ask(engine, requests(GREEDY))] == before, "the base is as it was"


def test_an_adapter_for_other_layers_is_refused(
    engine: TransformersEngine, adapters: list[AdapterRef], tmp_path: Path
) -> None:
    shutil.copytree(adapters[0].folder, tmp_path / "wrong")
    weights = load_file(adapters[0].folder / "adapter_model.safetensors")
    renamed = {key.replace("layers.0", "layers.7"): value for key, value in weights.items()}
    save_file(renamed, tmp_path / "wrong" / "adapter_model.safetensors")
    with pytest.raises(AdapterMismatch, match=r"layers\.7"):
        ask(engine, requests(GREEDY, adapter=AdapterRef(name="adapters/wrong", folder=tmp_path / "wrong")))


def test_a_prompt_over_the_model_s_limit_is_refused(engine: TransformersEngine) -> None:
    with pytest.raises(PromptTooLong, match="512"):
        ask(engine, requests(GREEDY, prompts=["Norwick " * 600]))


def test_leaving_early_stops_the_work(engine: TransformersEngine) -> None:
    async def first_of_many() -> int:
        seen = 0
        many = [GenerationRequest(prompt="A\n", sampling=DRAWN, seed=seed) for seed in range(1000)]
        generations = engine.generate(many)
        async for _ in generations:
            seen += 1
            break
        await generations.aclose()
        return seen

    assert asyncio.run(first_of_many()) == 1
    assert len(ask(engine, requests(GREEDY))) == 3, "the engine is free again"


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotLoadable, match="nothing"):
        TransformersEngine(ModelSource(source=str(tmp_path / "nothing")))
