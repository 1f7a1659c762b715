"""Sampling from language models: prompts and samples, stopping, random numbers, padding."""

import logging
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm.generate import complete, end_of_text, pad_left, sample, uniform
from repro.errors import UserError

CHARACTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
EOS = len(CHARACTERS)


def characters(**special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes."""
    made = Tokenizer(models.BPE({each: token for token, each in enumerate(CHARACTERS)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return characters(eos_token="<end>")


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=EOS + 1, n_positions=32, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    made = GPT2LMHeadModel(config).double()  # of which padding changes no digit that matters
    for weight in (made.transformer.wpe.weight, made.lm_head.weight):
        weight.data *= 20  # or all tokens would be about as likely, wherever they are
    return made


@pytest.fixture(autouse=True)
def no_warnings(caplog: pytest.LogCaptureFixture) -> Any:
    """Fail a test in which transformers logs a warning."""
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    yield
    library.removeHandler(caplog.handler)
    assert not [record.message for record in caplog.records if record.levelno >= logging.WARNING]


PROMPTS = ["def f(x):", "a", "import os, sys\n", "", "x = 1"]


def test_greedy_is_the_models_own_choice(model: Any, tokenizer: Any) -> None:
    ids = [*tokenizer("ab")["input_ids"]]
    model.eval()
    for _ in range(6):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert sample(model, tokenizer, ["ab"], max_new_tokens=6, temperature=0) == [tokenizer.decode(ids[2:])]


def test_samples_do_not_depend_on_their_batch(model: Any, tokenizer: Any) -> None:
    keywords = {"max_new_tokens": 12, "temperature": 0.9, "top_p": 0.9, "seed": 3}
    whole = sample(model, tokenizer, PROMPTS, **keywords)
    assert len(set(whole)) == len(PROMPTS)
    assert sample(model, tokenizer, PROMPTS, batch_size=2, **keywords) == whole
    assert sample(model, tokenizer, PROMPTS[3:], first=3, **keywords) == whole[3:]
    assert sample(model, tokenizer, PROMPTS, **(keywords | {"seed": 4})) != whole
    state = torch.get_rng_state()
    sample(model, tokenizer, PROMPTS, **keywords)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not used"


def test_tokens_are_drawn_from_the_distribution(model: Any, tokenizer: Any) -> None:
    ids = torch.tensor([[5, 6]]).expand(4000, -1)
    for temperature, top_p in ((0.7, 1.0), (1.0, 0.5)):
        made, _ = complete(
            model, ids, torch.ones_like(ids), max_new_tokens=1, temperature=temperature, top_p=top_p, seed=1
        )
        expected = (model.eval()(ids[:1]).logits[0, -1] / temperature).softmax(-1).detach()
        if top_p < 1:
            order = expected.argsort(descending=True)
            few = int((expected[order].cumsum(0) < top_p).sum()) + 1
            expected[order[few:]] = 0
            expected /= expected.sum()
            assert set(made.flatten().tolist()) <= set(order[:few].tolist())
        drawn = torch.bincount(made.flatten(), minlength=EOS + 1) / 4000
        distance = float((drawn - expected).abs().sum() / 2)
        assert distance < 0.12, "about sqrt(257 / 4000) / 2.5 by chance"


def test_random_numbers_belong_to_seed_and_row() -> None:
    assert torch.equal(uniform(1, 2, 5, 7)[2], uniform(1, 4, 1, 9)[0, :7])
    assert not torch.equal(uniform(1, 2, 1, 7), uniform(2, 2, 1, 7))


def test_a_completion_ends_before_its_first_stop_string(model: Any, tokenizer: Any) -> None:
    keywords = {"max_new_tokens": 20, "temperature": 1.0}
    text = sample(model, tokenizer, ["ab"], **keywords)[0]
    words = [text[9:11], text[12:15]]
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    handle = model.register_forward_hook(count)
    cut = sample(model, tokenizer, ["ab"], stop=words, **keywords)
    handle.remove()
    assert cut == [text[: min(text.index(word) for word in words)]]
    assert steps < 20, "it stops generating, too"
    assert sample(model, tokenizer, [words[0]], stop=["zzz"], max_new_tokens=5) != [""]
    assert sample(model, tokenizer, [words[0] * 3], stop=words[:1], max_new_tokens=5, temperature=0.0) == (
        sample(model, tokenizer, [words[0] * 3], max_new_tokens=5, temperature=0.0)
    ), "a stop string in the prompt does not count"


def test_the_end_of_text_ends_a_completion(model: Any, tokenizer: Any) -> None:
    ids, mask = pad_left([[1, 2, 3], [4]])
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    keywords = {"max_new_tokens": 10, "temperature": 1.0}
    made, kept = complete(model, ids, mask, **keywords)
    assert kept.min() == 1
    end = int(made[0, 4])
    ended, kept = complete(model, ids, mask, eos=[end], **keywords)
    first = made[0].tolist().index(end)
    assert kept[0].tolist() == [1] * (first + 1) + [0] * (ended.shape[1] - first - 1)
    assert torch.equal(ended[0, : first + 1], made[0, : first + 1])
    other = made[1].tolist()
    stop = other.index(end) if end in other else ended.shape[1]
    assert kept[1].sum() == min(stop + 1, ended.shape[1])


def test_who_says_what_ends_a_text(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert end_of_text(model, characters()) == []
    assert end_of_text(model, tokenizer) == [EOS]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [3, 4])
    assert end_of_text(model, tokenizer) == [3, 4, EOS]
    forced = torch.zeros(EOS + 1).index_fill(0, torch.tensor(EOS), 1e3).double()

    def end_at_once(_module: object, _arguments: object, out: Any) -> None:
        out.logits += forced

    handle = model.register_forward_hook(end_at_once)
    try:
        assert sample(model, tokenizer, ["ab"], max_new_tokens=5) == [""]
    finally:
        handle.remove()


def test_a_long_prompt_is_read_from_its_end(model: Any, tokenizer: Any) -> None:
    long = "".join(map(str, range(100)))
    keywords = {"max_new_tokens": 8, "temperature": 0.5}
    assert sample(model, tokenizer, [long], **keywords) == sample(model, tokenizer, [long[-24:]], **keywords)
    assert sample(model, tokenizer, [long], **keywords) != sample(model, tokenizer, [long[-23:]], **keywords)


def test_the_models_own_settings_do_not_count(model: Any, tokenizer: Any) -> None:
    before = sample(model, tokenizer, ["ab"], max_new_tokens=8)
    model.generation_config.repetition_penalty, model.generation_config.top_k = 5.0, 1
    try:
        assert sample(model.train(), tokenizer, ["ab"], max_new_tokens=8) == before
        assert model.training
        assert model.generation_config.repetition_penalty == 5.0
    finally:
        model.generation_config.repetition_penalty = model.generation_config.top_k = None


def test_llama_too(tokenizer: Any) -> None:
    config = LlamaConfig(
        vocab_size=EOS + 1, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.5, bos_token_id=None, eos_token_id=EOS,
    )  # fmt: skip
    llama = LlamaForCausalLM(config).double()
    whole = sample(llama, tokenizer, PROMPTS, max_new_tokens=8)
    assert [
        sample(llama, tokenizer, [each], max_new_tokens=8, first=i)[0] for i, each in enumerate(PROMPTS)
    ] == whole


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"max_new_tokens": 32}, "max_new_tokens=32"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_arguments_that_cannot_work(model: Any, tokenizer: Any, keywords: Any, named: str) -> None:
    with pytest.raises(UserError, match=named):
        sample(model, tokenizer, ["ab"], **({"max_new_tokens": 4} | keywords))


def test_nothing_to_begin_with(model: Any) -> None:
    with pytest.raises(UserError, match="empty prompt"):
        sample(model, characters(), [""], max_new_tokens=4)
