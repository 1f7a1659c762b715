"""Blocks against a slow definition, masks against their arithmetic, pairs by their parts."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from nlp import blocks as blocks_module
from nlp.blocks import Blocks
from nlp.masking import (
    FATE,
    IGNORED,
    NUMBER,
    ORDER,
    TOKENS,
    WORD,
    MaskedBlocks,
    MaskedPairs,
    Masking,
    PairBatch,
)
from repro.train.data import FIXED
from repro.train.seeding import Draws

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
    if expected:
        indices = np.random.default_rng(size).integers(len(expected), size=5)
        tokens, lengths = made.take(indices)
        assert [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)] == [
            expected[index] for index in indices
        ]
        assert tokens.shape == (5, max(lengths))
        assert all((row[n:] == EOS).all() for row, n in zip(tokens, lengths, strict=True))


def test_an_index_beyond_the_last_block_is_an_error() -> None:
    for block in ("complete", "complete_doc", "none"):
        made = Blocks(text([3, 4, 0, 5]), block, 6, EOS)
        for index in (-1, len(made)):
            with pytest.raises(IndexError):
                made[index]


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
    batch = np.tile(sequence, (times, 1))
    for changed, places, targets in zip(
        *masking(specials)(batch, np.ones_like(batch, bool), Draws("masks", np.arange(times))), strict=True
    ):
        number = (targets != IGNORED).sum()
        assert (targets[number:] == IGNORED).all()
        assert (places[number:] == 0).all()
        places = places[:number]
        assert (targets[:number] == sequence[places]).all()
        counts.append(number)
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


def one_masked(
    how: Masking, ids: list[int], draws: Draws
) -> tuple[list[int], list[int], list[int]]:  # changed tokens, places, targets
    """Mask one sequence, a token after the other."""

    def draw(column: int) -> float:
        return float(draws([column])[0, 0])

    able = [place for place, token in enumerate(ids) if how.eligible[token]]
    number = min(len(able), max(1, int(how.rate * len(able) + draw(NUMBER))))
    places = sorted(sorted(able, key=lambda place: draw(TOKENS + 3 * place + ORDER))[:number])
    changed = list(ids)
    for place in places:
        fate, word = draw(TOKENS + 3 * place + FATE), draw(TOKENS + 3 * place + WORD)
        if fate >= how.leave + how.random:
            changed[place] = how.mask
        elif fate < how.random:
            changed[place] = int(how.ordinary[int(word * len(how.ordinary))])
    return changed, places, [ids[place] for place in places]


@settings(deadline=None, max_examples=60)
@given(
    LENGTHS.filter(any),
    st.integers(2, 20),
    st.sampled_from(["complete", "complete_doc", "none"]),
    st.sampled_from([0.15, 0.6]),
    st.integers(0, 1000),
)
def test_a_batch_has_what_each_sequence_becomes(
    lengths: list[int], size: int, block: str, rate: float, seed: int
) -> None:
    made, how = Blocks(text(lengths), block, size, EOS), masking(rate=rate, random=0.3)
    if not len(made):
        return
    indices = np.random.default_rng(seed).integers(len(made), size=4)
    name = f"samples {seed}"
    batch = MaskedBlocks(made, how, BOS, PAD).whole_batch(indices, Draws(name, indices))
    longest = max(len(made[index]) for index in indices) + 1
    assert batch.ids.shape == (4, longest)
    full = all(len(made[index]) + 1 == longest for index in indices)
    assert batch.attention_mask.shape == (4, 0 if full else longest)
    for row, index in enumerate(indices):
        sequence = [BOS, *made[index].tolist()]
        changed, places, targets = one_masked(how, sequence, Draws(name, np.array([index])))
        padding = longest - len(sequence)
        assert batch.ids[row].tolist() == changed + [PAD] * padding
        assert full or batch.attention_mask[row].tolist() == [True] * len(sequence) + [False] * padding
        rest = batch.places.shape[1] - len(places)
        assert batch.places[row].tolist() == places + [0] * rest
        assert batch.targets[row].tolist() == targets + [IGNORED] * rest


def test_a_sequence_has_a_place_to_predict_where_any_is_eligible() -> None:
    for sequence, expected in (([BOS, 7, EOS], [1]), ([BOS, EOS, EOS], [])):
        batch = np.tile(sequence, (50, 1))
        changed, places, targets = masking()(batch, np.ones_like(batch, bool), Draws("masks", np.arange(50)))
        assert places.tolist() == [expected] * 50
        assert targets.tolist() == [[7] if expected else []] * 50
        assert expected or (changed == batch).all()


def test_masks_are_new_in_every_epoch_and_fixed_for_validation() -> None:
    data = MaskedBlocks(Blocks(text([10] * 20), "complete", 50, EOS), masking(), BOS, PAD)

    def masks(name: str) -> list[list[int]]:
        return data.whole_batch(np.arange(2), Draws(name, np.arange(2))).places.tolist()

    assert masks("samples 0 0") == masks("samples 0 0") != masks("samples 0 1")
    assert [data[index].places.tolist() for index in (0, 1)] == [[places] for places in masks(FIXED)]
    assert masks(FIXED)[0] != masks(FIXED)[1]


@settings(deadline=None, max_examples=60)
@given(LENGTHS.filter(any), st.integers(6, 30), st.integers(0, 1000))
def test_pairs_are_two_parts_of_a_block_or_of_two(lengths: list[int], size: int, seed: int) -> None:
    source = text(lengths)
    made = Blocks(source, "complete_doc", size - 2, EOS)
    if not len(made):
        return
    data, indices = MaskedPairs(made, masking(rate=0.0), BOS, PAD), np.arange(len(made))
    rows, ends, types, others = data.tokens(indices, Draws(f"samples {seed}", indices))
    for index in range(len(made)):
        ids, segments, other = rows[index, : ends[index]], types[index, : ends[index]], others[index]
        assert not types[index, ends[index] :].any()
        alone = data.tokens(indices[index:][:1], Draws(f"samples {seed}", indices[index:][:1]))
        assert [x[0].tolist() for x in alone] == [ids.tolist(), ends[index], segments.tolist(), other]
        assert len(ids) <= size
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
            texts = [
                [token for token in made[number].tolist() if token != EOS] for number in range(len(made))
            ]
            assert any(
                holds(texts[number], second[:-1].tolist()) for number in range(len(made)) if number != index
            )


def holds(tokens: list[int], part: list[int]) -> bool:
    """Whether a list has another one in it, without a gap."""
    return any(tokens[begin : begin + len(part)] == part for begin in range(len(tokens) + 1))


def test_half_of_the_pairs_are_no_neighbours() -> None:
    data = MaskedPairs(Blocks(text([5] * 400), "complete_doc", 24, EOS), masking(), BOS, PAD)
    places = np.arange(1000)
    batch = data.whole_batch(places % len(data), Draws("pairs", places))
    assert isinstance(batch, PairBatch)
    within(int(batch.others.sum()), 1000, 0.5)
    cuts = batch.token_type_ids.argmax(1).numpy()  # after <s>, a number of lines of five, and </s>
    assert set(cuts.tolist()) == {2 + 5 * lines for lines in (1, 2, 3)}
    for lines in (1, 2, 3):
        within(int((cuts == 2 + 5 * lines).sum()), 1000, 1 / 3)
