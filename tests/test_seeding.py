"""Seeds: equal words give equal seeds on every machine, different words different seeds."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from jitkit.utils.seeding import mix

WORDS = st.lists(st.integers() | st.text(st.characters(categories=["L", "N", "P"])), max_size=4)


@given(st.lists(WORDS, min_size=2, max_size=5, unique_by=lambda words: repr(words)))
def test_different_words_give_different_seeds(many: list[list[int | str]]) -> None:
    assert len({mix(*words) for words in many}) == len(many)


@given(WORDS)
def test_a_seed_fits_a_generator(words: list[int | str]) -> None:
    seed = mix(*words)
    assert 0 <= seed < 2**63
    assert torch.Generator().manual_seed(seed).initial_seed() == seed


def test_seeds_depend_on_types_and_order_of_the_words() -> None:
    seeds = [mix(1), mix("1"), mix(1, 2), mix(2, 1), mix(12), mix("a", "b"), mix("ab"), mix()]
    assert len(set(seeds)) == len(seeds)


def test_seeds_are_the_same_on_every_machine() -> None:
    assert mix(0, "noise", 0) == 1783358752016117256  # a change would alter all samples ever drawn


def test_seeds_of_similar_words_are_uncorrelated() -> None:
    differing = [(mix(0, "noise", i) ^ mix(0, "noise", i + 1)).bit_count() for i in range(200)]
    assert 29 < sum(differing) / len(differing) < 34  # about half of 63 bits
