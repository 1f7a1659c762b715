"""Recipes with rows offer their model and synthetic batches, without data: see repro/ledger/recipes.py."""

import math

import pytest
from torch.utils._pytree import tree_leaves

from repro.ledger import recipes, rows
from repro.verify.models import build, count

ROWS = [
    "adam_mini/gpt2_small",
    "adam_mini/remax_llama2_7b",
    "adam_mini/reward_llama2_7b",
    "adam_mini/sft_llama2_7b_lora",
    "bert/adan",
    "glue/stsb",
    "imagenet/vit_s_150",
    "lstm/lstm_1_adan",
    "mae/base_pretrain",
    "text_to_3d/dreamfusion",
    "wikitext103/adan_50k",
]


@pytest.mark.parametrize("name", ROWS)
def test_a_loss_without_data(name: str) -> None:
    language = [] if name.startswith(("imagenet/", "mae/", "text_to_3d/")) else ["tokenizer.vocab_size=6000"]
    recipe = rows.load(name, [f"+proxy={rows.load(name).row.proxy}", *language])
    on_meta = build(recipe)
    assert on_meta is not None
    assert count(on_meta) > 0
    task = recipes.synthetic_task(recipe)
    assert task is not None
    batch = task.synthetic_batch(4)
    assert all(len(tensor) % 4 == 0 for tensor in tree_leaves(batch))
    if task.name == "remax":  # whose loss generates text, which takes a tokenizer
        return
    task.state = {}
    model = task.build_model().train()
    loss = task.loss(model, batch)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_a_row_without_a_recipe() -> None:
    recipe = rows.load("memory/vit_b")
    assert recipes.synthetic_task(recipe) is None
    assert build(recipe) is None
