"""Parallel streams over a text, against the text itself."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from repro.errors import UserError
from repro.text.streams import Streams


@pytest.mark.parametrize(
    ("tokens", "streams", "tgt_len"), [(103, 4, 7), (100, 5, 19), (12, 6, 3), (41, 1, 8)]
)
def test_streams_are_the_text(tokens: int, streams: int, tgt_len: int) -> None:
    """Read row by row, the batches are the parts of the text, each token but the first a target once."""
    ids = np.random.default_rng(0).integers(0, 60_000, tokens).astype(np.uint16)
    data = Streams(ids, streams, tgt_len)
    batches = [default_collate([data[index] for index in batch]) for batch in data.eval_plan()]
    inputs, targets = (torch.cat(parts, dim=1) for parts in zip(*batches, strict=True))
    length = tokens // streams
    expected = torch.from_numpy(ids[: streams * length].reshape(streams, length).astype(np.int64))
    assert torch.equal(inputs, expected[:, :-1])
    assert torch.equal(targets, expected[:, 1:])
    assert inputs.dtype == targets.dtype == torch.int64
    assert {batch[0].shape[1] for batch in batches[:-1]} <= {tgt_len}
    assert 1 <= batches[-1][0].shape[1] <= tgt_len
    assert len(data) == sum(len(batch[0]) for batch in batches)


def test_steps_of_wikitext103() -> None:
    """As many as the released logs have, the last with 99 tokens a stream."""
    ids = np.broadcast_to(np.uint16(7), (103_227_021,))
    data = Streams(ids, 60, 150)
    assert len(data) == 11_470 * 60
    assert [len(data[index][0]) for index in (0, len(data) - 61, len(data) - 60, len(data) - 1)] == [
        150,
        150,
        99,
        99,
    ]
    assert len(data.eval_plan()) == 11_470


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_share_the_streams(processes: int) -> None:
    """Each has its own from beginning to end, all together have every item once."""
    data = Streams(np.arange(500), 5, 9)
    plans = [data.eval_plan(processes, rank) for rank in range(processes)]
    for plan in plans:
        streams = {tuple(index % 5 for index in batch) for batch in plan}
        assert len(streams) == 1
        assert [batch[0] // 5 for batch in plan] == list(range(math.ceil(99 / 9)))
    assert sorted(index for plan in plans for batch in plan for index in batch) == list(range(len(data)))


def test_memory_map(tmp_path: Path) -> None:
    """Items are copies, also of a text that cannot be written."""
    np.save(tmp_path / "ids.npy", np.arange(50, dtype=np.int32))
    data = Streams(np.load(tmp_path / "ids.npy", mmap_mode="r"), 2, 10)
    inputs, targets = data[3]
    assert (inputs.tolist(), targets.tolist()) == (list(range(35, 45)), list(range(36, 46)))
    inputs.zero_()
    assert data[3][0].tolist() == list(range(35, 45))


def test_one_line() -> None:
    with pytest.raises(
        UserError, match=r"batch_size=8: the training text has 15 tokens.*at most batch_size=7"
    ):
        Streams(np.arange(15), 8, 4, "training text")
    with pytest.raises(UserError, match="eval_batch_size=2: must be at least the number of processes, 3"):
        Streams(np.arange(15), 2, 4, key="eval_batch_size").eval_plan(3, 0)
