"""llm/finetune.py end to end on small conversations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conversing import SMALL, configured, write_pairs
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm.finetune import Finetuning, main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(runner: Callable[..., Run]) -> Run:
    """The command, next to a folder of small conversations."""
    write_pairs()
    return runner(main)


def records(name: str = "x") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"runs/finetune/{name}/metrics.jsonl").read_text().splitlines()]


def summary(name: str = "x") -> dict[str, Any]:
    made: dict[str, Any] = json.loads(Path(f"runs/finetune/{name}/summary.json").read_text())
    return made


def test_the_loss_is_that_of_answers_alone(command: Run) -> None:
    """Whatever else is in the batch."""
    task = Finetuning(configured("finetune", *SMALL))
    torch.manual_seed(0)
    model = task.build_model().eval()
    items = [task.sets["train"][i] for i in range(5)]
    batch = task.collate(items)
    assert task.num_items(batch) == sum(len(item[0].last()[1]) for item in items)
    losses = []
    for item in items:
        prompt, answer = item[0].last()
        scores = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        losses += [-scores[place, token] for place, token in zip(places, answer, strict=True)]
    torch.testing.assert_close(task.loss(model, batch), torch.stack(losses).mean())
    sums, count = task.evaluate(model, batch)
    torch.testing.assert_close(sums["valid_loss"], torch.stack(losses).sum())
    assert count == len(losses)
    assert task.flops(batch) > 2 * batch[0].numel() * 16 * task.shape.vocab_size


def test_it_learns_says_so_and_can_be_started_from(command: Run) -> None:
    status, out, err = command(*SMALL, "epochs=6")
    assert status == 0, err
    assert "train: 32 rows" in out
    assert records()[-1]["valid_loss"] < 0.6 * records()[0]["valid_loss"]
    assert records()[-1]["valid_perplexity"] < 5
    assert len(summary()["examples"]) == 4
    assert all("(data: " in line and line in out for line in summary()["examples"])

    model = AutoModelForCausalLM.from_pretrained("runs/finetune/x/transformers")
    tokenizer = AutoTokenizer.from_pretrained("runs/finetune/x/transformers")
    task = Finetuning(configured("finetune", *SMALL))
    with torch.no_grad():
        sums, count = task.evaluate(model, task.collate(task.sets["valid"].items))
    assert float(sums["valid_loss"]) / int(count) == pytest.approx(summary()["best"]["valid_loss"], rel=1e-4)
    assert tokenizer.get_vocab() == task.tokenizer.get_vocab()

    first = "optimizer.lr=1e-9"  # what it starts from is what it measures
    for place in ("runs/finetune/x", "runs/finetune/x/transformers"):
        status, _, err = command(*SMALL, f"model.checkpoint={place}", "epochs=1", first, "run.overwrite=true",
                                 "run.name=y", "tokenizer.vocab_size=null")  # fmt: skip
        assert status == 0, err
        assert records("y")[0]["valid_loss"] == pytest.approx(summary()["best"]["valid_loss"], rel=1e-3)


@pytest.mark.recipe
def test_a_step_in_parts_is_a_step(command: Run) -> None:
    assert command(*SMALL, "epochs=1")[0] == 0
    assert (
        command(
            *SMALL,
            "epochs=1",
            "gradient_accumulation_steps=2",
            "gradient_checkpointing=true",
            "run.name=parts",
        )[0]
        == 0
    )
    assert records("parts")[-1] == pytest.approx(records()[-1], rel=1e-3)


@pytest.mark.recipe
def test_the_functions_of_the_library_are_the_default(command: Run) -> None:
    rest = [word for word in SMALL if not word.startswith(("data", "epochs"))]
    task = Finetuning(configured("finetune", *rest, "data.train_rows=20", "data.valid_rows=10"))
    asked, answered = task.sets["train"][0][0].last()
    assert task.text(asked).startswith("def ")
    assert task.text(answered).startswith("    ")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.sequence_length=1", "data.sequence_length=1: must be at least 2"),
        ("data.sequence_length=300", "data.sequence_length=300: the model has positions for 256 tokens"),
        ("data.valid_share=0", "data.valid_share=0.0: must lie between 0 and 1"),
        ("data.train_rows=0", "data.train_rows=0: must be at least 1"),
        ("lora.rank=0", "lora.rank=0: must be at least 1"),
        ("lora.alpha=0", "lora.alpha=0.0: must be above 0"),
        ("lora.dropout=1", "lora.dropout=1.0: is a probability below 1"),
        ("model.checkpoint=no/such/run", "no/such/run: no such folder; name a run"),
        ("model.checkpoint=pairs", "pairs: has no tokenizer that transformers can read"),
        ("lora.targets=[none]", "lora.targets=['none']: Target modules"),
    ],
)
def test_input_that_cannot_work(command: Run, argument: str, message: str) -> None:
    adapters = ["lora.rank=2"] if argument.startswith("lora.targets") else []
    status, _, err = command(*SMALL, *adapters, argument)
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_row_that_starts_from_another_says_so(command: Run) -> None:
    config = configured("reward", "+paper=adam_mini/reward_llama2_7b")
    with pytest.raises(
        Exception, match=r"model\.checkpoint is not set: adam_mini/reward_llama2_7b starts from"
    ):
        config.check()
