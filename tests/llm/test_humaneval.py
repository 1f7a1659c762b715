"""The command that scores a model on programming tasks."""

import gzip
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from llm import humaneval
from llm.code_eval import problems
from llm.code_eval.problems import OWN
from llm.code_eval.sandbox import Sandbox
from repro import reading
from repro.errors import UserError


@pytest.fixture(scope="module")
def permitted() -> None:
    """Skip where programs cannot be run safely."""
    try:
        Sandbox().close()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def command(runner: Any, permitted: None) -> Any:
    return runner(humaneval.main)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a small model of random weights and a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("model")
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(BPE({each: token for token, each in enumerate(characters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=257, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    config.bos_token_id = config.eos_token_id = 256
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def summary(folder: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(Path(folder, "summary.json").read_text())
    return read


def write(path: Path, lines: list[Any]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_humanevals_own_solutions_all_pass(command: Any) -> None:
    if "ADAN_DATA" not in os.environ:
        pytest.skip("ADAN_DATA does not lead to HumanEval")
    data = Path(os.environ["ADAN_DATA"], "humaneval")
    status, out, err = command(
        "--canonical", "--data", str(data), "--execute", "--timeout", "20", "--out", "o"
    )
    assert status == 0, err
    assert "164 of 164 tasks, 164 programs: 164 passed, 164 tasks solved" in out
    assert summary("o")["failed"] == {}


def test_sampling_judging_and_continuing(command: Any, model: str) -> None:
    arguments = [
        model, "--execute", "--samples", "2", "--max-new-tokens", "6", "--batch-size", "4",
        "--temperature", "2", "--workers", "1",
    ]  # fmt: skip
    status, out, err = command(*arguments, "--out", "whole")
    assert status == 0, err
    samples = Path("whole/samples.jsonl").read_text()
    lines = [json.loads(line) for line in samples.splitlines()]
    assert [line["task_id"] for line in lines] == [task.task_id for task in OWN for _ in range(2)]
    assert len({line["completion"] for line in lines}) > 4
    told = summary("whole")
    assert (told["tasks"], told["programs"], told["passed"]) == (5, 10, 0)
    assert list(told["scores"]) == ["pass@1"]
    assert sum(told["failed"].values()) == 10
    assert "system call filter" in str(told["protection"])
    assert "in force: " in out
    # killed while sampling and, another time, while judging: a batch is cut, a line is cut
    results = Path("whole/results.jsonl").read_text()
    kept = samples.splitlines(keepends=True)
    for name, text, cut in (
        ("samples.jsonl", "".join(kept[:6]), None),
        ("results.jsonl", samples, results[:150]),
    ):
        folder = Path("killed", name)
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text(Path("whole/settings.json").read_text())
        (folder / "samples.jsonl").write_text(text + ("" if cut else kept[6][:9]))
        if cut:
            (folder / "results.jsonl").write_text(cut)
        assert command(*arguments, "--out", str(folder))[0] == 0
        assert (folder / "samples.jsonl").read_text() == samples
        assert (folder / "results.jsonl").read_text() == results
    status, _, err = command(*arguments, "--out", "whole", "--seed", "5")
    assert (status, err) == (
        2, "error: whole was begun with seed 0, now it is 5; set it back, or take another --out FOLDER\n"
    )  # fmt: skip
    assert command(*arguments, "--out", "other", "--seed", "5")[0] == 0
    assert Path("other/samples.jsonl").read_text() != samples


def test_completions_of_a_file(command: Any, tmp_path: Path) -> None:
    right, wrong = OWN[0].canonical_solution, "    return 'no'\n"
    given = [(0, right), (0, wrong), (0, wrong), (1, wrong), (1, OWN[1].canonical_solution), (1, wrong)]
    lines = [{"task_id": OWN[task].task_id, "completion": text} for task, text in given]
    file = write(tmp_path / "some.jsonl", lines)
    status, out, err = command("--completions", file, "--execute", "--k", "1", "2", "--workers", "1")
    assert status == 0, err
    told = summary("runs/humaneval/some")
    assert told["scores"]["pass@1"]["value"] == pytest.approx(1 / 3)
    assert told["scores"]["pass@2"]["value"] == pytest.approx(2 / 3)
    assert told["failed"] == {"AssertionError": 4}
    assert "2 of 5 tasks, 6 programs: 2 passed, 2 tasks solved at least once" in out
    status, _, err = command("--completions", file, "--execute", "--k", "4", "--out", "o")
    assert (status, err) == (2, "error: --k 4: must be 1 to 3, as there are 3 samples of a task\n")


def test_a_row_says_how_to_sample_and_what_was_published(
    command: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = humaneval.rows.load("gpt2/adan_150k")
    options = humaneval.read_options([model, "--row", "gpt2/adan_150k", "--temperature", "0.5"])
    assert humaneval.of_row(row, options) == {
        "samples": 200, "temperature": 0.5, "top_p": 0.95, "max_new_tokens": 512,
    }  # fmt: skip
    status, _, err = command(model, "--row", "gpt2/adan_150k", "--execute")
    assert status == 2
    assert err == "error: --row gpt2/adan_150k: is for HumanEval's 164 tasks, --data has 5\n"
    status, _, err = command(model, "--row", "moe/8x0.1b_10b_adan", "--execute")
    assert (status, err) == (2, "error: --row moe/8x0.1b_10b_adan: it is not evaluated on HumanEval\n")
    tasks = [asdict(replace(OWN[number % 5], task_id=f"T/{number}")) for number in range(164)]
    lines = [{"task_id": task["task_id"], "completion": "    pass\n"} for task in tasks[:10]]
    status, out, err = command(
        "--completions", write(tmp_path / "c.jsonl", lines), "--data", write(tmp_path / "t.jsonl", tasks),
        "--row", "gpt2/adan_150k", "--execute", "--workers", "1",
    )  # fmt: skip
    assert status == 0, err
    assert (
        "pass@1    0.0000, 95 % interval 0.0000 to 0.0000; published 0.0843 (gpt2/adan_150k), outside" in out
    )
    assert summary("runs/humaneval/c")["published"] == {"pass@1": 0.0843}


def test_nothing_is_run_without_leave(runner: Any) -> None:
    status, out, err = runner(humaneval.main)("--canonical")
    assert (status, out) == (2, "")
    assert "runs programs that a model wrote" in err
    assert "--execute" in err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--execute"], "name a MODEL, or give --completions FILE or --canonical"),
        (["m", "--canonical", "--execute"], "name a MODEL, or give --completions FILE or --canonical"),
        (["--canonical", "--execute", "--data", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["--canonical", "--execute", "--data", "."], ".: no HumanEval.jsonl.gz is there; name a file"),
        (["--canonical", "--execute", "--k", "2"], "--k 2: must be 1 to 1"),
        (["--canonical", "--execute", "--workers", "0"], "--workers 0: must be at least 1"),
        (["m", "--execute", "--samples", "0"], "--samples 0: must be at least 1"),
        (["--canonical", "--execute", "--timeout", "0"], "a time limit of 0.0 seconds: must be above 0"),
        (["--canonical", "--execute", "--row", "no/row"], "no/row: no such row"),
    ],
)
def test_arguments_that_cannot_work(runner: Any, arguments: list[str], message: str) -> None:
    status, _, err = runner(humaneval.main)(*arguments)
    assert status == 2
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


TASK = asdict(OWN[0])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([TASK, "{"], "tasks.jsonl:2: is no JSON object"),
        ([TASK, "[]"], "tasks.jsonl:2: is no JSON object"),
        ([TASK, "", TASK | {"task_id": "b", "test": 7}], "tasks.jsonl:3: test is missing, or no text"),
        ([TASK, TASK], "tasks.jsonl:2: Own/double is there twice"),
        ([TASK | {"prompt": "def f(x)"}], "tasks.jsonl:1: prompt is no valid Python"),
        ([TASK | {"test": "-" * 100_000 + "1"}], "tasks.jsonl:1: test is no valid Python"),
        ([TASK, "[" * 5000], "tasks.jsonl:2: is no JSON object: nested too deeply"),
        ([], "tasks.jsonl: has no task"),
    ],
)
def test_malformed_tasks(tmp_path: Path, lines: list[Any], message: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines))
    with pytest.raises(UserError) as caught:
        problems.read(path)
    assert message in str(caught.value)


def test_malformed_completions(tmp_path: Path) -> None:
    for lines, message in (
        (
            [{"task_id": "Own/double", "completion": ""}, {"task_id": "x", "completion": ""}],
            ":2: x: no such task",
        ),
        ([{"task_id": "Own/double"}], ":1: completion is missing"),
        ([], "has no completion"),
    ):
        with pytest.raises(UserError, match=message):
            problems.read_completions(Path(write(tmp_path / "c.jsonl", lines)), OWN)


def test_tasks_may_be_compressed(tmp_path: Path) -> None:
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps(asdict(task)) for task in OWN).encode()))
    assert problems.read(tmp_path) == list(OWN)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"HumanEval\.jsonl\.gz: cannot be read: Compressed file ended"):
        problems.read(path)


def test_a_bomb_and_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "UNPACKED", 10_000)
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * 10_001))
    with pytest.raises(UserError, match=r"gz: cannot be read: .* has more than 10,000 bytes unpacked"):
        problems.read(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"gz: cannot be read: .* a pipe or a device"):
        problems.read(path)
