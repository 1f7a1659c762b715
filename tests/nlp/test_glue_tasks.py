"""GLUE's tasks as they are known, and tasks that nobody has seen before."""

from pathlib import Path
from typing import Any

import glue_folders
import pytest

from nlp.config.glue import GlueDataConfig
from nlp.glue import data, tasks
from repro.errors import UserError


def read(name: str, root: Path | str | None, **options: Any) -> data.TaskData:
    return data.read(name, GlueDataConfig(root=None if root is None else str(root), **options))


def refused(name: str, root: Path | str | None, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(name, root, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", ["sst2", "SST-2", "Sst_2", "sst-2"])
def test_names_of_tasks_and_folders(tmp_path: Path, name: str) -> None:
    """The folder of all tasks, that of the task, and any other name of that."""
    folder = glue_folders.sst2(tmp_path)
    glue_folders.cola(tmp_path)
    assert len(read(name, tmp_path).train) == 64
    assert len(read(name, folder).train) == 64
    folder.rename(tmp_path / "films")
    assert len(read(name, tmp_path / "films").train) == 64
    assert "no folder" in refused(name, tmp_path)
    assert refused(name, tmp_path).endswith("folders there: CoLA, films")


def test_two_folders_of_one_task(tmp_path: Path) -> None:
    glue_folders.sst2(tmp_path).rename(tmp_path / "sst2")
    glue_folders.sst2(tmp_path)
    assert len(read("sst2", tmp_path).train) == 64  # named exactly
    assert "both SST-2 and sst2 are Sst2; name one of them" in refused("Sst2", tmp_path)


def test_no_folder() -> None:
    assert refused("sst2", "/no/where").startswith("data.root=/no/where: no such folder; name that of a task")
    message = refused("films", None)
    assert message.startswith(
        "task=films: is none of cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli. Another"
    )
    assert "did you mean cola?" in refused("cola2", None)


def test_every_task_of_glue_says_what_it_must() -> None:
    """The metric that chooses the checkpoint, and the names of the predictions on gluebenchmark.com."""
    chosen = {task.name: task.metrics[0] for task in tasks.GLUE}
    assert chosen == {
        "CoLA": "matthews_correlation", "SST-2": "accuracy", "MRPC": "f1", "STS-B": "pearson", "QQP": "f1",
        "MNLI": "accuracy", "QNLI": "accuracy", "RTE": "accuracy", "WNLI": "accuracy",
    }  # fmt: skip
    files = {name for task in tasks.GLUE for name in task.tests}
    wanted = "CoLA SST-2 MRPC STS-B QQP MNLI-m MNLI-mm QNLI RTE WNLI AX"
    assert files == set(wanted.split())
    assert {len(task.texts) for task in tasks.GLUE} == {1, 2}


# ---- tasks that no one has seen before


def answers(root: Path, header: bool = True) -> Path:
    """A task of pairs with three classes, columns of its own, and labels in the test file."""
    rows: list[list[object]] = [
        [f"what is {n}?", f"x{n}", f"it is {n + n % 3}", ["right", "close", "wrong"][n % 3]]
        for n in range(45)
    ]
    names: list[list[object]] = [["question", "id", "answer", "verdict"]] if header else []
    glue_folders.write(root / "Answers" / "train.tsv", names + rows[:30])
    glue_folders.write(root / "Answers" / "dev.tsv", names + rows[30:36])
    glue_folders.write(root / "Answers" / "test.tsv", names + rows[36:])
    return root / "Answers"


def test_described_on_the_command_line(tmp_path: Path) -> None:
    folder = answers(tmp_path)
    for root in (tmp_path, folder):
        found = read("answers", root, texts=["question", "answer"], label="verdict")
        assert found.task.labels == ("close", "right", "wrong")  # those of the training file, sorted
        assert found.task.metrics == ("accuracy",)
        assert found.train.texts[1] == ("what is 1?", "it is 2")
        assert found.train.labels is not None
        assert found.train.labels[:3].tolist() == [1, 0, 2]
        assert found.test["answers"].labels is not None
        assert found.test["answers"].index == [str(n) for n in range(9)]


def test_described_in_its_folder(tmp_path: Path) -> None:
    folder = answers(tmp_path)
    (folder / "task.yaml").write_text(
        "texts: [question, answer]\nlabel: verdict\nlabels: [wrong, close, right]\n"
    )
    found = read("answers", tmp_path)
    assert found.task.labels == ("wrong", "close", "right")
    assert found.train.labels is not None
    assert found.train.labels[:3].tolist() == [2, 1, 0]
    assert read("answers", tmp_path, texts=["answer"]).train.texts[0] == ("it is 0",)  # what is given wins


def test_without_a_line_of_names(tmp_path: Path) -> None:
    answers(tmp_path, header=False)
    names = ["question", "id", "answer", "verdict"]
    found = read("answers", tmp_path, texts=["question"], label="verdict", columns=names)
    assert len(found.train) == 30
    assert found.train.texts[0] == ("what is 0?",)
    assert "columns=['question']: has no verdict" in refused(
        "answers", tmp_path, texts=["question"], label="verdict", columns=["question"]
    )


def test_a_score(tmp_path: Path) -> None:
    rows: list[list[object]] = [["text", "stars"], *([f"film {n}", n % 11 / 2] for n in range(40))]
    glue_folders.write(tmp_path / "Stars" / "train.tsv", rows[:31])
    glue_folders.write(tmp_path / "Stars" / "dev.tsv", rows[:1] + rows[31:])
    found = read("stars", tmp_path, texts=["text"], label="stars", score=[0, 5])
    assert (found.task.metrics, found.task.labels) == (("pearson", "spearman"), ())
    assert found.train.labels is not None
    assert found.train.labels[:3].tolist() == [0.0, 0.5, 1.0]
    assert "stars '0.0' is out of range; must lie in 1 to 5" in refused(
        "stars", tmp_path, texts=["text"], label="stars", score=[1, 5]
    )
    many = [*rows[:1], *([f"film {n}", n / 7] for n in range(30))]
    glue_folders.write(tmp_path / "Stars" / "train.tsv", many)
    message = refused("stars", tmp_path, texts=["text"], label="stars")
    assert "column 'stars' has 30 values in 30 examples; is it a score? Then set data.score" in message


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"texts": ["question", "answer", "id"]}, "must be the names of one column, or of two"),
        ({"texts": []}, "must be the names of one column, or of two"),
        ({"label": "verdict"}, "texts=[]: must be the names of one column, or of two"),
        ({"texts": ["nope"], "label": "verdict"}, "train.tsv:1: has no column 'nope'"),
        ({"texts": ["question"]}, "train.tsv:1: has no column 'label'"),
        ({"texts": ["question"], "label": "verdict", "labels": ["right"]}, "must be at least two, each once"),
        (
            {"texts": ["question"], "label": "verdict", "labels": ["right", "wrong"]},
            ":3: verdict 'close' is none of",
        ),
        (
            {"texts": ["question"], "label": "verdict", "metrics": ["pearson"]},
            "pearson: must be one of accuracy, f1",
        ),
        (
            {"texts": ["question"], "label": "verdict", "metrics": ["f1"]},
            "f1: is for two classes",
        ),
        (
            {"texts": ["question"], "label": "verdict", "score": [5, 0]},
            "must be the lowest score and the highest",
        ),
        ({"texts": ["question"], "label": "verdict", "score": [0, 5]}, ":2: verdict 'right' is no number"),
        ({"texts": ["question"], "score": [0, 5], "labels": ["a", "b"]}, "has both labels and score"),
        (
            {"texts": ["question"], "score": [0, 5], "metrics": ["accuracy"]},
            "must be one of pearson, spearman",
        ),
        ({}, "is none of cola, sst2"),
    ],
)
def test_descriptions_that_make_no_sense(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    answers(tmp_path)
    assert says in refused("answers", tmp_path, **options)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("text: [question]\n", "text: no such key; did you mean texts?"),
        ("- question\n", "write key: value lines"),
        ("texts: [question\n", "cannot be read"),
        ("texts: [question]\nlabels: [yes, no]\n", 'write truth values in quotes, as "yes" and "no"'),
        ("texts: [question]\nscore: [low, high]\n", "could not convert"),
        ("texts: [question]\nlabel: verdict\nbad_lines: keep\n", "bad_lines=keep: must be refuse or skip"),
    ],
)
def test_a_task_yaml_that_makes_no_sense(tmp_path: Path, text: str, says: str) -> None:
    path = answers(tmp_path) / "task.yaml"
    path.write_text(text)
    message = refused("answers", tmp_path)
    assert str(path.parent) in message
    assert says in message


def test_a_task_yaml_of_aliases(tmp_path: Path) -> None:
    """A kilobyte that would be gigabytes in whatever prints it."""
    levels = [f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(9)]
    folder = answers(tmp_path)
    (folder / "task.yaml").write_text("".join(levels))
    assert "task.yaml: cannot be read (has more than 100,000 values" in refused("answers", tmp_path)


def test_one_class_alone(tmp_path: Path) -> None:
    folder = answers(tmp_path)
    glue_folders.write(
        folder / "train.tsv", [["question", "verdict"], *([f"q{n}", "right"] for n in range(9))]
    )
    assert "all labels are 'right'" in refused("answers", tmp_path, texts=["question"], label="verdict")


# ---- the hub, from a folder that the `datasets` library reads as it reads the hub


def hub(root: Path, names: list[str]) -> Path:
    """A folder of Parquet files with a card, as nyu-mll/glue is on the hub."""
    import datasets

    features = datasets.Features(
        {
            "sentence1": datasets.Value("string"),
            "sentence2": datasets.Value("string"),
            "label": datasets.ClassLabel(names=names),
            "idx": datasets.Value("int32"),
        }
    )
    card = ["---", "configs:", "- config_name: rte", "  data_files:"]
    for split, size in (("train", 12), ("validation", 5), ("test", 4)):
        rows = {
            "sentence1": [f"{split} {n}" for n in range(size)],
            "sentence2": [f"b {n}" for n in range(size)],
            "label": [-1 if split == "test" else n % 2 for n in range(size)],
            "idx": list(range(size)),
        }
        (root / "rte").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "rte" / f"{split}.parquet")
        card += [f"  - split: {split}", f"    path: rte/{split}.parquet"]
    (root / "README.md").write_text("\n".join([*card, "---", ""]))
    return root


def test_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    root = hub(tmp_path / "hub", ["entailment", "not_entailment"])
    found = read("rte", None, hub=str(root))
    assert (len(found.train), len(found.dev[""]), len(found.test["RTE"])) == (12, 5, 4)
    assert found.train.texts[3] == ("train 3", "b 3")
    assert found.train.labels is not None
    assert found.train.labels.tolist() == [n % 2 for n in range(12)]
    assert found.test["RTE"].labels is None
    assert found.test["RTE"].index == list("0123")
    other = hub(tmp_path / "other", ["no", "yes"])
    assert "is not GLUE's: it lacks" in refused("rte", None, hub=str(other))
    message = refused("cola", None, hub=str(root))
    assert message.startswith(f"data.root is not set, and data.hub={root}: cola cannot be loaded (")
    assert "set data.root=PATH" in message
    assert refused("rte", None, hub=None).startswith("task=RTE: data.root is not set; set data.root=PATH")


# ---- the embedded task


def test_the_embedded_task() -> None:
    found = read("packages", None)
    assert len(found.train) > 2000
    assert len(found.dev[""]) > 400
    assert not set(found.train.texts) & set(found.dev[""].texts)
    assert found.train.labels is not None
    counts = [int((found.train.labels == n).sum()) for n in range(len(found.task.labels))]
    assert min(counts) > 100
    assert max(counts) < len(found.train) / 3
