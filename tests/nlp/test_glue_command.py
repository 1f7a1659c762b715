"""The command of fine-tuning, from its arguments to its files."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import glue_folders
import pytest
import torch
import transformers

from nlp.finetune_glue import main
from nlp.glue import seeds
from repro.interop import read_weights

Run = Callable[..., tuple[int, str, str]]
TINY = [
    "model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2",
    "model.intermediate_size=32",
    "tokenizer.vocab_size=400", "data.max_length=32", "batch_size=16", "epochs=2", "schedule.warmup_epochs=0",
    "optimizer.lr=5e-3",
]  # fmt: skip


@pytest.fixture
def command(runner: Callable[[Any], Run]) -> Run:
    return runner(main)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of several tasks."""
    for task in (
        glue_folders.sst2,
        glue_folders.cola,
        glue_folders.stsb,
        glue_folders.mnli,
        glue_folders.mrpc,
    ):
        task(tmp_path / "glue")
    return tmp_path / "glue"


def summary(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"runs/glue/{name}/summary.json").read_text())
    return found


def table(path: str) -> list[list[str]]:
    return [line.split("\t") for line in Path(path).read_text().splitlines()]


def fails(command: Run, *arguments: str) -> str:
    status, _, err = command(*arguments)
    [line] = err.splitlines()
    assert status == 2
    return line.removeprefix("error: ")


def test_a_run_from_scratch(command: Run, tmp_path: Path) -> None:
    glue_folders.sst2(tmp_path, train=480)
    status, out, err = command("task=sst2", f"data.root={tmp_path}", *TINY, "epochs=8", "run.name=x")
    assert (status, err) == (0, "")
    assert "SST-2: 480 training examples; starts from random weights (model.checkpoint=scratch)" in out
    found = summary("x")
    assert found["metric"] == "valid_accuracy"
    assert found["steps"] == 8 * 30
    assert found["best"]["valid_accuracy"] > 90  # it learned which words praise
    assert len(found["examples"]) == 8
    assert all(line.startswith(("right  ", "WRONG  ")) for line in found["examples"])
    assert found["examples"][0] in out
    test = table("runs/glue/x/predictions/SST-2.tsv")
    assert test[0] == ["index", "prediction"]
    assert [row[0] for row in test[1:]] == [str(n) for n in range(10)]
    assert {row[1] for row in test[1:]} <= {"0", "1"}
    dev = table("runs/glue/x/predictions/dev.tsv")
    assert dev[0] == ["index", "prediction", "label"]
    right = sum(row[1] == row[2] for row in dev[1:]) / len(dev[1:])
    assert 100 * right == pytest.approx(found["best"]["valid_accuracy"])


@pytest.mark.recipe
def test_every_kind_of_task(command: Run, root: Path) -> None:
    """The figures that are recorded, the one that chooses, and the files for the GLUE server."""
    expected = {
        "cola": ("valid_matthews_correlation", {"valid_loss"}, {"CoLA": {"0", "1"}}),
        "stsb": ("valid_pearson", {"valid_spearman", "valid_loss"}, {"STS-B": None}),
        "mrpc": ("valid_f1", {"valid_accuracy", "valid_loss"}, {"MRPC": {"0", "1"}}),
        "mnli": (
            "valid_accuracy_matched",
            {"valid_accuracy_mismatched", "valid_loss_matched", "valid_loss_mismatched"},
            {name: {"entailment", "neutral", "contradiction"} for name in ("MNLI-m", "MNLI-mm")},
        ),
    }
    for task, (metric, others, files) in expected.items():
        status, _, err = command(f"task={task}", f"data.root={root}", *TINY, "epochs=1", f"run.name={task}")
        assert (status, err) == (0, "")
        found = summary(task)
        assert found["metric"] == metric
        assert {key for key in found["final"] if key.startswith("valid_")} == {metric, *others}
        for name, labels in files.items():
            rows = table(f"runs/glue/{task}/predictions/{name}.tsv")
            assert rows[0] == ["index", "prediction"]
            if labels is None:
                assert all(0 <= float(row[1]) <= 5 for row in rows[1:])
            else:
                assert {row[1] for row in rows[1:]} <= labels
    assert len(table("runs/glue/mnli/predictions/dev_mismatched.tsv")) == 1 + 15


@pytest.mark.recipe
def test_a_task_that_no_one_has_seen_before(command: Run, tmp_path: Path) -> None:
    """Its test file has labels, so it is measured, once, with the best weights."""
    folder = tmp_path / "reviews"
    for split, numbers in (("train", range(48)), ("dev", range(60, 80)), ("test", range(80, 95))):
        rows = [[number, *glue_folders.sentence(number)] for number in numbers]
        marks: list[list[object]] = [[n, "praise" if label else "blame", text] for n, text, label in rows]
        glue_folders.write(folder / f"{split}.tsv", [["nr", "verdict", "review"], *marks])
    (folder / "task.yaml").write_text("texts: [review]\nlabel: verdict\nmetrics: [f1, accuracy]\n")
    status, out, err = command("task=reviews", f"data.root={folder}", *TINY, "run.name=x")
    assert (status, err) == (0, "")
    found = summary("x")
    assert found["metric"] == "valid_f1"
    assert set(found["test"]) >= {"test_f1", "test_accuracy", "test_loss"}
    rows = table("runs/glue/x/predictions/reviews.tsv")
    assert rows[0] == ["index", "prediction", "label"]
    right = sum(row[1] == row[2] for row in rows[1:]) / 15
    assert 100 * right == pytest.approx(found["test"]["test_accuracy"])
    assert "test_f1" in out


@pytest.mark.recipe
def test_a_killed_run_goes_on_to_the_same_bits(
    command: Run, root: Path, killed_after: Callable[[int], AbstractContextManager[None]]
) -> None:
    words = ["task=stsb", f"data.root={root}", *TINY, "data.max_tokens=96", "run.checkpoint_every=1"]
    assert command(*words, "run.name=whole")[0] == 0
    with killed_after(5):
        assert command(*words, "run.name=killed")[0] == 130
    status, out, _ = command(*words, "run.name=killed")
    assert status == 0
    assert "continuing runs/glue/killed at step 5" in out
    whole, parts = (Path(f"runs/glue/{name}/metrics.jsonl").read_text() for name in ("whole", "killed"))
    assert whole == parts
    ours, theirs = (read_weights(Path(f"runs/glue/{name}"))[0] for name in ("whole", "killed"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.recipe
def test_several_seeds(command: Run, root: Path) -> None:
    words = ["task=cola", f"data.root={root}", *TINY]
    status, out, err = command(*words, "seeds=[1,2,3]", "run.name=x")
    assert (status, err) == (0, "")
    found = json.loads(Path("runs/glue/x/seeds.json").read_text())
    assert found["seeds"] == [1, 2, 3]
    assert found["runs"] == [f"runs/glue/x-seed{seed}" for seed in (1, 2, 3)]
    best = [summary(f"x-seed{seed}")["best"]["valid_matthews_correlation"] for seed in (1, 2, 3)]
    measure = found["measures"]["valid_matthews_correlation"]
    assert measure["values"] == best
    assert measure["median"] == sorted(best)[1]
    assert f"median {sorted(best)[1]:.4g}, {min(best):.4g} to {max(best):.4g}" in out
    losses = [summary(f"x-seed{seed}")["final"]["train_loss"] for seed in (1, 2, 3)]
    assert len(set(losses)) == 3
    # one of them alone, and the same command again, find what is there
    status, out, _ = command(*words, "seed=2", "run.name=x-seed2")
    assert "runs/glue/x-seed2 is finished" in out
    assert command(*words, "seeds=[1,2,3]", "run.name=x")[1].count("is finished") == 3


def test_names_of_runs_with_seeds_are_those_of_a_multirun() -> None:
    from nlp.config.glue import GlueConfig
    from repro.train.run_folder import run_name

    made = list(seeds.runs(GlueConfig(seeds=[4, 5]), ["task=cola", "seeds=[4,5]"]))
    assert [name for name, _ in made] == [run_name(["task=cola", f"seed={seed}"]) for seed in (4, 5)]
    assert [(config.seed, config.seeds) for _, config in made] == [(4, None), (5, None)]
    assert seeds.spread([3.0]) == dict(median=3.0, min=3.0, max=3.0, deviation=0.0, values=[3.0])
    assert seeds.spread([1.0, 2.0, 6.0])["deviation"] == pytest.approx(7**0.5)


@pytest.mark.recipe
def test_a_run_starts_from_a_run(command: Run, root: Path) -> None:
    """Encoder, its shape and tokenizer are those of the run; the head is new."""
    first = [*TINY, "model.name=bert", "model.type_vocab_size=2", "model.layer_norm_eps=1e-12"]
    assert command("task=mnli", f"data.root={root}", *first, "epochs=1", "run.name=first")[0] == 0
    small = ["data.max_length=32", "batch_size=16", "epochs=1", "schedule.warmup_epochs=0", "optimizer.lr=0"]
    start = "model.checkpoint=runs/glue/first"
    status, out, err = command("task=sst2", f"data.root={root}", start, *small, "run.name=second")
    assert (status, err) == (0, "")
    assert "starts from runs/glue/first" in out
    before, after = (read_weights(Path(f"runs/glue/{name}"))[0] for name in ("first", "second"))
    assert torch.equal(before["bert.pooler.dense.weight"], after["bert.pooler.dense.weight"])
    encoder = [name for name in before if name.startswith("bert.")]
    assert len(encoder) > 10
    assert all(torch.equal(before[name], after[name]) for name in encoder)
    assert after["classifier.weight"].shape == (2, 16)
    ours, theirs = (Path(f"runs/glue/{name}/tokenizer/tokenizer.json") for name in ("first", "second"))
    assert ours.read_bytes() == theirs.read_bytes()


def hugging_face(path: Path, positions: int = 40) -> Path:
    """A small BERT as the transformers library saves it."""
    words = sorted({word for n in range(40) for word in glue_folders.sentence(n)[0].split()})
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = transformers.BertTokenizer(str(path / "vocab.txt"), model_max_length=positions)
    tokenizer.save_pretrained(path)
    shape = transformers.BertConfig(
        vocab_size=len(words) + 5, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=positions,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertForMaskedLM(shape).save_pretrained(path)
    return path


@pytest.mark.recipe
def test_a_run_starts_from_a_hugging_face_model(command: Run, root: Path, tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "model")
    words = [
        "task=mrpc",
        f"data.root={root}",
        f"model.checkpoint={path}",
        "epochs=1",
        "schedule.warmup_epochs=0",
    ]
    status, _, err = command(*words, "data.max_length=32", "optimizer.lr=0", "batch_size=16", "run.name=x")
    assert (status, err) == (0, "")
    assert summary("x")["model"] == f"bert ({path})"
    weights, before = read_weights(Path("runs/glue/x"))[0], read_weights(path)[0]
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(weights[name], before[name])
    assert table("runs/glue/x/predictions/MRPC.tsv")[0] == ["index", "prediction"]
    assert "reads 40 tokens" in fails(command, *words, "data.max_length=64")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["task=sst"], "task=sst: is none of cola, sst2"),
        (["task=sst2"], "data.root="),
        (["model.checkpoint=null"], "model.checkpoint is not set: name the folder of a run of nlp/pretrain"),
        (["model.checkpoint=/no/where/at/all"], "model.checkpoint=/no/where/at/all: no such file or folder"),
        (["loss=mse"], "loss=mse: packages is trained with cross_entropy"),
        (["loss=l1"], "loss=l1: must be one of cross_entropy, mse"),
        (["model.num_labels=3"], "model.num_labels=3: packages takes 7"),
        (["data.train_examples=9"], "data.train_examples=9: there are "),
        (["select.metric=valid_f1"], "select.metric=valid_f1: packages has valid_loss, valid_accuracy"),
        (["data.max_length=4"], "data.max_length=4: must be at least 8"),
        (["data.max_length=600"], "data.max_length=600: the model has positions for 512 tokens"),
        (["data.max_tokens=100"], "data.max_tokens=100: must be at least data.max_length=128"),
        (["data.bad_lines=keep"], "data.bad_lines=keep: must be one of refuse, skip"),
        (["seeds=[]"], "seeds=[]: must be numbers, each once"),
        (["seeds=[1,1]"], "seeds=[1, 1]: must be numbers, each once"),
        (["seeds=[-1]"], "seeds=[-1]: must be at least 0"),
        (["data.label_scale=0"], "data.label_scale=0.0: must be above 0"),
        (["data.skip_valid_examples=9999"], "data.skip_valid_examples=9999: the development set has "),
        (["tokenizer=words"], "tokenizer: has no tokens for the begin and end of a sentence"),
        (["+paper=glue/cola"], "model.checkpoint is not set: glue/cola starts from bert/adan, `"),
        (["+paper=glue/cola_adam"], "model.checkpoint is not set: glue/cola_adam starts from bert/adam"),
    ],
)  # fmt: skip
def test_bad_input(command: Run, arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlp.config.glue.GlueDataConfig.hub", None)
    assert fails(command, "data.hub=null", *arguments).startswith(
        line.replace("data.root=", "task=SST-2: data.root")
    )


def test_a_row_wants_a_model_of_its_shape(command: Run, root: Path) -> None:
    assert command("task=sst2", f"data.root={root}", *TINY, "epochs=1", "run.name=small")[0] == 0
    words = ["+paper=glue/sst2", f"data.root={root}", "model.checkpoint=runs/glue/small", "amp=no"]
    line = fails(command, *words)
    assert "glue/sst2 is of a model with hidden_size=768, this one has 16" in line


@pytest.mark.recipe
def test_a_layer_wise_learning_rate(command: Run, root: Path) -> None:
    words = ["task=sst2", f"data.root={root}", *TINY, "epochs=1", "optimizer.layer_decay=0.5"]
    assert command(*words, "model.num_hidden_layers=3", "run.name=x")[0] == 0
    state = torch.load("runs/glue/x/checkpoints/step-000000004/training.pt", weights_only=True)
    rates = {group["name"]: group["lr"] for group in state["optimizer"]["param_groups"]}
    scales = [rates[f"decay_layer{layer}"] / rates["decay_layer4"] for layer in range(5)]  # 0: the embeddings
    assert scales == pytest.approx([0.0625, 0.125, 0.25, 0.5, 1.0])


def test_gradients_are_those_of_the_mean_over_examples(command: Run, root: Path) -> None:
    """The last batch of an epoch is smaller, so that its micro-batches are not equal."""
    words = ["task=cola", f"data.root={root}", *TINY, "batch_size=27", "epochs=1"]
    assert command(*words, "run.name=one")[0] == 0
    assert command(*words, "gradient_accumulation_steps=3", "run.name=three")[0] == 0
    one, three = (summary(name)["final"] for name in ("one", "three"))
    assert one["train_loss"] == pytest.approx(three["train_loss"], rel=1e-5)
    assert one["valid_loss"] == pytest.approx(three["valid_loss"], rel=1e-4)
