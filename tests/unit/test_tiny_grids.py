"""The micro-world of grids: its rules, which of them are known, its texts, its tokenizer, and a model made of them."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from rookery.cli.models import resolve_source
from rookery.grids import COLOURS, Grid, from_text, to_text
from rookery_engines.constraints import Constraints
from rookery_engines.models import ModelSource, load_model
from rookery_shared.domains import find_domain
from rookery_shared.grids.augmentations import flip_columns, rotate
from rookery_shared.grids.configuration import Configuration, Strategy, read_configuration, write_configuration
from rookery_tiny.grids import habits, pretrain
from rookery_tiny.grids.abilities import measure, sweep
from rookery_tiny.grids.auxiliary import NOTHING, QUESTIONS, Asked, Cells
from rookery_tiny.grids.card import card
from rookery_tiny.grids.documents import (
    Lesson,
    Mixture,
    any_configuration,
    changed,
    configuration,
    copied,
    draw_document,
    draw_paints,
    known_puzzle,
    solved,
)
from rookery_tiny.grids.pretrain import POOLED, Recipe, as_text, batches, make_model
from rookery_tiny.grids.puzzles import (
    EMPTY,
    STEPS,
    Family,
    Known,
    Paints,
    Rule,
    as_context,
    draw_puzzle,
    kinships,
    learnable_rules,
    make_contexts,
    make_puzzles,
    origins,
    random_grid,
    rules,
)
from rookery_tiny.grids.tokenizer import make_tokenizer
from rookery_tiny.training import Batch, Learner, Progress, Shape, Text, as_llama, make_optimizers, new_model

DOMAIN = find_domain("few_shot")
PAINTS = Paints(old=1, new=2, fill=3)
SMALL = replace(Recipe(), shape=Shape(hidden=32, layers=5, heads=2, mlp=32), rows=2, single_steps=2, steps=2)


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return make_tokenizer()


def documents(count: int) -> list[Lesson]:
    rng = random.Random(0)
    return [draw_document(Mixture(configuration=0.3), rng) for _ in range(count)]


def read(lesson: Lesson) -> Text:
    return as_text(lesson, tokenizer(), Cells(tokenizer()))


# --- rules -----------------------------------------------------------------------------------------------------------

BEFORE: Grid = ((1, 0, 4), (0, 5, 0), (0, 0, 6))
AFTER = {
    "mirror-columns": "4 0 1\n0 5 0\n6 0 0",
    "mirror-rows": "0 0 6\n0 5 0\n1 0 4",
    "turn-left": "4 0 6\n0 5 0\n1 0 0",
    "turn-right": "0 0 1\n0 5 0\n6 0 4",
    "half-turn": "6 0 0\n0 5 0\n4 0 1",
    "transpose": "1 0 0\n0 5 0\n4 0 6",
    "transpose-other": "6 0 4\n0 5 0\n0 0 1",
    "move-left": "0 4 1\n5 0 0\n0 6 0",
    "move-right": "4 1 0\n0 0 5\n6 0 0",
    "move-up": "0 5 0\n0 0 6\n1 0 4",
    "move-down": "0 0 6\n1 0 4\n0 5 0",
    "fall-left": "1 4 0\n5 0 0\n6 0 0",
    "fall-right": "0 1 4\n0 0 5\n0 0 6",
    "fall-up": "1 5 4\n0 0 6\n0 0 0",
    "fall-down": "0 0 0\n0 0 4\n1 5 6",
    "extend-right": "1 1 4\n0 5 5\n0 0 6",
    "extend-left": "1 4 4\n5 5 0\n6 6 6",
    "extend-down": "1 0 4\n1 5 4\n1 5 6",
    "extend-up": "1 5 4\n0 5 6\n0 0 6",
    "crop-left": "0 4\n5 0\n0 6",
    "crop-right": "1 0\n0 5\n0 0",
    "crop-up": "0 5 0\n0 0 6",
    "crop-down": "1 0 4\n0 5 0",
    "recolour": "2 0 4\n0 5 0\n0 0 6",
    "fill": "1 3 4\n3 5 3\n3 3 6",
}


def test_every_step_is_what_it_is_called() -> None:
    assert {name: to_text(step.apply(BEFORE, PAINTS)) for name, step in STEPS.items()} == AFTER


def test_of_two_steps_the_first_is_done_first() -> None:
    rule = Rule(("turn-left", "fall-down"))
    assert rule.name == "turn-left then fall-down"
    assert rule.apply(BEFORE, PAINTS) == from_text("0 0 0\n4 0 0\n1 5 6")


def test_every_puzzle_keeps_its_rule_s_promise() -> None:
    rng = random.Random(0)
    for which in Known:
        for puzzle in (draw_puzzle(rule, rng) for rule in rules(which)):
            pairs = (*puzzle.demonstrations, *puzzle.tests)
            assert (len(puzzle.demonstrations), len(puzzle.tests)) == (4, 2)
            assert all(shown.output == puzzle.rule.apply(shown.input, puzzle.paints) for shown in pairs)
            assert all(shown.output != shown.input for shown in pairs)
            assert len({shown.input for shown in pairs}) == len(pairs)
            assert {len(side) for shown in pairs for side in (shown.input, shown.input[0])} < {3, 4}


def test_each_learnable_rule_has_its_turn() -> None:
    learnable = {*learnable_rules(Known.TRAIN)}
    puzzles = make_puzzles(Known.TRAIN, 2 * len(learnable), seed=0)
    assert {puzzle.rule for puzzle in puzzles[: len(learnable)]} == learnable
    assert {puzzle.rule for puzzle in puzzles[len(learnable) :]} == learnable


def test_a_step_that_changes_nothing_is_not_shown() -> None:
    puzzle = draw_puzzle(Rule(("mirror-rows", "recolour")), random.Random(0))
    assert all(any(puzzle.paints.old in row for row in shown.input) for shown in puzzle.demonstrations)


# --- which are known -------------------------------------------------------------------------------------------------


def test_half_of_the_rules_are_known_and_a_quarter_each_is_new() -> None:
    count = {which: len(rules(which)) for which in Known}
    total = sum(count.values())
    assert abs(count[Known.PRETRAINING] - total / 2) < 4
    assert abs(count[Known.TRAIN] - count[Known.TEST]) < 4
    assert total == len({rule for which in Known for rule in rules(which)}), "none is for two purposes"
    assert {Rule((name,)) for name in STEPS} <= {*rules(Known.PRETRAINING)}
    for which in Known:
        seconds = {rule.families[1] for rule in rules(which) if len(rule.steps) == 2}
        assert seconds >= {Family.MOVE, Family.FALL, Family.EXTEND, Family.CROP, Family.RECOLOUR, Family.FILL}


def test_no_new_rule_is_a_known_one_turned_or_mirrored_or_on_small_grids() -> None:
    rng = random.Random(1)
    for side in (3, 4):
        grids = [random_grid(rng, side, coloured=0.7) for _ in range(12)]
        # The symmetries of a square, and what undoes them.
        symmetries = [symmetry(turns, mirrored=mirrored) for turns in range(4) for mirrored in (False, True)]
        seen: dict[tuple[Grid, ...], Known] = {}
        for which in Known:
            for rule in rules(which):
                for there, back in symmetries:
                    outputs = tuple(there(rule.apply(back(grid), PAINTS)) for grid in grids)
                    assert seen.setdefault(outputs, which) is which, f"{rule.name} is not only for {which}"


def symmetry(turns: int, *, mirrored: bool) -> tuple[Callable[[Grid], Grid], Callable[[Grid], Grid]]:
    def turn(grid: Grid, times: int) -> Grid:
        for _ in range(times):
            grid = rotate(grid)
        return grid

    def there(grid: Grid) -> Grid:
        return turn(flip_columns(grid) if mirrored else grid, turns)

    def back(grid: Grid) -> Grid:
        undone = turn(grid, (4 - turns) % 4)
        return flip_columns(undone) if mirrored else undone

    return there, back


def test_kin_stay_together() -> None:
    for group in kinships():
        assert sum({*group} <= {*rules(which)} for which in Known) == 1


def test_a_run_s_rules_bring_cells_to_other_places_and_no_more() -> None:
    for which in (Known.TRAIN, Known.TEST):
        learnable = learnable_rules(which)
        assert len(learnable) == 20
        assert {*learnable} <= {*rules(which)}
        assert all(origins(rule, 3, 3) is not None for rule in learnable)
        titles = {context.title.partition(": ")[2] for context in make_contexts(which, 20, seed=0)}
        assert titles == {rule.name for rule in learnable}


def test_a_seed_names_the_puzzles() -> None:
    assert make_contexts(Known.TEST, 5, seed=1) == make_contexts(Known.TEST, 5, seed=1)
    assert make_contexts(Known.TEST, 5, seed=1) != make_contexts(Known.TEST, 5, seed=2)
    assert make_contexts(Known.TEST, 5, seed=1) != make_contexts(Known.TRAIN, 5, seed=1)
    assert documents(20) == documents(20)


def test_the_domain_takes_the_puzzles() -> None:
    contexts = make_contexts(Known.TRAIN, 60, seed=0)
    assert len({context.title for context in contexts}) == 60
    for context in contexts[:5]:
        DOMAIN.check(context, field="context")
        assert DOMAIN.asks(context)
        oracle = DOMAIN.baseline("oracle", context, seed=0, recipe=DOMAIN.student_recipe)
        assert DOMAIN.fault(context, oracle, recipe=DOMAIN.student_recipe) == ""


# --- texts -----------------------------------------------------------------------------------------------------------


def test_a_puzzle_reads_as_the_domain_asks_it_and_trains_on_it() -> None:
    rng = random.Random(0)
    for _ in range(20):
        puzzle = known_puzzle(Mixture(), rng)
        context = as_context(puzzle, title="puzzle")
        document = solved(puzzle)
        assert document.prompt == DOMAIN.asks(context)[0].prompt
        assert document.completion == context.questions[0].answer
    puzzle = draw_puzzle(Rule(("fill",)), rng, demonstrations=4, tests=1)
    left_out = replace(puzzle, demonstrations=puzzle.demonstrations[:3], tests=puzzle.demonstrations[3:])
    examples = DOMAIN.examples(as_context(puzzle, title="puzzle"), "", seed=0)
    assert (solved(left_out).prompt, solved(left_out).completion) in {(e.prompt, e.completion) for e in examples}


def test_a_teacher_reads_what_the_domain_asks_and_writes_what_it_takes() -> None:
    rng, written = random.Random(0), []
    for _ in range(300):
        document = configuration(Mixture(large=0.0), rng)
        assert document.prompt.endswith(DOMAIN.self_edit_prompt(as_context(NO_PUZZLE, title=""), style="")[-200:])
        written.append(read_configuration(document.completion))
    assert {group for chosen in written for group in chosen.groups} == {*sweep_groups()}
    assert {chosen.strategy for chosen in written} == {*Strategy}
    assert {chosen.epochs for chosen in written} == {*range(1, 21)}
    orders = Counter(math.floor(math.log10(chosen.learning_rate)) for chosen in written)
    assert {*orders} == {-6, -5, -4, -3}
    assert min(orders.values()) > 40, "any order of magnitude"


NO_PUZZLE = draw_puzzle(Rule(("fill",)), random.Random(0))


def sweep_groups() -> set[str]:
    return {group for chosen in sweep() for group in chosen.groups}


LONGEST_LESSON = 300


def test_changed_puzzles_are_not_long() -> None:
    rng = random.Random(0)
    mixture = Mixture(augmented=1.0, recoloured=1.0, large=0.5)
    for _ in range(100):
        puzzle = known_puzzle(mixture, rng)
        other = changed(puzzle, mixture, rng)
        assert 1 <= len(other.demonstrations) <= len(puzzle.demonstrations)
        assert len(read(solved(other)).tokens) <= LONGEST_LESSON
    assert all(len(read(document).tokens) <= LONGEST_LESSON for document in documents(200))


def test_other_colours_make_no_other_rule() -> None:
    """An empty cell stays one: filled with a colour it would be recoloured, and the rule perhaps a new one."""
    rng = random.Random(0)
    for _ in range(20):
        drawn = draw_paints(rng)
        grid = tuple(tuple(rng.randrange(COLOURS) for _ in range(5)) for _ in range(5))
        changed = drawn.apply(grid)
        assert drawn.undo(changed) == grid
        assert [[cell == EMPTY for cell in row] for row in changed] == [[cell == EMPTY for cell in row] for row in grid]


def test_the_loss_counts_outputs_from_the_second_on_and_configurations() -> None:
    rng = random.Random(0)
    puzzle = draw_puzzle(Rule(("turn-left",)), rng, demonstrations=3, tests=1)
    document = solved(puzzle)
    text = read(document)
    outputs = [to_text(shown.output) for shown in (*puzzle.demonstrations[1:], *puzzle.tests)]
    assert counted(document) == "\n\n".join(outputs) + "<|endoftext|>"
    assert text.tokens == [*tokenizer().encode(document.text), tokenizer().eos_token_id]
    asked = configuration(Mixture(), rng)
    assert counted(asked) == asked.completion + "<|endoftext|>"
    one = solved(copied(random.Random(3)))
    assert counted(one).endswith(one.completion + "<|endoftext|>")


def counted(lesson: Lesson) -> str:
    """What the loss counts of it."""
    first, *_ = counted_in(next(batches(SMALL, tokenizer(), lambda rng: lesson, seed="", first=0)))
    return first


def counted_in(batch: Batch) -> list[str]:
    """The same for each of its rows."""
    return [str(tokenizer().decode([token for token in row.tolist() if token >= 0])) for row in batch.labels_BT]


def test_a_batch_has_texts_of_about_one_length_and_none_twice() -> None:
    drawn = batches(Recipe(), tokenizer(), partial(draw_document, Mixture()), seed="", first=0)
    pool = [next(drawn) for _ in range(POOLED)]
    lengths = [[*map(len, texts_of(batch))] for batch in pool]
    assert sum(len({*texts_of(batch)}) for batch in pool) == POOLED * Recipe().rows
    in_order = sorted(lengths)
    assert all(max(one) <= min(other) for one, other in pairwise(in_order))
    later = next(batches(Recipe(), tokenizer(), partial(draw_document, Mixture()), seed="", first=2))
    assert texts_of(later) == texts_of(pool[2]), "whoever goes on reads what would have come"


def texts_of(batch: Batch) -> list[tuple[int, ...]]:
    ends = (batch.document_BT >= 0).sum(dim=1)
    return [tuple(row[:end].tolist()) for row, end in zip(batch.input_ids_BT, ends, strict=True)]


# --- what inner layers are asked -------------------------------------------------------------------------------------


def test_inner_layers_are_asked_where_cells_are_from_and_by_which_steps() -> None:
    puzzle = draw_puzzle(Rule(("turn-left", "fill")), random.Random(0), demonstrations=2, tests=1)
    text = read(solved(puzzle))
    cells = [place for place, token in enumerate(text.tokens) if str(tokenizer().decode([token])).strip().isdigit()]
    asked = {name: [text.auxiliary[name][place] for place in cells] for name in (Asked.ROW, Asked.COLUMN, Asked.FROM)}
    grids = 2 * len((*puzzle.demonstrations, *puzzle.tests))
    assert asked[Asked.ROW] == [0, 0, 0, 1, 1, 1, 2, 2, 2] * grids
    assert asked[Asked.COLUMN] == [0, 1, 2] * 3 * grids
    # Turned to the left, the last column is the first row; a place has six columns, as large as a grid may be.
    source = [2, 8, 14, 1, 7, 13, 0, 6, 12]
    assert asked[Asked.FROM] == ([NOTHING] * 9 + source) * (grids // 2)
    before = {name: [text.auxiliary[name][place - 1] for place in cells] for name in (*Asked,)[3:]}
    first_pair, later = [NOTHING] * 18, grids // 2 - 1
    assert before[Asked.NEXT_FROM] == first_pair + ([NOTHING] * 9 + source) * later
    turn, fill = [*STEPS].index("turn-left") + 1, [*STEPS].index("fill") + 1
    assert before[Asked.FIRST_STEP] == first_pair + ([NOTHING] * 9 + [turn] * 9) * later
    assert before[Asked.SECOND_STEP] == first_pair + ([NOTHING] * 9 + [fill] * 9) * later
    was = [cell for pair in (*puzzle.demonstrations[1:], *puzzle.tests) for row in rotate(pair.input) for cell in row]
    assert [colour for colour in before[Asked.NEXT_WAS] if colour != NOTHING] == was


def test_nothing_is_asked_of_what_no_rule_explains() -> None:
    rng = random.Random(0)
    assert {*chain(*read(configuration(Mixture(), rng)).auxiliary.values())} == {NOTHING}
    turned = changed(draw_puzzle(Rule(("move-left",)), rng), Mixture(augmented=1.0, recoloured=0.0), rng)
    while turned.keeps_its_rule:
        turned = changed(draw_puzzle(Rule(("move-left",)), rng), Mixture(augmented=1.0, recoloured=0.0), rng)
    text = read(solved(turned))
    assert {*text.auxiliary[Asked.FROM], *text.auxiliary[Asked.FIRST_STEP]} == {NOTHING}
    falling = read(solved(draw_puzzle(Rule(("fall-left",)), rng, tests=1)))
    assert {*falling.auxiliary[Asked.FROM]} == {NOTHING}, "where a cell falls depends on the others"
    assert {*falling.auxiliary[Asked.FIRST_STEP]} == {NOTHING, [*STEPS].index("fall-left") + 1}


def test_recoloured_puzzles_keep_their_rules() -> None:
    rng = random.Random(0)
    for rule in rules(Known.PRETRAINING):
        other = changed(draw_puzzle(rule, rng), Mixture(augmented=0.0, recoloured=1.0), rng)
        assert other.keeps_its_rule, rule.name


def test_readouts_are_trained_and_thrown_away() -> None:
    learner = Learner(SMALL.shape, tokenizer(), seed=0, asked=QUESTIONS)
    batch = next(batches(SMALL, tokenizer(), partial(draw_document, Mixture(configuration=0.0)), seed="", first=0))
    total, alone = learner.loss(batch)
    assert total.item() > alone
    torch.autograd.backward(total)
    assert all(parameter.grad is not None for parameter in learner.trained())
    assert learner.finish().num_parameters() == new_model(SMALL.shape, tokenizer(), seed=0).num_parameters()


def test_muon_trains_the_layers_matrices_and_nothing_else() -> None:
    learner = Learner(SMALL.shape, tokenizer(), seed=0, asked=QUESTIONS)
    phase, _ = SMALL.phases[0]
    muon, adam = make_optimizers(learner, phase)
    trained = [[id(p) for group in optimizer.param_groups for p in group["params"]] for optimizer in (muon, adam)]
    assert trained[0] == [id(parameter) for parameter in learner.matrices()]
    assert {*trained[0], *trained[1]} == {id(parameter) for parameter in learner.trained()}
    assert not {*trained[0]} & {*trained[1]}


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_cell_is_a_token() -> None:
    tokens = tokenizer().convert_ids_to_tokens(tokenizer().encode("1 0 4\n0 5 0"))
    assert tokens == ["1", "Ġ0", "Ġ4", "Ċ", "0", "Ġ5", "Ġ0"]


def test_documents_are_made_of_known_pieces_and_come_back() -> None:
    bytes_only = {token for token in tokenizer().get_vocab() if len(token) == 1 and token not in "0123456789Ċ"}
    for document in documents(100):
        for text in (document.prompt, document.completion):
            tokens = tokenizer().encode(text)
            assert not bytes_only & {*tokenizer().convert_ids_to_tokens(tokens)}
            assert tokenizer().unk_token_id not in tokens
            assert tokenizer().decode(tokens) == text
        if document.completion.startswith("{"):
            assert len(tokenizer().encode(document.completion)) <= 25


def test_any_text_can_be_read() -> None:
    text = "Ein Gedicht: 12 Zeilen,\n\n\tüber Möwen 🐦 in 0.05 Sekunden"
    assert tokenizer().decode(tokenizer().encode(text)) == text


def test_it_is_saved_as_transformers_expects(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = documents(1)[0].text
    assert loaded.encode(text) == tokenizer().encode(text)
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer().eos_token_id, tokenizer().pad_token_id)
    assert loaded.get_vocab() == tokenizer().get_vocab()


def test_a_text_that_is_held_to_the_schema_may_be_any_configuration_token_by_token() -> None:
    stop = tokenizer().eos_token_id
    constraints = Constraints(tokenizer(), vocabulary=len(tokenizer()), stop=[stop])
    [task] = make_contexts(Known.TRAIN, 1, seed=0)
    unlimited = replace(DOMAIN.student_recipe, max_steps=1_000_000)
    for seed in range(20):
        held = constraints.hold_to(DOMAIN.self_edit_schema(task, style="configuration", recipe=unlimited))
        assert held is not None
        for token in tokenizer().encode(any_configuration(random.Random(seed))):
            assert held.allowed_V()[token], tokenizer().decode([token])
            held.take(token)
        assert held.allowed_V().nonzero()[:, 0].tolist() == [stop]


# --- a model ---------------------------------------------------------------------------------------------------------


def made(path: Path, *, seed: int = 0) -> LlamaForCausalLM:
    return make_model(SMALL, tokenizer(), seed=seed, progress=Progress(path / "progress.pt", of="this"))


def test_a_seed_names_the_weights(tmp_path: Path) -> None:
    first, same, other = (made(tmp_path, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_pre_training_that_was_stopped_goes_on(tmp_path: Path, kept: int) -> None:
    class Stopped(Exception):
        pass

    class Interrupted(Progress):
        """Kept after each step, and stopped after so many."""

        steps = 0

        def keep(self, *arguments: object, **more: object) -> None:
            super().keep(*arguments, **more)  # type: ignore[arg-type]
            self.steps += 1
            if self.steps == kept:
                raise Stopped

    with pytest.raises(Stopped):
        make_model(
            SMALL, tokenizer(), seed=0, progress=Interrupted(tmp_path / "progress.pt", of="this", every_seconds=0.0)
        )
    whole, continued = made(tmp_path / "none").state_dict(), made(tmp_path).state_dict()
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
    with pytest.raises(ValueError, match="another pre-training"):
        make_model(SMALL, tokenizer(), seed=1, progress=Progress(tmp_path / "progress.pt", of="that"))


def test_habits_are_of_few_epochs_and_of_rates_that_teach() -> None:
    chosen = [read_configuration(habits.habitual_configuration(random.Random(seed))) for seed in range(300)]
    assert {c.epochs for c in chosen} == {*range(1, habits.MOST_EPOCHS + 1)}
    orders = Counter(math.floor(math.log10(c.learning_rate)) for c in chosen)
    assert {*orders} == {-5, -4, -3}
    assert {group for c in chosen for group in c.groups} == {*sweep_groups()}
    written, solved = next(habits.batches(habits.Recipe(rows=4), tokenizer(), seed=0))
    assert all(text.endswith("}}<|endoftext|>") for text in counted_in(written))
    assert not any("{" in text for text in counted_in(solved))


def test_a_model_takes_up_habits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(tmp_path)
    before.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    recipe = habits.Recipe(steps=30, rows=4, rate=1e-2)
    monkeypatch.setattr(habits, "Recipe", lambda steps=30: recipe)
    monkeypatch.setattr("sys.argv", ["habits", str(tmp_path), "--out", str(tmp_path / "after")])
    habits.main()
    model, loaded = load_model(ModelSource(source=str(tmp_path / "after")))
    assert loaded.get_vocab() == tokenizer().get_vocab()
    unseen = next(habits.batches(recipe, tokenizer(), seed=1))
    with torch.no_grad():
        for batch in unseen:
            assert habits.loss(model, batch) < habits.loss(before, batch) - 0.5


def test_the_command_makes_a_model_that_answers_through_the_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "Recipe", lambda: SMALL)
    monkeypatch.setattr("sys.argv", ["pretrain", "--out", str(tmp_path), "--steps", "2"])
    pretrain.main()
    assert not (tmp_path / "progress.pt").exists()
    model, loaded = load_model(ModelSource(source=str(tmp_path)))
    assert model.config.model_type == "llama"
    assert loaded.encode(documents(1)[0].text) == tokenizer().encode(documents(1)[0].text), "its own tokenizer"
    learn = Configuration(groups=(), strategy=Strategy.OUTPUT, learning_rate=1e-3, epochs=1)
    abilities = measure(model, loaded, asked=1, written=2, practised=1, configurations=[learn])
    assert abilities.held_valid == 1.0
    assert abilities.free_valid == 0.0, "it has learned nothing"
    [tried] = abilities.tried
    assert tried.configuration == learn
    assert 0.0 <= tried.score.solved <= tried.score.cells <= 1.0
    content = {"seed": 0, "parameters": model.num_parameters(), "demonstrations": 2, **asdict(abilities)}
    text = card([content, {**content, "seed": 1}])
    assert "| puzzles | seed 0 | seed 1 |" in text
    assert "| new rules after no augmentations, 0.001 x 1, outputs | 0.000 (" in text
    assert "| can be read, held to the schema | 1.000 | 1.000 |" in text


def test_a_llama_computes_what_the_qwen2_did() -> None:
    qwen = new_model(SMALL.shape, tokenizer(), seed=0)
    qwen.train(mode=False)
    ids = torch.tensor([tokenizer().encode(documents(1)[0].text)])
    with torch.no_grad():
        assert torch.equal(as_llama(qwen)(input_ids=ids).logits, qwen(input_ids=ids).logits)


def test_the_shipped_model_is_small_and_solves_what_it_knows() -> None:
    folder = Path(resolve_source("tiny-grids"))
    assert (folder / "model.safetensors").stat().st_size < 8_000_000
    model, loaded = load_model(ModelSource(source=str(folder)))
    assert model.num_parameters() < 2.5e6
    assert loaded.get_vocab() == tokenizer().get_vocab()
    abilities = measure(model, loaded, asked=12, written=8, practised=0, configurations=[])
    shipped = json.loads((folder / "abilities.json").read_text())
    assert shipped["known_single"]["solved"] > 0.8
    assert abilities.known_single.solved > 0.7
    assert abilities.held_valid == 1.0
    assert abilities.new.solved < 0.25, "demonstrations alone often fail"
    tried = [each["score"]["solved"] for each in shipped["tried"]]
    assert max(tried) > shipped["new"]["solved"] + 0.2, "the right configuration often succeeds"
    assert min(tried) < max(tried) - 0.2, "and a poor one fails"


def test_the_sweep_can_be_used() -> None:
    context = make_contexts(Known.TRAIN, 1, seed=0)[0]
    texts = [write_configuration(chosen) for chosen in sweep()]
    assert len({*texts}) == len(texts)
    assert not any(DOMAIN.fault(context, text, recipe=DOMAIN.student_recipe) for text in texts)
