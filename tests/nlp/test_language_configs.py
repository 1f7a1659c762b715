"""Every option of the groups model and data that is not vision's makes a configuration and a model.

Language models are in tests/llm/test_models.py.
"""

import pytest
import torch
from hydra import compose, initialize_config_dir
from language_options import CONFIGS, options, recipe
from omegaconf import OmegaConf

from nlp import pretrain_bert, train_lstm, train_transformer_xl

RECIPES = {"bert": pretrain_bert, "lstm": train_lstm, "transformer_xl": train_transformer_xl}
MODELS = [name for name in options("model", language=True) if recipe("model", name) != "llm"]


@pytest.mark.parametrize("name", MODELS)
def test_model_configs(name: str) -> None:
    primary = recipe("model", name)
    assert primary is not None
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(primary, [f"model={name}", "tokenizer.vocab_size=267735"])
    OmegaConf.to_object(config).check()
    with torch.device("meta"):
        model = RECIPES[primary].RECIPE(OmegaConf.to_object(config), synthetic=True).build_model()
    assert sum(p.numel() for p in model.parameters()) > 30522 * 16


@pytest.mark.parametrize("primary", RECIPES)
@pytest.mark.parametrize("name", options("data", language=True))
def test_data_configs(name: str, primary: str) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_object(compose(primary, [f"data={name}"]))
    config.check()
    assert config.data.name == name
