"""Adapters an hour: PEFT one after the other, and ours at several batch sizes, on the same data in one run.

`make bench` runs it on the tiny model's shape with random weights and on data of the shape of SEAL's self-edits: eight
sequences of about 55 tokens an adapter, ten epochs, batch size 1. Contenders take turns, so that a machine that slows
down slows all of them. Writes one JSON file with the figures and the machine's description.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from rookery_shared.types import Example, LoraRecipe
from rookery_tiny.pretrain import Recipe
from rookery_tiny.tokenizer import train_tokenizer
from rookery_tiny.world import VALUES
from rookery_training.batch import AdapterTask, BatchTrainer
from tests.bench.peft_loop import PeftLoop

SEAL = LoraRecipe(rank=32, alpha=64, epochs=10, learning_rate=1e-3, batch_size=1)
SEQUENCES, TOKENS = 8, 55
SEQUENTIAL = "sequential PEFT"
DTYPES = (torch.float32, torch.bfloat16)


def make_tasks(count: int, tokenizer: PreTrainedTokenizerBase, out: Path) -> list[AdapterTask]:
    rng = random.Random(0)
    return [
        AdapterTask(
            key=str(i),
            examples=[Example(completion=_text(tokenizer, rng)) for _ in range(SEQUENCES)],
            recipe=SEAL,
            seed=i,
            out=out / str(i),
        )
        for i in range(count)
    ]


def _text(tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> str:
    length, text = max(10, round(rng.gauss(TOKENS, 15))), ""
    while len(tokenizer.encode(text)) < length:
        text += f" {rng.choice(VALUES)}"
    return text


def tiny_shape(tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> PreTrainedModel:
    shape = Recipe()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]  # transformers
    return model.bfloat16() if dtype is torch.bfloat16 else model


def contenders(sizes: Sequence[int], dtype: torch.dtype, folder: Path) -> dict[str, tuple[int, Callable[[], int]]]:
    """Name to how many adapters a turn trains, and the turn, which returns the tokens that it trained on."""
    tokenizer = train_tokenizer()
    tasks = make_tasks(max(*sizes, 4), tokenizer, folder)
    peft = PeftLoop(tiny_shape(tokenizer, dtype), tokenizer)

    def sequential() -> int:
        return sum(peft.train(task) for task in tasks[:4])

    def batched(size: int) -> Callable[[], int]:
        trainer = BatchTrainer(tiny_shape(tokenizer, dtype), tokenizer, slots=size)
        return lambda: sum(outcome.record.tokens for outcome in trainer.train(tasks[: max(size, 4)]))

    return {SEQUENTIAL: (4, sequential), **{f"ours, N={n}": (max(n, 4), batched(n)) for n in sizes}}


def measure(turns: int, sizes: Sequence[int], dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Medians over turns; `ratio` is the median of each turn's own ratio to the sequential contender in that turn."""
    with tempfile.TemporaryDirectory() as folder:
        entered = contenders(sizes, dtype, Path(folder))
        rates: dict[str, list[float]] = {name: [] for name in entered}
        speeds: dict[str, list[float]] = {name: [] for name in entered}
        for turn in range(turns + 1):
            for name, (adapters, train) in entered.items():
                started = time.perf_counter()
                tokens = train()
                seconds = time.perf_counter() - started
                if turn:  # the first warms up
                    rates[name].append(adapters / seconds * 3600)
                    speeds[name].append(tokens / seconds)
    return {
        name: {
            "adapters_per_hour": round(statistics.median(rates[name])),
            "tokens_per_second": round(statistics.median(speeds[name])),
            "ratio": round(statistics.median(a / b for a, b in zip(rates[name], rates[SEQUENTIAL], strict=True)), 2),
        }
        for name in rates
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 32, 128])
    arguments = parser.parse_args()
    results = {str(dtype): measure(arguments.turns, arguments.sizes, dtype) for dtype in DTYPES}
    result = {
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": "Qwen2, 1.75 M parameters, random weights",
        "data": f"{SEQUENCES} sequences of about {TOKENS} tokens, {SEAL.epochs} epochs, batch size {SEAL.batch_size}",
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    for dtype, rows in results.items():
        for name, row in rows.items():
            print(f"{dtype:15} {name:16} {row['adapters_per_hour']:>7,} adapters/h  {row['ratio']:.2f}x")


if __name__ == "__main__":
    main()
