"""Mappings whose keys are the user's can be overridden, whatever the configuration has in them."""

import pytest

import vision.config
import vision.threed.prior_config  # noqa: F401
from repro.ledger.rows import compose_config, load
from repro.overrides import as_typed, opened


@pytest.mark.parametrize("name", ["train_prior", "vision"])
@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("optimizer.lr_scales={unet:2}", {"unet": 2}),
        ("optimizer.lr_scales.unet=2", {"unet": 2}),
        ("optimizer.lr_scales={text_encoder:0.5,blocks.0:2}", {"text_encoder": 0.5, "blocks.0": 2}),
        ("++optimizer.lr_scales={unet:2}", {"unet": 2}),
        ("optimizer.lr_scales=null", None),
    ],
)
def test_learning_rates_by_part(name: str, word: str, found: dict[str, float] | None) -> None:
    """Those of the configuration stay, in the recipe that has some, unless all are removed."""
    before = {"text_encoder": 0.1} if name == "train_prior" else {}
    made = compose_config(name, [word]).optimizer.lr_scales
    assert made == (None if found is None else before | found)


def test_a_row_of_the_ledger() -> None:
    recipe = load("text_to_3d/dreamfusion", ["optimizer.lr_scales={net:3}"])
    assert recipe.config["optimizer"]["lr_scales"] == {"encoding": 10, "net": 3}


def test_words_are_recorded_as_they_were_typed() -> None:
    words = ["epochs=2", "optimizer.lr_scales={a:1}", "optimizer.lr_scales.b=2", "++x=1", "optimizer.lr=1"]
    assert opened(words) == [words[0], f"++{words[1]}", f"++{words[2]}", *words[3:]]
    assert as_typed(opened(words)) == words
