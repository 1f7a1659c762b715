"""Language models: their sizes, what they compute, how they are loaded, and what cannot work."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from language_options import CONFIGS, options, recipe
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

import llm.config  # noqa: F401 (registers the schemas)
from adan_optim import partition
from llm.models import EXPERTS, build, flops, load, settings
from repro.errors import UserError
from repro.verify.models import count

COUNTS = {
    "gpt2_125m": 124_439_808,
    "gpt2_355m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1.5b": 1_557_611_200,
    "gpt2_345m": 355_657_728,
    "llama_40m": 38_738_304,
    "llama_70m": 66_857_472,
    "llama_100m": 101_924_480,
    "llama_160m": 162_423_552,
    "llama_270m": 271_090_688,
    "llama_1b": 1_055_991_808,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama3_8b": 8_030_261_248,
    "moe_8x0.1b": 532_557_440,
    "moe_8x0.3b": 1_953_158_144,
    "moe_8x0.6b": 4_014_388_480,
}
GPT2 = {"name": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
LLAMA = {
    "name": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
MOE = {**LLAMA, "name": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
MODELS = [name for name in options("model", language=True) if recipe("model", name) == "llm"]


@pytest.mark.recipe
@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_as_many_parameters_as_published(name: str) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        model = OmegaConf.to_container(compose("llm", [f"model={name}"]).model)
    assert isinstance(model, dict)
    vocab_size = 1000 if model["vocab_size"] is None else None
    with torch.device("meta"):
        made = count(build({str(key): value for key, value in model.items()}, vocab_size))
    if vocab_size is None:
        assert made == COUNTS[name]
        assert f"{made:,}" in (CONFIGS / f"model/{name}.yaml").read_text(), "the file says so"
    else:
        assert name.endswith("_mini")
        assert made < 4e6


def test_every_size_has_its_file() -> None:
    assert set(COUNTS) <= set(MODELS)


def ids(batch: int = 3, length: int = 8, words: int = 50) -> Tensor:
    return torch.randint(words, (batch, length), generator=torch.Generator().manual_seed(1))


def scores(model: nn.Module, bf16: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """The scores of some tokens, and the gradients of a loss on them."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(ids(), use_cache=False).logits.float()
    model.zero_grad()
    logits.logsumexp(-1).square().mean().backward()
    return logits.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def of_seed(model: dict[str, Any], **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(model, 50, **options).train()


def test_experts_compute_the_same_in_every_way() -> None:
    logits, gradients = scores(of_seed({**MOE, "experts_implementation": EXPERTS[0]}))
    for way in (*EXPERTS[1:], None):
        others = scores(of_seed({**MOE, "experts_implementation": way}))
        torch.testing.assert_close(others[0], logits)
        torch.testing.assert_close(others[1], gradients)


def test_grouped_experts_are_in_the_precision_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    grouped, seen = torch.nn.functional.grouped_mm, []

    def spy(input: Tensor, weight: Tensor, **options: Any) -> Tensor:
        seen.append((input.dtype, weight.dtype))
        return grouped(input, weight, **options)

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", spy)
    logits, gradients = scores(of_seed(MOE), bf16=True)
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    exact = scores(of_seed(MOE))
    torch.testing.assert_close(logits, exact[0], atol=0.02, rtol=0.02)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert gradients[name].dtype == torch.float32
    torch.testing.assert_close(gradients[name], exact[1][name], atol=3e-4, rtol=0.1)


@pytest.mark.parametrize("model", [GPT2, MOE], ids=["gpt2", "moe"])
def test_activations_computed_again_change_nothing(model: dict[str, Any]) -> None:
    """Also with dropout, whose numbers must be the same; the layers run again in the backward pass."""
    runs = []
    for again in (False, True):
        made = of_seed(model, gradient_checkpointing=again)
        called = []
        layer = next(module for name, module in made.named_modules() if name.endswith("attn"))
        layer.register_forward_pre_hook(lambda *_, called=called: called.append(1))
        torch.manual_seed(2)
        runs.append((*scores(made), len(called)))
    torch.testing.assert_close(runs[0][:2], runs[1][:2])
    assert (runs[0][2], runs[1][2]) == (1, 2)


@pytest.mark.parametrize("model", [GPT2, LLAMA, {**MOE, "experts_implementation": "batched_mm"}])
def test_operations_are_those_that_torch_counts(model: dict[str, Any]) -> None:
    with torch.device("meta"):
        made, tokens = build(model, 50), torch.zeros(3, 8, dtype=torch.long)
        mask = torch.ones(3, 1, 8, 8, dtype=torch.bool)  # or transformers would look at values
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made(tokens, attention_mask=mask, use_cache=False)
    assert counter.get_total_flops() == flops(made.config, 24, 8)


@pytest.mark.parametrize("model", [GPT2, LLAMA, MOE], ids=["gpt2", "llama", "moe"])
def test_adam_mini_recognises_every_parameter(model: dict[str, Any]) -> None:
    with torch.device("meta"):
        table = str(partition(build(model, 50)))
    unknown = [line for line in table.splitlines() if "shape alone" in line]
    assert all("mlp.gate.weight" in line and line.endswith(": row") for line in unknown), "routers: an expert"
    assert ("1 x 6 " in table) == (model is GPT2), "two heads of query, key and value in Conv1D's columns"


def test_weights_come_from_where_they_were_saved(tmp_path: Path) -> None:
    made = of_seed(MOE)
    made.save_pretrained(tmp_path)
    for again in (load(tmp_path), build({**MOE, "checkpoint": str(tmp_path)}, 50)):
        assert again.dtype == torch.float32
        torch.testing.assert_close(again.state_dict(), made.state_dict(), rtol=0, atol=0)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(plain(ids()).logits, made.eval()(ids()).logits)
    with pytest.raises(UserError, match=r"has unexpected weights, such as model\.layers\.1"):
        build({**MOE, "num_hidden_layers": 1, "checkpoint": str(tmp_path)}, 50)
    with pytest.raises(UserError, match=r"nothing: no such folder"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "gtp2"},
            "model.name=gtp2: is no causal language model of transformers; did you mean gpt2?",
        ),
        ({"name": "vit"}, "model.name=vit: is no causal language model"),
        ({"name": None}, "model.name=None: is no causal"),
        ({"n_layers": 3}, "model.n_layers: gpt2 has no such key; did you mean n_layer?"),
        ({"n_layer": "two"}, "Field 'n_layer' expected int, got str"),
        ({"n_head": 3}, "model: 3 attention heads do not divide a width of 16"),
        ({"vocab_size": 49}, "model.vocab_size=49: the tokenizer has 50 tokens; null takes as many"),
        ({"router_z_loss_coef": 0.1}, "model.router_z_loss_coef: gpt2 has no such key"),
        ({"experts_implementation": "eager"}, "model.experts_implementation: gpt2 has no such key"),
        ({**MOE, "experts_implementation": "fast"}, "must be null or one of eager, batched_mm, grouped_mm"),
    ],
)
def test_what_cannot_work(change: dict[str, Any], message: str) -> None:
    base = {} if change.get("name") == "mixtral" else GPT2
    with pytest.raises(UserError) as error:
        settings({**base, **change}, 50)
    assert message in str(error.value)
