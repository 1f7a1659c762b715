"""llm/reward.py: which of two answers is better."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conversing import SMALL, configured, pairs, write, write_pairs
from transformers import AutoModelForSequenceClassification

from llm.reward import RewardModelling, main
from repro.errors import UserError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(runner: Callable[..., Run]) -> Run:
    """The command, next to a folder of small preferences."""
    write_pairs(48)
    return runner(main)


def test_the_loss_is_that_of_bradley_and_terry(command: Run) -> None:
    """Of numbers at the last token, whatever fills the rows up."""
    task = RewardModelling(configured("reward", *SMALL))
    torch.manual_seed(0)
    model = task.build_model().eval()
    items = [task.sets["train"][i] for i in range(6)]
    batch = task.collate(items)
    assert task.num_items(batch) == 6
    assert batch[0].shape[0] == 12
    numbers = []
    for item in items:
        ids = [torch.tensor(example.ids[None].astype("int64")) for example in item]
        hidden = [model.model(input_ids=each).last_hidden_state[0, -1] for each in ids]
        numbers.append([model.score(each)[0] for each in hidden])
    margins = torch.stack([better - worse for better, worse in numbers])
    torch.testing.assert_close(task.loss(model, batch), torch.log1p(torch.exp(-margins)).mean())
    sums, count = task.evaluate(model, batch)
    assert (float(sums["valid_accuracy"]), count) == (100 * int((margins > 0).sum()), 6)
    torch.testing.assert_close(sums["valid_margin"], margins.sum())


@pytest.mark.recipe
@pytest.mark.parametrize("lora", [False, True])
def test_it_learns_which_is_better(command: Run, lora: bool) -> None:
    """With adapters only that they and the head are what was measured: a random model has little for them.

    The better answer is always the same one, so that three steps tell all pairs (with each of ten seeds).
    """
    for split in ("train", "validation"):
        rows = [{"prompt": row["prompt"], "chosen": "yes", "rejected": "no"} for row in pairs(24)]
        write(Path(f"pairs/{split}.jsonl"), rows)
    arguments = ["lora.rank=2"] if lora else []
    status, _, err = command(*SMALL, *arguments)
    assert status == 0, err
    best = json.loads(Path("runs/reward/x/summary.json").read_text())["best"]
    task = RewardModelling(configured("reward", *SMALL, *arguments))
    model = AutoModelForSequenceClassification.from_pretrained("runs/reward/x/transformers")
    with torch.no_grad():
        loss = task.loss(model, task.collate(task.sets["valid"].items))
    assert float(loss) == pytest.approx(best["valid_loss"], rel=1e-4)
    if lora:
        trained = {name for name, p in task.build_model().named_parameters() if p.requires_grad}
        assert {name for name in trained if "lora_" not in name} == {
            "base_model.model.score.modules_to_save.default.weight"
        }
    else:
        assert best["valid_accuracy"] == 100


def test_pairs_that_are_the_same_are_left_out(command: Run) -> None:
    rows = [*pairs(4), {"prompt": "a", "chosen": "b", "rejected": "b"}]
    write(Path("pairs/train.jsonl"), rows)
    train = RewardModelling(configured("reward", *SMALL, "batch_size=1")).sets["train"]
    assert (len(train), len(train.lengths), train.left_out) == (4, 4, 1)
    write(Path("pairs/train.jsonl"), rows[4:])
    with pytest.raises(UserError, match="chosen and rejected are the same in all train rows"):
        RewardModelling(configured("reward", *SMALL))


@pytest.mark.recipe
def test_python_functions_are_the_default() -> None:
    rows = RewardModelling.default(None)["train"]  # type: ignore[arg-type]
    assert rows[0].keys() == {"prompt", "chosen", "rejected"}
