"""Choosing tokens: greedy, nucleus, and independence of neighbours."""

from __future__ import annotations

import torch

from rookery_engines.decoding import Row, choose
from rookery_shared.types import Sampling

GREEDY = Sampling(temperature=0.0)


def test_temperature_zero_takes_the_most_likely() -> None:
    logits_BV = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    assert choose(logits_BV, [GREEDY, GREEDY], torch.tensor([0.9, 0.9])).tolist() == [1, 0]


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    logits_BV = probabilities.log().expand(len(uniform), 3)
    chosen = choose(logits_BV, [Sampling(top_p=1.0)] * len(uniform), uniform)
    shares = torch.bincount(chosen, minlength=3) / len(uniform)
    assert torch.allclose(shares, probabilities, atol=0.01)


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    logits_BV = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    drawn = {
        int(choose(logits_BV, [Sampling(top_p=0.8)], torch.tensor([u]))[0]) for u in torch.linspace(0, 0.9999, 200)
    }
    assert drawn == {0, 1}, "0.5 + 0.3 reaches 0.8; the third is outside"
    drawn = {
        int(choose(logits_BV, [Sampling(top_p=0.81)], torch.tensor([u]))[0]) for u in torch.linspace(0, 0.9999, 200)
    }
    assert drawn == {0, 1, 2}


def test_rows_may_sample_differently() -> None:
    logits_BV = torch.tensor([[0.1, 0.9], [0.1, 0.9]]).log()
    chosen = choose(logits_BV, [GREEDY, Sampling(top_p=1.0)], torch.tensor([0.99, 0.99]))
    assert chosen.tolist() == [1, 0], "the same number draws the tail only where there is a draw"


def test_a_row_draws_from_its_own_seed() -> None:
    sampling = Sampling(max_new_tokens=5)
    rows = [Row(index=0, prompt=[1], sampling=sampling, seed=s) for s in (3, 3, 4)]
    assert torch.equal(rows[0].draws(), rows[1].draws())
    assert not torch.equal(rows[0].draws(), rows[2].draws())
