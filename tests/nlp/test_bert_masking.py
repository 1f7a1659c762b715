"""Blocks against a slow definition, masks against their arithmetic, pairs by their parts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from nlp import blocks as blocks_module
from nlp.blocks import Blocks
from nlp.masking import IGNORED, MaskedBlocks, MaskedPairs, Masking, collate

BOS, PAD, EOS, UNK, MASK = range(5)
FIRST, VOCABULARY = 5, 50  # the first ordinary token, and the number of all
LENGTHS = st.lists(st.integers(0, 12), max_size=60)


def text(lengths: list[int]) -> SimpleNamespace:
    """Lines of that many tokens, each of which is its own place, modulo what fits."""
    lines = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return SimpleNamespace(ids=(FIRST + np.arange(lines[-1]) % 40).astype(np.uint16), lines=lines)


def defined(source: SimpleNamespace, block: str, size: int) -> tuple[list[list[int]], int]:
    """The blocks as the description has them, a line after the other, and how many were too long."""
    lines = [
        [*source.ids[begin:end].tolist(), EOS]
        for begin, end in zip(source.lines[:-1], source.lines[1:], strict=True)
    ]
    if block == "none":
        stream = [token for line in lines for token in line]
        return [stream[begin : begin + size] for begin in range(0, len(stream), size)], 0
    made: list[list[int]] = [[]]
    for line in lines:
        if block == "complete_doc" and line == [EOS]:
            made.append([])
        elif len(made[-1]) + len(line) > size:
            made.append(line)
        else:
            made[-1] = made[-1] + line
    made = [tokens for tokens in made if tokens]
    return [tokens for tokens in made if len(tokens) <= size], sum(len(tokens) > size for tokens in made)


@settings(deadline=None, max_examples=150)
@given(LENGTHS, st.integers(2, 20), st.sampled_from(["complete", "complete_doc", "none"]), st.integers(1, 9))
def test_blocks_are_those_of_the_definition(lengths: list[int], size: int, block: str, chunk: int) -> None:
    source = text(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_module, "CHUNK", chunk)
        made = Blocks(source, block, size, EOS)
    expected, left_out = defined(source, block, size)
    assert [tokens.tolist() for tokens in map(made.__getitem__, range(len(made)))] == expected
    assert (made.left_out, made.tokens) == (left_out, sum(map(len, expected)))


def test_an_index_beyond_the_last_block_is_an_error() -> None:
    for block in ("complete", "complete_doc", "none"):
        made = Blocks(text([3, 4, 0, 5]), block, 6, EOS)
        with pytest.raises(IndexError):
            made[len(made)]


def masking(specials: bool = False, **changed: float) -> Masking:
    eligible = np.ones(VOCABULARY, bool)
    eligible[:FIRST] = specials
    rates = dict(rate=0.15, leave=0.1, random=0.1) | changed
    return Masking(**rates, mask=MASK, ordinary=np.arange(FIRST, VOCABULARY), eligible=eligible)


@pytest.mark.parametrize("specials", [False, True])
def test_masks_are_as_many_and_of_the_kinds_that_are_asked_for(specials: bool) -> None:
    rng = np.random.default_rng(0)
    sequence = np.concatenate([[BOS], rng.integers(FIRST, VOCABULARY, 96), [EOS]])
    eligible = 98 if specials else 96
    times, counts = 3000, []
    hits, kinds = np.zeros(98, int), np.zeros(3, int)
    drawn: list[np.ndarray] = []
    for _ in range(times):
        changed, places = masking(specials)(sequence, rng)
        counts.append(len(places))
        assert len(set(places.tolist())) == len(places)
        assert (np.diff(places) > 0).all()
        hits[places] += 1
        untouched = np.ones(98, bool)
        untouched[places] = False
        assert (changed[untouched] == sequence[untouched]).all()
        masked = changed[places] == MASK
        other = ~masked & (changed[places] != sequence[places])
        kinds += masked.sum(), other.sum(), (~masked & ~other).sum()
        drawn.append(changed[places][other])
    exact = 0.15 * eligible  # 14.4 or 14.7
    assert set(counts) == {int(exact), int(exact) + 1}
    within(counts.count(int(exact) + 1), times, exact % 1)
    if not specials:
        assert hits[0] == hits[-1] == 0
    for place in range(98) if specials else range(1, 97):
        within(hits[place], times, 0.15, doubt=1e-6)
    total = sum(counts)
    same = 1 / (VOCABULARY - FIRST)  # a random token may be what was there; specials never are
    if not specials:
        within(kinds[1], total, 0.1 * (1 - same))
        within(kinds[2], total, 0.1 + 0.1 * same)
    within(kinds[0], total, 0.8)
    numbers = np.bincount(np.concatenate(drawn), minlength=VOCABULARY)
    assert numbers[:FIRST].sum() == 0
    for number in numbers[FIRST:]:
        within(number, numbers.sum(), same, doubt=1e-6)


def within(count: int, times: int, chance: float, doubt: float = 1e-4) -> None:
    """Demand that a count is one that a binomial distribution gives except for a chance of `doubt`."""
    low, high = binom.interval(1 - doubt, times, chance)
    assert low <= count <= high


def test_a_sequence_has_a_place_to_predict_where_any_is_eligible() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        changed, places = masking()(np.array([BOS, 7, EOS]), rng)
        assert places.tolist() == [1]
        changed, places = masking()(np.array([BOS, EOS, EOS]), rng)
        assert changed.tolist() == [BOS, EOS, EOS]
        assert not len(places)


def test_masks_are_new_in_every_epoch_and_fixed_for_validation() -> None:
    made = Blocks(text([10] * 20), "complete", 50, EOS)
    train, valid = (MaskedBlocks(made, masking(), BOS, fixed) for fixed in (False, True))

    def sample(data: MaskedBlocks, seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return [x.tolist() for x in data[1]]

    assert sample(train, 0) == sample(train, 0)
    assert sample(train, 0) != sample(train, 1)
    assert sample(valid, 0) == sample(valid, 1)
    assert valid[0][1].tolist() != valid[1][1].tolist()
    ids, places, truth = (np.array(x) for x in sample(train, 0))
    ids[places] = truth
    assert ids.tolist() == [BOS, *made[1].tolist()]


def test_batches_are_padded_and_say_where() -> None:
    made = Blocks(text([9, 9, 5, 30]), "complete", 20, EOS)
    data = MaskedBlocks(made, masking(rate=0.3), BOS, fixed=True)
    assert made.left_out == 1
    samples = [data[0], data[1]]
    ids, seen, places, targets = collate(samples, PAD)
    assert ids.shape == seen.shape == (2, 21)
    assert seen.sum(1).tolist() == [21, 7]
    assert (ids[~seen] == PAD).all()
    assert (ids[seen] != PAD).all()
    for row, sample in enumerate(samples):
        number = len(sample[1])
        assert places[row, :number].tolist() == sample[1].tolist()
        assert targets[row].tolist() == sample[2].tolist() + [IGNORED] * (targets.shape[1] - number)
    assert collate(samples[:1], PAD)[1].shape == (1, 0)


@settings(deadline=None, max_examples=60)
@given(LENGTHS.filter(any), st.integers(6, 30), st.integers(0, 1000))
def test_pairs_are_two_parts_of_a_block_or_of_two(lengths: list[int], size: int, seed: int) -> None:
    source = text(lengths)
    made = Blocks(source, "complete_doc", size - 2, EOS)
    data = MaskedPairs(made, masking(), BOS)
    rng = np.random.default_rng(seed)
    for index in range(len(made)):
        ids, segments, other = data.draw(index, rng)
        assert len(ids) == len(segments) <= size
        cut = int(segments.argmax())
        first, second = ids[:cut], ids[cut:]
        assert first[0] == BOS
        assert first[-1] == second[-1] == EOS
        assert segments[cut:].all()
        plain = [token for token in made[index].tolist() if token != EOS]
        assert plain[: cut - 2] == first[1:-1].tolist()
        if not other:
            assert [BOS, *plain] == [token for token in ids.tolist() if token != EOS]
        else:
            others = [
                [token for token in made[number].tolist() if token != EOS] for number in range(len(made))
            ]
            assert any(
                holds(others[number], second[:-1].tolist()) for number in range(len(made)) if number != index
            )


def holds(tokens: list[int], part: list[int]) -> bool:
    """Whether a list has another one in it, without a gap."""
    return any(tokens[begin : begin + len(part)] == part for begin in range(len(tokens) + 1))


def test_half_of_the_pairs_are_no_neighbours() -> None:
    data = MaskedPairs(Blocks(text([5] * 400), "complete_doc", 24, EOS), masking(), BOS)
    rng = np.random.default_rng(0)
    others = sum(int(data.draw(index % len(data), rng)[2]) for index in range(1000))
    within(others, 1000, 0.5)
