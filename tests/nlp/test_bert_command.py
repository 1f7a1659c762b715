"""nlp/pretrain_bert.py end to end: it learns, resumes, exports, and refuses what cannot work."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoTokenizer, RobertaForMaskedLM

from nlp.bert import attention
from nlp.config.bert import BertConfig, EncoderConfig, SequencesConfig
from nlp.masking import IGNORED
from nlp.pretrain_bert import EXPORT, Pretraining, main
from repro.interop import read_weights
from repro.ledger import rows
from repro.runs import flatten, is_free
from repro.text.config import TokenizerConfig
from repro.train.data import FIXED
from repro.train.seeding import Draws
from repro.train.throughput import count_flops

Run = Callable[..., tuple[int, str, str]]
SMALL = [
    "tokenizer.vocab_size=400", "model.hidden_size=32", "model.intermediate_size=64",
    "model.num_hidden_layers=2", "model.num_attention_heads=2", "data.block=complete", "data.block_size=32",
    "batch_size=16", "run.log_every=4", "schedule.warmup_steps=2",
]  # fmt: skip
NOUNS, VERBS = ["cat", "dog", "bird", "horse"], ["sees", "hears", "likes", "finds"]


@pytest.fixture
def text(tmp_path: Path) -> list[str]:
    """Sentences of five words, whose first and last noun are the same; and the arguments to train on them."""
    rng = np.random.default_rng(0)
    for split, lines in (("train", 600), ("valid", 80)):
        nouns, verbs = rng.choice(NOUNS, lines), rng.choice(VERBS, lines)
        sentences = [f"the {n} {v} the {n}" for n, v in zip(nouns, verbs, strict=True)]
        documents = [
            line for i, line in enumerate(sentences) for line in ([line, ""] if i % 7 == 6 else [line])
        ]
        (tmp_path / f"{split}.txt").write_text("\n".join(documents) + "\n")
    return ["data=text", f"data.root={tmp_path}"]


@pytest.fixture
def command(runner: Callable[[Any], Run]) -> Run:
    return runner(main)


def records(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"runs/bert/{name}/metrics.jsonl").read_text().splitlines()]


def task(text: list[str], **encoder: Any) -> Pretraining:
    """The recipe on those sentences, in blocks of 16 tokens."""
    model = EncoderConfig(**dict(hidden_size=16, num_attention_heads=2, intermediate_size=32) | encoder)
    data = SequencesConfig(name="text", root=text[1].removeprefix("data.root="), block_size=16)
    return Pretraining(BertConfig(model=model, data=data, tokenizer=TokenizerConfig("bpe", vocab_size=300)))


def batch_of(recipe: Pretraining, size: int = 8) -> list[Tensor]:
    return validation(recipe, np.arange(size))


def validation(recipe: Pretraining, indices: np.ndarray) -> Any:
    return recipe.valid_data().whole_batch(indices, Draws(FIXED, indices))


def test_the_loss_is_transformers_own_with_labels(text: list[str]) -> None:
    recipe = task(text)
    model = recipe.build_model().double().eval()
    batch = batch_of(recipe)
    ids, seen, places, targets = batch
    labels = torch.full_like(ids, IGNORED)
    for row in range(len(ids)):
        kept = targets[row] != IGNORED
        labels[row, places[row, kept]] = targets[row, kept]
    plain = RobertaForMaskedLM(model.config).double().eval()
    nn.init.zeros_(plain.roberta.embeddings.token_type_embeddings.weight)
    plain.load_state_dict(model.state_dict(), strict=False)
    mask = seen.long() if seen.numel() else None
    expected = plain(ids, attention_mask=mask, labels=labels).loss
    with torch.no_grad():
        # the recipe computes it in float32, as it would under autocast
        assert recipe.loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-6)
        scores = model(ids, attention(seen), places)[0]
    exact = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    assert exact.item() == pytest.approx(expected.item(), rel=1e-12)
    assert recipe.num_items(batch) == (labels != IGNORED).sum()


def test_what_is_measured_does_not_depend_on_the_batches(text: list[str]) -> None:
    recipe = task(text)
    model = recipe.build_model().double().eval()  # so that rounding changes no argmax
    data = recipe.valid_data()
    found = []
    for size in (1, 7, len(data)):
        sums, count = {}, 0
        for begin in range(0, len(data), size):
            batch = validation(recipe, np.arange(begin, min(begin + size, len(data))))
            measures, number = recipe.evaluate(model, batch)
            sums = {key: sums.get(key, 0) + value.detach().double() for key, value in measures.items()}
            count += int(number)
        found.append(recipe.metrics(sums, count))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)
    assert found[0]["valid_perplexity"] == pytest.approx(2 ** found[0]["valid_loss"])
    assert found[0]["valid_loss"] == pytest.approx(math.log2(recipe.tokenizer.vocab_size), rel=0.05)


def test_operations_can_be_counted_without_values(text: list[str]) -> None:
    recipe = task(text)
    assert count_flops(recipe, recipe.build_model(), batch_of(recipe)) > 1e6


def test_a_run_learns_what_only_the_rest_of_a_sentence_tells(command: Run, text: list[str]) -> None:
    arguments = [*SMALL, *text, "steps=120", "batch_size=32", "optimizer.lr=1e-2", "schedule.warmup_steps=20"]
    # a sentence, <s> and </s> fill a block, so that a place tells the kind of word
    status, out, err = command(*arguments, "data.block_size=8", "model.initializer_range=0.1", "run.name=a")
    assert status == 0, err
    first, last = records("a")[0], records("a")[-1]
    assert set(last) == {
        "step", "lr", "epoch", "train_loss", "train_perplexity",
        "valid_loss", "valid_perplexity", "valid_accuracy",
    }  # fmt: skip
    assert first["train_perplexity"] == pytest.approx(2 ** first["train_loss"])
    # Of five words three are one of four, 1.2 bits on average. Two of these are the same noun: with the other
    # in sight 0.4 bits are left, of the verb, and some of those that are both hidden.
    assert last["valid_loss"] < 0.8 < 1.2 < first["train_loss"]
    assert "train: " in out
    assert "sequences of at most 8 tokens" in out
    summary = json.loads(Path("runs/bert/a/summary.json").read_text())
    shown = "\n".join(summary["examples"])
    assert " -> '" in shown
    assert shown in out
    assert Path("runs/bert/a/tokenizer/tokenizer.json").exists()


@pytest.mark.recipe
def test_the_export_gives_the_same_scores_in_transformers(command: Run, text: list[str]) -> None:
    status, _, err = command(*SMALL, *text, "steps=8", "run.name=a")
    assert status == 0, err
    run = Path("runs/bert/a")
    loaded, report = AutoModelForMaskedLM.from_pretrained(run / EXPORT, output_loading_info=True)
    assert not any(report[f"{what}_keys"] for what in ("missing", "unexpected", "mismatched"))
    config = BertConfig(
        model=EncoderConfig(hidden_size=32, num_attention_heads=2, intermediate_size=64, num_hidden_layers=2),
        data=SequencesConfig(name="text", root=text[1].removeprefix("data.root=")),
        tokenizer=TokenizerConfig("file", path=str(run / "tokenizer")),
    )
    recipe = Pretraining(config)
    ours = recipe.build_model().eval()
    ours.load_state_dict(read_weights(run)[0])
    ids = torch.tensor([AutoTokenizer.from_pretrained(run / EXPORT)("the cat sees the dog")["input_ids"]])
    assert ids[0].tolist() == recipe.tokenizer.encode(["the cat sees the dog"])[0]
    places = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(ids).logits, ours(ids, None, places)[0])


class Killed(Exception):
    """Stands for what ends a process."""


@pytest.mark.recipe
def test_a_run_that_was_cut_off_ends_with_the_same_bits(
    command: Run, text: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*SMALL, *text, "steps=20", "gradient_accumulation_steps=2", "run.checkpoint_every=3"]
    arguments += ["model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1"]
    assert command(*arguments, "run.name=whole")[0] == 0
    loss, calls = Pretraining.loss, 0

    def cut_off(self: Pretraining, model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls % 17 == 0:
            raise Killed
        return loss(self, model, batch)

    monkeypatch.setattr(Pretraining, "loss", cut_off)
    cuts = 0
    while True:
        try:
            assert command(*arguments, "run.name=parts")[0] == 0
            break
        except Killed:
            cuts += 1
    assert cuts >= 2
    whole, parts = (Path("runs/bert") / name for name in ("whole", "parts"))
    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
    for file in (f"{EXPORT}/model.safetensors", "checkpoints/step-000000020/model.safetensors"):
        ours, theirs = load_file(whole / file), load_file(parts / file)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.recipe
def test_a_bert_is_asked_whether_sentences_follow_each_other(command: Run, text: list[str]) -> None:
    small = [word for word in SMALL if not word.startswith("tokenizer")]
    arguments = [
        "model=bert_mini",
        "tokenizer=wordpiece",
        "tokenizer.vocab_size=200",
        *small,
        *text,
        "steps=4",
    ]
    status, _, err = command(
        *arguments,
        "model.next_sentence=true",
        "data.block=complete_doc",
        "gradient_accumulation_steps=2",
        "run.name=pairs",
    )
    assert status == 0, err
    last = records("pairs")[-1]
    assert last["valid_nsp_loss"] == pytest.approx(1, abs=0.3)
    assert 20 < last["valid_nsp_accuracy"] < 80
    # the training loss is the sum of both
    assert last["train_loss"] == pytest.approx(last["valid_loss"] + last["valid_nsp_loss"], rel=0.1)
    model = AutoModelForMaskedLM.from_pretrained(f"runs/bert/pairs/{EXPORT}")
    assert type(model).__name__ == "BertForMaskedLM"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["tokenizer=words"], "tokenizer.name=words: has no pad token for BERT"),
        (["data.block_size=600"], "has positions for 512 tokens"),
        (["data.block_size=4"], "data.block_size=4: must be at least 8"),
        (["data.block=lines"], "data.block=lines: must be one of complete, complete_doc, none"),
        (["data.mask_prob=0"], "data.mask_prob=0.0: must lie between 0 and 1"),
        (["data.random_token_prob=0.95"], "data.random_token_prob=0.95: must be shares of the hidden tokens"),
        (["model=bert_mini", "model.next_sentence=true", "data.block=none"], "data.block=none: "),
        (["model.vocab_size=30"], "model.vocab_size=30: the tokenizer has"),
        (["data.name=nothing"], "data.name=nothing: must be one of"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(
    command: Run, text: list[str], changed: list[str], message: str
) -> None:
    status, _, err = command(*SMALL, *text, *changed)
    assert status == 2
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("runs").exists() or not any(Path("runs/bert").iterdir())


def test_a_text_without_a_line_that_fits_is_refused(command: Run, tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text("word " * 300 + "\n")
    status, _, err = command(*SMALL, "data=text", f"data.root={tmp_path}", "data.block=complete")
    assert status == 2
    assert "data.block_size=32: no line of the train text is as short; data.block=none cuts lines" in err


@pytest.mark.parametrize("row", ["bert/adan", "bert/adam"])
def test_a_row_is_the_recipe_and_its_proxy_says_what_it_changes(row: str) -> None:
    paper = rows.load(row)
    assert paper.row.status == "runnable"
    typed(paper).check()
    assert -(-paper.get("data.train_sequences") // paper.get("batch_size")) == 51_488
    assert paper.get("data.mask_specials")
    for data in ("python_docs", "wikitext2"):
        proxy = rows.load(row, [f"+proxy={paper.row.proxy}", f"data={data}"])
        typed(proxy).check()
        assert (proxy.row.scale, proxy.get("data.name")) == ("proxy", data)
        ours, theirs = flatten(proxy.config), flatten(paper.config)
        changed = {key for key in ours if ours[key] != theirs.get(key) and not is_free(key)}
        settled = (
            "data.name",
            "eval_",
            "data.train_sequences",
            "data.valid_s",
        )  # these follow from the text
        for key in changed:
            said = any(key == reason or key.startswith(f"{reason}.") for reason in proxy.row.chosen)
            assert said or key.startswith(settled), key
        for key in (
            "optimizer.betas",
            "optimizer.weight_decay",
            "clip_grad",
            "schedule.name",
            "data.mask_prob",
        ):
            assert proxy.get(key) == paper.get(key)


def typed(recipe: rows.Recipe) -> BertConfig:
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(BertConfig), recipe.config))
    assert isinstance(config, BertConfig)
    return config
