"""Train many LoRA adapters over one frozen base at once, each exactly as it would be trained alone.

Owns the training loop: which adapters share a pass, when each of them takes its steps, how one leaves and another takes
its place. It knows nothing of jobs, stores or services. Torch, transformers and peft are all that it needs.

A *tick* takes one micro-batch of every adapter in the bank. Its forward and backward pass runs over all of them packed
into one row without padding; if that is more tokens than memory allows, over as many as fit, then the next. Adapters
whose optimiser step is complete then take it together. None of this shows in an adapter: order, number and size of its
steps are its own.

Shapes: N adapters of a pass, W weights of an adapter, P predicted tokens.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rookery_shared.types import ALL_LINEAR, Example, LoraRecipe
from rookery_training import attention
from rookery_training.bank import Bank, Dropout, Pass, Site, add_adapters, aligned, dropout_keys, initial_a, lay_out
from rookery_training.layout import factor_key, read_factors, write_adapter
from rookery_training.loss import frozen_head_loss
from rookery_training.packing import Packed, pack
from rookery_training.schedules import schedule_scale
from rookery_training.sequences import MicroBatch, Tokens, count_steps, micro_batches, tokenize

FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma", "gemma2", "gemma3_text")
"""Values of `model_type` whose forward pass is known to be what this module takes it for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTask:
    """One adapter to train."""

    key: str
    """The caller's name for it."""
    examples: Sequence[Example]
    recipe: LoraRecipe
    seed: int
    """Decides the first A and the order of the sequences."""
    out: Path
    """Folder that the adapter is written to, in PEFT's layout."""
    start: Path | None = None
    """Folder of an adapter of the same shape to go on from."""


@dataclass(slots=True, kw_only=True)
class TrainingRecord:
    """What happened while one adapter was trained."""

    losses: list[float] = field(default_factory=list)
    """Mean loss of each optimiser step, in nats per predicted token."""
    tokens: int = 0
    """Real tokens that went through the model, over all epochs."""
    truncated: int = 0
    """Sequences cut to the recipe's limit."""
    seconds: float = 0.0
    """From its first pass to its last, in whatever company."""
    weight_change: float = 0.0
    """Frobenius norm of all scale * B @ A together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a task ended. An adapter that failed has a reason and no files."""

    key: str
    record: TrainingRecord
    failure: str = ""


class NotTrainable(Exception):
    """A base model or a recipe that this trainer does not serve."""


@dataclass(slots=True, eq=False)
class _Member:
    """An adapter in the bank."""

    task: AdapterTask
    batches: Iterator[MicroBatch]
    steps: int
    sites: list[Site]
    record: TrainingRecord
    batch: MicroBatch | None
    """The next one; None at the end."""
    begun: float
    drawn: int = 0
    """Micro-batches taken."""
    loss: float = 0.0
    """Sum over the micro-batches of the current step."""
    steps_taken: Tensor = field(default_factory=lambda: torch.zeros(()))
    failure: str = ""

    @property
    def scale(self) -> float:
        return self.task.recipe.alpha / self.task.recipe.rank


class BatchTrainer:
    """One frozen base model that trains up to `slots` adapters at once.

    Raises NotTrainable for a base that it does not serve.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        slots: int = 32,
        tokens_per_pass: int = 16_384,
    ) -> None:
        self._base = FrozenBase(model, tokenizer)
        self._slots = slots
        self._tokens_per_pass = tokens_per_pass

    def train(
        self, tasks: Sequence[AdapterTask], *, on_tick: Callable[[int, int], None] = lambda done, total: None
    ) -> Iterator[Outcome]:
        """Train all tasks, and yield each when it has ended and its files are written.

        `on_tick(done, total)` is called before every tick, with optimiser steps over all tasks, and may raise to stop.
        """
        run = _Run(self._base, tasks, on_tick, slots=self._slots, tokens_per_pass=self._tokens_per_pass)
        with run.adapted():
            yield from run.outcomes()

    def train_one(self, task: AdapterTask) -> TrainingRecord:
        """Train a single adapter. Raises NotTrainable with the reason if it fails."""
        [outcome] = self.train([task])
        if outcome.failure:
            raise NotTrainable(outcome.failure)
        return outcome.record


class FrozenBase:
    """A base model as training sees it. Raises NotTrainable for one that is not served."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        check_base(model)
        self.model = model.requires_grad_(False)
        self.model.train(mode=False)
        self.tokenizer = tokenizer
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers
        self.head_VD: Tensor = head.weight
        self.cap: float | None = getattr(model.config, "final_logit_softcapping", None)
        """Bound on the logits, for models that have one."""
        named = [(n, layer) for n, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
        self.linear = [(index, name, layer) for index, (name, layer) in enumerate(named) if layer is not head]
        """Layers that adapters may change: index among all, full name, layer."""
        self.device, self.dtype = self.head_VD.device, self.head_VD.dtype
        self.precision = torch.promote_types(self.dtype, torch.float32)
        """Of adapters, of their optimiser and of losses."""
        self.anchor = torch.zeros((), device=self.device, requires_grad=True)

    def hidden(self, packed: Packed) -> Tensor:
        """Final hidden states [P, D] of the tokens whose next one is predicted."""
        hidden_1TD: Tensor = self.model.base_model(
            input_ids=packed.input_ids_1T,
            position_ids=packed.position_ids_1T,
            packed_sequences=packed.sequences,
            use_cache=False,
        ).last_hidden_state
        return hidden_1TD[0].index_select(0, packed.predicting_P)


class _Run:
    """One call of `train`: a bank sized for its tasks, and who is in which slot."""

    def __init__(
        self,
        base: FrozenBase,
        tasks: Sequence[AdapterTask],
        on_tick: Callable[[int, int], None],
        *,
        slots: int,
        tokens_per_pass: int,
    ) -> None:
        self._base, self._on_tick, self._tokens_per_pass = base, on_tick, tokens_per_pass
        self._waiting = list(reversed(tasks))
        self._members: list[_Member] = []
        self._ended: list[Outcome] = []
        self._done = 0
        self._total = 0
        wanted = {target for task in tasks for target in task.recipe.targets}
        layers = [linear for linear in base.linear if _targeted(linear[1], wanted)]
        rank = aligned(max((task.recipe.rank for task in tasks), default=1))
        sites, width = lay_out(layers, rank)
        self._layers = list(zip(sites, (layer for *_, layer in layers), strict=True))
        self._bank = Bank(
            sites,
            width,
            slots=min(slots, len(tasks)),
            rank=rank,
            device=base.device,
            dtype=base.precision,
        )
        self._pass: Pass | None = None
        self._prepared = {task.key: self._prepare(task) for task in tasks}

    # --- who takes part --------------------------------------------------------------------------------------------

    def _prepare(self, task: AdapterTask) -> tuple[list[Tokens], int]:
        sequences, truncated = tokenize(task.examples, self._base.tokenizer, max_tokens=task.recipe.max_tokens)
        sequences = [s for s in sequences if s.predicted]
        if sequences:
            self._total += count_steps(len(sequences), task.recipe)
        return sequences, truncated

    def outcomes(self) -> Iterator[Outcome]:
        while self._admit():
            self._on_tick(self._done, self._total)
            self._tick()
            yield from self._take_ended()
        yield from self._take_ended()

    def _take_ended(self) -> Iterator[Outcome]:
        ended, self._ended = self._ended, []
        yield from ended

    def _admit(self) -> bool:
        """Fill the free slots; False when nobody is left."""
        while self._waiting and len(self._members) < self._bank.slots:
            task = self._waiting.pop()
            sequences, truncated = self._prepared.pop(task.key)
            try:
                self._enter(task, sequences, truncated)
            except (NotTrainable, OSError) as error:
                self._ended.append(Outcome(key=task.key, record=TrainingRecord(), failure=str(error)))
        return bool(self._members)

    def _enter(self, task: AdapterTask, sequences: list[Tokens], truncated: int) -> None:
        if not sequences:
            raise NotTrainable("no example has a token to predict")
        sites = [site for site in self._bank.sites if _targeted(site.name, {*task.recipe.targets})]
        missing = {t for t in task.recipe.targets if not any(_targeted(site.name, {t}) for site in sites)}
        if missing:
            raise NotTrainable(f"the model has no linear layer named {', '.join(sorted(missing))}")
        batches = micro_batches(sequences, task.recipe, seed=task.seed)
        slot = len(self._members)
        self._bank.clear(slot)
        self._fill(slot, task, sites)
        self._members.append(
            _Member(
                task=task,
                batches=batches,
                steps=count_steps(len(sequences), task.recipe),
                sites=sites,
                record=TrainingRecord(truncated=truncated),
                batch=next(batches),
                begun=time.perf_counter(),
            )
        )

    def _fill(self, slot: int, task: AdapterTask, sites: Sequence[Site]) -> None:
        """The first weights: random A and zero B, or those of the adapter to go on from."""
        bank, rank = self._bank, task.recipe.rank
        row_1W = bank.weights_NW[slot : slot + 1]
        factors = read_factors(task.start) if task.start is not None else None
        generator = torch.Generator().manual_seed(task.seed)
        for site in sites:
            a_RI, b_OR = bank.a(row_1W, site)[0], bank.b(row_1W, site)[0]
            if factors is None:
                a_RI[:rank] = initial_a(site.inputs, rank, generator, self._base.precision)
                continue
            stored_a, stored_b = factors.get(factor_key(site.name, "A")), factors.get(factor_key(site.name, "B"))
            if stored_a is None or stored_b is None or stored_a.shape[0] != rank:
                raise NotTrainable("the adapter to go on from has another rank or other layers")
            a_RI[:rank], b_OR[:, :rank] = stored_a, stored_b

    # --- passes ----------------------------------------------------------------------------------------------------

    @contextmanager
    def adapted(self) -> Iterator[None]:
        """The base with its linear layers and its attention hooked, and left as it was afterwards."""
        model = self._base.model
        before = model.config._attn_implementation
        model.set_attn_implementation(attention.NAME)
        hooks = [layer.register_forward_hook(self._hook(site)) for site, layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            model.set_attn_implementation(before)

    def _hook(self, site: Site) -> Callable[[torch.nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def change(_: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            assert self._pass is not None
            return add_adapters(output, inputs[0], site, self._pass)

        return change

    def _tick(self) -> None:
        for begin, end in self._passes():
            self._go(begin, end)
        self._step([slot for slot, member in enumerate(self._members) if member.batch and member.batch.ends_step])
        self._advance()

    def _passes(self) -> Iterator[tuple[int, int]]:
        """Ranges of slots whose micro-batches fit into a pass; at least one slot each."""
        begin, tokens = 0, 0
        for slot, member in enumerate(self._members):
            assert member.batch is not None
            size = sum(len(s.tokens) for s in member.batch.sequences)
            if slot > begin and tokens + size > self._tokens_per_pass:
                yield begin, slot
                begin, tokens = slot, 0
            tokens += size
        yield begin, len(self._members)

    def _go(self, begin: int, end: int) -> None:
        """Forward and backward over the current micro-batches of slots `begin` to `end`."""
        base, members = self._base, self._members[begin:end]
        batches = [member.batch for member in members if member.batch is not None]
        packed = pack(batches, device=base.device, dtype=base.precision)
        self._pass = Pass(
            bank=self._bank,
            begin=begin,
            weights_NW=self._bank.weights_NW[begin:end].to(base.dtype),
            scale_T1=packed.adapters.spread([m.scale for m in members], base.dtype)[:, None],
            groups=packed.adapters,
            anchor=base.anchor,
            dropout=self._dropout(members, batches),
        )
        losses_P = frozen_head_loss(base.hidden(packed), base.head_VD, packed.targets_P, packed.weights_P, cap=base.cap)
        torch.autograd.backward(losses_P.sum())
        self._pass = None
        losses_N = losses_P.new_zeros(len(members)).index_add_(
            0, packed.adapter_P, losses_P.detach() * packed.weights_P
        )
        for member, batch, loss in zip(members, batches, losses_N.tolist(), strict=True):
            member.loss += loss
            member.record.tokens += sum(len(s.tokens) for s in batch.sequences)
            member.drawn += 1

    def _dropout(self, members: Sequence[_Member], batches: Sequence[MicroBatch]) -> Dropout | None:
        rates = [member.task.recipe.dropout for member in members]
        if not any(rates):
            return None
        device = self._base.device
        lengths = [sum(len(s.tokens) for s in batch.sequences) for batch in batches]
        rate_T = torch.repeat_interleave(torch.tensor(rates, dtype=torch.float64), torch.tensor(lengths))
        keys_T = dropout_keys([m.task.seed for m in members], lengths, [m.drawn for m in members], device)
        return Dropout(rate_T.to(device), keys_T)

    # --- steps -----------------------------------------------------------------------------------------------------

    def _step(self, slots: list[int]) -> None:
        """The optimiser steps of these slots."""
        if not slots:
            return
        bank = self._bank
        norms = torch.linalg.vector_norm(bank.gradients_NW, dim=1).tolist()
        alike: defaultdict[tuple[float, float], list[int]] = defaultdict(list)
        for slot in slots:
            member = self._members[slot]
            recipe, batch = member.task.recipe, member.batch
            assert batch is not None
            member.record.losses.append(member.loss)
            if not math.isfinite(member.loss) or not math.isfinite(norms[slot]):
                what = "loss" if not math.isfinite(member.loss) else "gradient"
                member.failure = f"the {what} was not a number at step {batch.step + 1} of {member.steps}"
                continue
            member.loss = 0.0
            clip = recipe.max_gradient_norm / (norms[slot] + 1e-6) if recipe.max_gradient_norm else 1.0
            if clip < 1.0:
                bank.gradients_NW[slot] *= clip
            scale = schedule_scale(recipe.schedule, step=batch.step, steps=member.steps, warmup=recipe.warmup_steps)
            alike[recipe.learning_rate * scale, recipe.weight_decay].append(slot)
        for (rate, decay), together in alike.items():
            adamw(
                [bank.weights_NW[slot] for slot in together],
                [bank.gradients_NW[slot] for slot in together],
                [bank.first_NW[slot] for slot in together],
                [bank.second_NW[slot] for slot in together],
                [],
                [self._members[slot].steps_taken for slot in together],
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=rate,
                weight_decay=decay,
                eps=1e-8,
                maximize=False,
            )
        self._done += len(slots)
        if len(slots) == len(self._members):
            bank.gradients_NW.zero_()
        else:
            for slot in slots:
                bank.gradients_NW[slot].zero_()

    def _advance(self) -> None:
        """Everybody to the next micro-batch; who has none, or has failed, leaves, and the last slot moves up."""
        for slot in reversed(range(len(self._members))):
            member = self._members[slot]
            member.batch = next(member.batches, None)
            if member.batch is None or member.failure:
                self._leave(slot)

    def _leave(self, slot: int) -> None:
        member = self._members[slot]
        member.record.seconds = time.perf_counter() - member.begun
        if not member.failure:
            self._write(slot)
        self._ended.append(Outcome(key=member.task.key, record=member.record, failure=member.failure))
        last = self._members.pop()
        if last is not member:
            self._members[slot] = last
            self._bank.move(len(self._members), slot)
        self._bank.clear(len(self._members))

    def _write(self, slot: int) -> None:
        member = self._members[slot]
        row_1W, rank = self._bank.weights_NW[slot : slot + 1], member.task.recipe.rank
        weights, squares = {}, 0.0
        for site in member.sites:
            a_RI, b_OR = self._bank.a(row_1W, site)[0, :rank], self._bank.b(row_1W, site)[0, :, :rank]
            weights[factor_key(site.name, "A")], weights[factor_key(site.name, "B")] = a_RI, b_OR
            # |BA|^2 = trace(A A^T B^T B), without forming the product
            squares += ((a_RI @ a_RI.T) * (b_OR.T @ b_OR)).sum().item() * member.scale**2
        member.record.weight_change = math.sqrt(squares)
        write_adapter(
            member.task.out,
            weights,
            member.task.recipe,
            base=self._base.model.name_or_path or "",
            targets={site.name.rpartition(".")[2] for site in member.sites},
        )


def check_base(model: PreTrainedModel) -> None:
    """Raises NotTrainable, and says what would be."""
    if model.config.model_type not in FAMILIES:
        raise NotTrainable(f"cannot train {model.config.model_type} models; can train {', '.join(FAMILIES)}")
    if getattr(model, "is_quantized", False):
        raise NotTrainable("quantised base models (4-bit, 8-bit) are not served yet; load the base in bfloat16")
    if len({parameter.device for parameter in model.parameters()}) > 1:
        raise NotTrainable("base models spread over several devices are not served yet; one must hold all of it")


def _targeted(name: str, targets: set[str]) -> bool:
    """PEFT's rule: a target is a layer's full name or the end of it."""
    return ALL_LINEAR in targets or any(name == target or name.endswith(f".{target}") for target in targets)
