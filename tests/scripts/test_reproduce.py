"""scripts/reproduce.py: the list, the sheet of a row, starting a recipe, and comparing a log."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from repro import hardware
from repro.ledger import rows, runs
from repro.ledger.rows import ROOT, Cost, Recipe
from repro.logs.files import PRESENT
from repro.runs import flatten
from vision import train

SCRIPT = ROOT / "scripts" / "reproduce.py"
NAMES = runpy.run_path(str(SCRIPT))
MAIN = NAMES["main"]
ROW = "imagenet/vit_s_150_i"
TABLES = sorted({name.split("/")[0] for name in rows.names()})
# of which every row is looked at
TRAINED = ("bert", "glue", "imagenet", "large_batch", "lstm", "mae", "swin", "wikitext103")
# of all proxies, and of the options that only some rows have
PROXIED = [
    ROW,
    "imagenet/vit_b_300_t",
    "imagenet/resnet50_100",
    "imagenet/convnext_t_150",
    "imagenet/convnext_t_300",
    "swin/swin_s_300",
    "large_batch/vit_s_lamb",
    "large_batch/resnet50_lars",
]
TINY = [
    "epochs=2", "schedule.warmup_epochs=1", "schedule.cooldown_epochs=0", "batch_size=256",
    "model.kwargs.depth=1", "model.kwargs.embed_dim=16",
]  # fmt: skip

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in an empty folder, without released files; returns (exit status, stdout, stderr).

    Own results are those in this folder, not those that come with the project.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MAIN.__wrapped__.__globals__, "RUNS", (Path("runs"),))
    monkeypatch.setenv("ADAN_RELEASED", str(tmp_path / "released"))

    def run(*arguments: str) -> tuple[int, str, str]:
        status = MAIN(list(arguments))
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the commands that would have replaced this process."""
    commands: list[list[str]] = []

    def execv(path: str, words: list[str]) -> None:
        assert path == sys.executable
        commands.append(words)
        raise SystemExit(7)

    monkeypatch.setattr(os, "execv", execv)
    return commands


def finished_run(folder: Path, scale: str, date: str, accuracy: float, **changes: Any) -> None:
    """Write the files of a finished run of ROW."""
    recipe = rows.load(ROW)
    config = {**recipe.config, **changes, "row": {"name": ROW, "scale": scale}}
    final = {"step": 1, "epoch": 1, "test_accuracy": accuracy}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (folder / "environment.json").write_text(
        json.dumps([{"time": "2020-01-01T00:00:00+0000"}, {"time": date}])
    )
    (folder / "summary.json").write_text(
        json.dumps({"metric": "test_accuracy", "final": final, "best": final})
    )


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> str:
    """A row that is not runnable, for this test."""
    load, name = rows.load, "imagenet/vit_s_300"

    def loaded(wanted: str, overrides: Sequence[str] = ()) -> Recipe:
        recipe = load(wanted, overrides)
        return replace(recipe, row=replace(recipe.row, waits_for="data")) if wanted == name else recipe

    monkeypatch.setattr(rows, "load", loaded)
    return name


def listed(out: str) -> dict[str, dict[str, str]]:
    """The rows of a list by name, each a cell by column; cells of several lines are joined."""
    header, rule, *lines = out.split("\n\n")[0].splitlines()
    starts = [i for i, character in enumerate(rule) if character == "-" and rule[i - 1 : i] in ("", " ")]
    ends = [*starts[1:], None]
    columns = [header[a:b].strip() for a, b in zip(starts, ends, strict=True)]
    table: dict[str, dict[str, str]] = {}
    last = ""
    for line in lines:
        cells = dict(
            zip(columns, (line[a:b].strip() for a, b in zip(starts, ends, strict=True)), strict=True)
        )
        if cells["row"]:
            last = cells["row"]
            table[last] = cells
        else:
            table[last] = {key: f"{text} {cells[key]}".strip() for key, text in table[last].items()}
    return table


def test_list(command: Command, waiting: str) -> None:
    """Every row is there with all columns; every reason for not being runnable is given once."""
    status, out, err = command("--list")
    assert (status, err) == (0, "")
    table = listed(out)
    assert list(table) == rows.names()
    assert all(all(row.values()) for row in table.values())
    about = ["row", "model", "published", "status", "one H100"]  # nothing has run here
    assert list(table[ROW].values()) == [ROW, "ViT-S", "test_accuracy 80.1 %", "-", "6.3 h"]
    assert list(table[ROW]) == about
    assert table["gpt2/adan_150k"]["published"] == "pass@1 0.0843, 2 more"
    assert table["glue/mnli"]["published"] == "valid_accuracy_matched 85.7 %, 1 more"
    assert table["memory/vit_b"]["one H100"] == "-"
    assert table["memory/vit_b"]["published"] == "adam_step_ms 8.9, 6 more"
    assert {name: row["status"] for name, row in table.items() if row["status"] != "-"} == {
        waiting: "not runnable yet"
    }
    assert out.split("\n\n")[1].splitlines() == [
        "not runnable yet: it waits for data (1 row)",
        "one H100: the estimated time; an A100 takes 3.2 times as long (docs/reproduce.md)",
    ]


@pytest.mark.parametrize("pattern", ["", *TABLES])
def test_a_list_fits_a_terminal(command: Command, tmp_path: Path, pattern: str) -> None:
    """In 120 columns, of which none is empty; also with a long result of our own."""
    changes = {"epochs": 160, "batch_size": 256, "loss": "ce", "amp": "no"}
    finished_run(tmp_path / "runs/d", "paper", "2026-01-03T00:00:00+0000", 80.3, **changes)
    out = command("--list", pattern)[1]
    assert max(map(len, out.splitlines())) <= 120
    table = listed(out)
    assert list(table) == [name for name in rows.names() if pattern in name]
    for column in next(iter(table.values())):
        assert {row[column] for row in table.values()} != {"-"}
    own = "80.3 (other amp, batch_size, epochs and 1 more; 2026-01-03)"
    assert [row["own result"] for row in table.values() if row.get("own result", "-") != "-"] == [own] * (
        ROW in table
    )
    assert ("one H100" in out) == (pattern != "memory")


def test_list_with_a_pattern(command: Command) -> None:
    out = command("--list", "vit_s")[1]
    assert list(listed(out)) == [name for name in rows.names() if "vit_s" in name]
    status, _, err = command("--list", "nothing")
    assert (status, err) == (
        2,
        "error: --list nothing: no row has that in its name; leave it out to see all\n",
    )


@pytest.mark.parametrize("table", TABLES)
def test_dry_run(command: Command, started: list[list[str]], table: str) -> None:
    """One row of each table, and every row that a recipe trains; nothing is started."""
    names = [name for name in rows.names() if name.startswith(f"{table}/")]
    for name in names if table in TRAINED else names[:1]:
        status, out, err = command(name, "--dry-run")
        assert (status, err, started, list(Path().iterdir())) == (0, "", [], [])
        check_sheet(name, out)


def check_sheet(name: str, out: str) -> None:
    """The output has everything in the row, the command if there is one, and the configuration as YAML."""
    recipe = rows.load(name)
    words = " ".join(out.split())
    row = recipe.row
    for text in [row.title, row.status, *row.unpublished.values(), *row.chosen.values()]:
        assert " ".join(text.split()) in words
    for discrepancy in row.discrepancies:
        assert " ".join(discrepancy.what.split()) in words
        assert all(override in words for override in discrepancy.instead)
    for file in row.files:
        assert f"{rows.COMMIT}/{file.path}" in words
    assert ("scripts/logs.py get" in words) == bool(row.files)
    assert ("FLOP in training" in words) == (row.cost is not None)
    assert (f"python {row.script} " in words) == (row.status == "runnable")
    if recipe.config:
        assert yaml.safe_load(out.split("\nconfiguration:\n")[1]).keys() == recipe.config.keys()


def test_dry_run_shows_the_overrides(command: Command, tmp_path: Path) -> None:
    out = command(ROW, "epochs=160", f"data.root={tmp_path}", "--dry-run")[1]
    assert f"python vision/train.py +paper={ROW} epochs=160 data.root={tmp_path}" in out
    assert "which is there" in out
    assert yaml.safe_load(out.split("\nconfiguration:\n")[1])["epochs"] == 160
    out = command(ROW, "--dry-run")[1]
    assert "data.root is not set: add data.root=PATH" in out
    assert "image-net.org" in out
    out = command(ROW, "--scale", "proxy", "--processes", "2", "--dry-run")[1]
    assert f"torchrun --nproc-per-node=2 vision/train.py +paper={ROW} +proxy=vit" in out
    assert "never the paper's" in out
    assert "data.root" not in out.split("\nconfiguration:\n")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["imagenet/vit_s_150i"],
            "no such row; python scripts/reproduce.py --list shows all; did you mean",
        ),
        ([], "name a row"),
        ([ROW, "epochz=3"], "epochz: no such key; did you mean epochs?"),
        ([ROW, "data=cifar"], "data=cifar: no such option; did you mean cifar10?"),
        (["memory/vit_b", "--scale", "proxy"], "memory/vit_b has no proxy"),
        ([ROW, "--processes", "0"], "--processes 0: must be at least 1"),
        ([ROW, "--track", "absent.csv"], "absent.csv: no such file"),
    ],
)
def test_bad_input(command: Command, started: list[list[str]], arguments: list[str], message: str) -> None:
    status, _, err = command(*arguments)
    assert status == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not started


def test_a_row_that_is_not_runnable(
    command: Command, started: list[list[str]], waiting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says why, and which rows are runnable."""
    monkeypatch.setattr(rows, "names", lambda: [waiting, ROW, "imagenet/resnet50_100", "memory/vit_b"])
    status, out, err = command(waiting)
    assert (status, out, started) == (2, "", [])
    assert f"{waiting} is not runnable yet: it waits for data" in err
    assert err.endswith("Runnable now: imagenet (2 rows), memory (1 row)\n")


def test_a_row_of_several_runs(command: Command, started: list[list[str]]) -> None:
    """One run for each prompt, by Hydra's multirun, unless one is given; texts are quoted for its grammar."""
    name = "text_to_3d/dreamfusion"
    prompts = rows.load(name).row.sweep["prompt"]
    for given in ([], ["prompt=a chair"]):
        with pytest.raises(SystemExit, match="7"):
            command(name, *given)
    [every, one] = started
    assert every[2:4] == ["-m", f"+paper={name}"]
    assert one[2:] == [f"+paper={name}", "prompt=a chair"]
    parsed = OverridesParser.create().parse_override(every[-1])
    assert [str(value.text) for value in parsed.value().list] == prompts
    assert len(prompts) == 9
    assert NAMES["quoted"]('a "b" \\ c') == r'"a \"b\" \\ c"'


def test_what_is_started(
    command: Command,
    started: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The recipe replaces this process, with the same overrides, so its exit status is ours."""
    for arguments in (
        [ROW, "epochs=3", "data.root=/a b"],
        ["--scale", "proxy", ROW, "seed=2"],
        [ROW, "--", "--debug"],
        ["memory/vit_b", "--", "--device", "cpu"],
    ):
        with pytest.raises(SystemExit, match="7"):
            command(*arguments)
    python, script = sys.executable, os.path.relpath(ROOT / "vision" / "train.py")
    bench = os.path.relpath(ROOT / "benchmarks" / "optimizers.py")
    assert started == [
        [python, script, f"+paper={ROW}", "epochs=3", "data.root=/a b"],
        [python, script, f"+paper={ROW}", "+proxy=vit", "seed=2"],
        [python, script, f"+paper={ROW}", "--debug"],
        [python, bench, "--device", "cuda", "--lists", "ViT-B", "--device", "cpu"],
    ]
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"python vision/train.py +paper={ROW} epochs=3 'data.root=/a b'"
    monkeypatch.setenv("LOCAL_RANK", "1")  # one of several, started by torchrun
    with pytest.raises(SystemExit, match="7"):
        command(ROW)
    assert started[-1] == [python, script, f"+paper={ROW}"]
    assert capsys.readouterr().out == ""


@pytest.mark.recipe
def test_a_proxy_trains(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line to the list: two epochs, a summary and a list that call them a proxy's.

    The recipe starts in this process: another would spend ten times as long on its imports.
    """
    monkeypatch.setattr(os, "execv", lambda _, words: sys.exit(train.main(words[2:])))
    with pytest.raises(SystemExit) as ended:
        command(ROW, "--scale", "proxy", *TINY)
    assert ended.value.code == 0
    (path,) = Path().glob("runs/vision/*/summary.json")
    summary = json.loads(path.read_text())
    assert summary["paper"]["scale"] == "proxy"
    assert summary["paper"]["row"] == ROW
    assert summary["final"]["epoch"] == 2
    (found,) = runs.of_rows([Path("runs")])
    accuracy = summary["final"]["test_accuracy"]
    assert runs.describe(found, rows.load(ROW)) == f"{accuracy:.4g} (proxy; {found.date:%Y-%m-%d})"
    assert runs.describe(found, rows.load(ROW)) in command("--list", ROW)[1]


@pytest.mark.slow  # test_what_is_started shows the same without the imports of two processes
def test_the_exit_status_is_the_recipes(tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPT), ROW, "--scale", "proxy", "epochs=0"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: epochs=0: must be at least 1\n")


def test_a_reader_that_has_enough(tmp_path: Path) -> None:
    """As with `| head`: no traceback of a broken pipe."""
    words = [sys.executable, str(SCRIPT), ROW, "--dry-run"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)  # as a shell has it


@pytest.mark.slow
def test_several_processes(tmp_path: Path) -> None:
    """A run, the same command again, and the exit status of a failure."""
    words = [sys.executable, str(SCRIPT), ROW, "--scale", "proxy", "--processes", "2", *TINY]
    for message in ("result ", "is finished"):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert message in done.stdout
    done = subprocess.run([*words, "seed=-1"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert set(done.stderr.splitlines()) == {"error: seed=-1: must be at least 0"}


def test_own_results(command: Command, tmp_path: Path) -> None:
    """The newest run, a proxy's only if there is no other; settings that differ from the row's are named."""
    finished_run(tmp_path / "runs/a", "proxy", "2026-03-03T00:00:00+0000", 99.0, epochs=3)
    assert command("--list", ROW)[1].splitlines()[2].endswith(" 99 (proxy; 2026-03-03)")
    finished_run(tmp_path / "runs/b", "paper", "2026-01-01T00:00:00+0000", 80.15)
    finished_run(tmp_path / "runs/deep/down/c", "paper", "2026-01-02T00:00:00+0000", 80.161, workers=3)
    shutil.copytree(tmp_path / "runs/a", tmp_path / "runs/unfinished")
    (tmp_path / "runs/unfinished/summary.json").unlink()
    assert command("--list", ROW)[1].splitlines()[2].endswith(" 80.16 (paper; 2026-01-02)")
    changes = {"epochs": 160, "batch_size": 256, "loss": "ce", "seed": 1}
    finished_run(tmp_path / "runs/d", "paper", "2026-01-03T00:00:00+0000", 80.3, **changes)
    expected = "80.3 (other batch_size, epochs, loss and 1 more; 2026-01-03)"
    assert listed(command("--list", ROW)[1])[ROW]["own result"] == expected


def test_track(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log like the released one is on track; one that gets worse is not, and the table shows where."""
    monkeypatch.setattr("repro.logs.files.state", lambda file, path: PRESENT)  # whatever its hash
    lines = ["epoch,train_loss,eval_loss,eval_top1,eval_top5"]
    lines += [f"{i},{6 - i / 40:.3f},{5 - i / 40:.3f},{i / 2:.3f},{i / 2 + 10:.3f}" for i in range(160)]
    released = tmp_path / "released" / rows.load(ROW).row.logs[0].path
    released.parent.mkdir(parents=True)
    for path in (released, tmp_path / "log.csv"):
        path.write_text("\r\n".join(lines) + "\r\n")
    status, out, err = command(ROW, "--track", "log.csv")
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == ["position", "column", "ours", "released", "low", "high", "verdict"]
    assert out.splitlines()[-1] == f"{ROW}: on track"
    assert len(out.splitlines()) < 50

    bad = [f"{i},6.9,6.9,0.1,0.5" if i >= 80 else line for i, line in enumerate(lines[1:])]
    (tmp_path / "log.csv").write_text("\n".join([lines[0], *bad]) + "\n")
    status, out, _ = command(ROW, "--track", "log.csv")
    assert status == 0
    verdicts = [line.rsplit(None, 1)[-1] for line in out.splitlines()[1:-2]]
    assert verdicts[0] == "track"
    assert out.splitlines()[-1] in (f"{ROW}: diverged", f"{ROW}: behind")
    turns = [line for line in out.splitlines()[1:-2] if not line.endswith("on track")]
    assert 80 <= float(turns[0].split()[0]) <= 90
    released.unlink()
    status, _, err = command(ROW, "--track", "log.csv")
    assert status == 2
    assert "scripts/logs.py get" in err


@pytest.mark.parametrize("name", PROXIED)
def test_a_proxy_keeps_what_makes_the_row(name: str) -> None:
    """It changes only sizes; the command line overrides everything."""
    row = rows.load(name).row
    assert row.proxy is not None
    before = flatten(rows.load(name).config)
    proxy = rows.load(name, [f"+proxy={row.proxy}"])
    assert (proxy.row.scale, row.scale) == ("proxy", "paper")
    after = flatten(proxy.config)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    sizes = {"epochs", "batch_size", "amp", "workers", "schedule.warmup_epochs", "schedule.cooldown_epochs"}
    sizes |= {
        f"augment.{key}"
        for key in ("crop", "padding", "interpolation", "hflip", "color_jitter", "auto_augment")
    }
    lr = {"optimizer.lr"} if row.proxy in ("vit", "swin") else set()
    ema = {"ema_decay"} if before["ema_decay"] is not None else set()
    rest = {key for key in changed if not key.startswith(("model.", "data."))}
    assert rest <= sizes | lr | ema
    assert lr | ema <= rest
    assert before["model.drop_path"] == after["model.drop_path"]
    reasons = {key for key in sizes | lr | ema if not key.startswith("augment.")} - {"workers"}
    assert reasons <= proxy.row.chosen.keys()


@pytest.mark.recipe
@pytest.mark.parametrize("proxy", ["vit", "resnet", "convnext", "swin"])
def test_a_proxy_fits_the_data(proxy: str) -> None:
    """Other data than digits set size, crops and length; the command line overrides everything."""
    row = next(name for name in PROXIED if rows.load(name).row.proxy == proxy)
    flip, whole = {"hflip": 0.5}, {"crop": "padded", "auto_augment": None}
    for data, size, epochs, augment in (
        ("digits", 8, 36, {**whole, "hflip": 0.0, "padding": 1}),
        ("fashion_mnist", 28, 9, {**whole, **flip, "padding": 2}),
        ("cifar10", 32, 9, {**whole, **flip, "padding": 4}),
        ("imagefolder", 64, 36, {**flip, "crop": "resized", "auto_augment": "rand-m7-mstd0.5-inc1"}),
    ):
        config = rows.load(row, [f"+proxy={proxy}", f"data={data}", "batch_size=32"]).config
        assert (config["data"]["name"], config["data"]["size"]) == (data, size)
        assert (config["epochs"], config["batch_size"]) == (epochs, 32)
        assert config["augment"] | augment == config["augment"]
        channels, options = config["data"]["channels"], config["model"]["kwargs"]
        model = timm.create_model(config["model"]["name"], num_classes=10, in_chans=channels, **options)
        assert model(torch.zeros(2, channels, size, size)).shape == (2, 10)
        assert sum(p.numel() for p in model.parameters()) < 1_500_000
    config = rows.load(row, [f"+proxy={proxy}", "data=cifar10", "data.size=64", "epochs=3"]).config
    assert (config["data"]["size"], config["epochs"]) == (64, 3)
    assert config["model"]["kwargs"].get("patch_size", 8) == 8


def test_every_row_that_a_recipe_trains_has_a_proxy() -> None:
    every = [rows.load(name).row for name in rows.names()]
    for row in every:
        assert (row.proxy is not None) == (row.config is not None and row.status == "runnable"), row.name
    groups = {path.stem for path in (ROOT / "configs" / "proxy").glob("[!_]*.yaml")}
    assert {row.proxy for row in every} - {None} == groups


def test_hours() -> None:
    """Worked by hand: 1e9 * 1e6 * 3 operations at a quarter of 312e12 per second."""
    counted = Cost(forward_flops=1e9, samples=1e6)
    assert hardware.gpu_hours(counted, "A100") == pytest.approx(3e15 / 78e12 / 3600)
    assert hardware.gpu_hours(counted, "H100") == pytest.approx(3e15 / 247.25e12 / 3600)
