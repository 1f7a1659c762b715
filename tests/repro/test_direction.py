"""Which of two checkpoints is the better one, for every metric that a recipe records."""

import json
from pathlib import Path

import pytest

from nlp.glue.metrics import OF_CLASSES, OF_SCORES
from repro.direction import higher_is_better
from repro.errors import UserError
from repro.ledger import rows
from repro.train.config import SelectConfig

# Without valid_, test_ and ema_. None: the name does not tell, and a person has to.
METRICS = {
    "loss": False, "loss_matched": False, "loss_mismatched": False, "perplexity": False, "nsp_loss": False,
    "balance_loss": False, "z_loss": False, "kl": False,
    "accuracy": True, "accuracy_matched": True, "accuracy_mismatched": True, "nsp_accuracy": True,
    "top5": True, "f1": True, "matthews_correlation": True, "pearson": True, "spearman": True,
    "reward": True, "reward_greedy": True, "margin": True,
    "length": None, "router_entropy": None, "expert_share_min": None, "expert_share_max": None,
}  # fmt: skip
RESULTS = Path(__file__).parents[2] / "results"


def test_every_metric_of_every_recipe_has_its_direction() -> None:
    names = {*OF_CLASSES, *OF_SCORES}
    for path in RESULTS.glob("*/**/metrics.jsonl"):  # runs of all recipes
        for line in path.read_text().splitlines():
            keys = (key.removeprefix("ema_") for key in json.loads(line))
            names |= {key.partition("_")[2] for key in keys if key.startswith(("valid_", "test_"))}
    assert names <= METRICS.keys()
    for name, expected in METRICS.items():
        for prefix in ("valid_", "test_", "ema_valid_", "ema_test_"):
            assert higher_is_better(prefix + name) is expected, prefix + name


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        *((name, False) for name in ("train_loss", "eval_ppl", "test/word_error", "test_bpc", "val_wer")),
        *(
            (name, True)
            for name in ("eval_top1", "test_acc1", "ema_test_accuracy", "eval_matthews_correlation")
        ),
        *((name, True) for name in ("eval_f1", "eval_pearsonr", "eval_rougeL", "sacrebleu/bleu")),
        *((name, None) for name in ("lr", "loss_scale", "grad_norm", "eval_runtime", "seconds")),
    ],
)
def test_columns_of_released_logs(column: str, expected: bool | None) -> None:
    assert higher_is_better(column) is expected


@pytest.mark.recipe
def test_rows_agree() -> None:
    """What a row states of a published figure is what the figure's name says."""
    for name in rows.names():
        for figure in rows.load(name).row.published:
            assert higher_is_better(figure.metric) in (None, figure.higher_is_better), name


def test_a_selection_follows_the_name_or_demands_the_direction() -> None:
    for name, expected in METRICS.items():
        key = f"valid_{name}"
        if expected is not None:
            assert SelectConfig(key).higher("valid_reward") is expected
            assert SelectConfig(None).higher(key) is expected
            assert SelectConfig(key, expected).higher("valid_reward") is expected
            with pytest.raises(UserError, match=f"of {key} {'higher' if expected else 'lower'} is better"):
                SelectConfig(key, not expected).higher("valid_reward")
        else:
            assert SelectConfig(key, True).higher("valid_loss")
            assert not SelectConfig(key, False).higher("valid_loss")
            with pytest.raises(
                UserError, match=f"{key}: its name does not tell.*select.higher_is_better=true"
            ):
                SelectConfig(key).higher("valid_loss")
    assert not SelectConfig(None, True).higher("valid_loss")  # what is stated is of select.metric
