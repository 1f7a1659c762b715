"""Jobs through Hydra's submitit launcher: what is submitted, and the group that a job's tasks form."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from toy_command import main

from repro.explain import explain
from repro.train import cli, slurm
from vision.train import main as train_images

Run = Callable[..., tuple[int, str, str]]

HERE = Path(__file__).resolve().parent
TOY = "defaults: [toy_schema, _self_]\noptimizer: {name: adan, lr: 0.01}\n"
SMALL = ["epochs=2", "batch_size=8", "ema_decay=0.9", "run.checkpoint_every=3"]
NODES = ["hydra.launcher.nodes=8", "hydra.launcher.tasks_per_node=8", "hydra.launcher.gpus_per_node=8"]

# a task of the job 77_1: the tenth of two nodes' sixteen, with GPUs that SLURM has chosen
TASK = {
    "SUBMITIT_EXECUTOR": "slurm",
    "SLURM_JOB_ID": "78",
    "SLURM_ARRAY_JOB_ID": "77",
    "SLURM_ARRAY_TASK_ID": "1",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS": "16",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "10",
    "SLURM_LOCALID": "2",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}
GROUP = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The toy's configuration, and an environment and logging that are as they were after the test."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/toy.yaml").write_text(TOY)
    monkeypatch.setattr(cli, "CONFIGS", tmp_path / "configs")
    before, handlers = dict(os.environ), logging.root.handlers[:]
    for name in (*GROUP, "SLURM_KILL_BAD_EXIT"):
        os.environ.pop(name, None)
    yield
    os.environ.clear()
    os.environ.update(before)
    logging.root.handlers[:] = handlers  # Hydra's writes to a stream that the test has closed
    logging.getLogger("hydra").handlers.clear()


@pytest.fixture
def toy(runner: Callable[[Callable[..., int]], Run]) -> Run:
    return runner(main)


def test_the_tasks_of_a_job_form_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    os.environ |= TASK
    monkeypatch.setenv("RANK", "5")  # of the shell that submitted the job
    slurm.form_group()
    port = os.environ["MASTER_PORT"]
    assert [os.environ[name] for name in GROUP] == ["gpu07", port, "10", "16", "2", "8"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == TASK["CUDA_VISIBLE_DEVICES"]
    os.environ |= {"SLURM_PROCID": "3", "SLURM_NODEID": "0", "SLURM_LOCALID": "3"}
    del os.environ["MASTER_PORT"]  # another task knows the same port by itself, another job has another one
    slurm.form_group()
    assert (os.environ["MASTER_PORT"], os.environ["RANK"]) == (port, "3")
    os.environ["SLURM_ARRAY_TASK_ID"] = "2"
    del os.environ["MASTER_PORT"]
    slurm.form_group()
    assert os.environ["MASTER_PORT"] != port


def test_a_job_of_one_task_has_no_group() -> None:
    os.environ |= TASK | {"SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
    slurm.form_group()
    assert not set(GROUP) & set(os.environ)


def test_modules_have_one_name_whether_run_or_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", f"{slurm._ROOT}/vision/train.py", raising=False)
    monkeypatch.setattr(main, "__module__", "__main__")
    assert slurm.module(main) == "vision.train"
    assert slurm.module(train_images) == "vision.train"
    monkeypatch.undo()
    assert slurm.module(main) == "toy_command"


def fake_slurm(folder: Path) -> None:
    """A SLURM that keeps what it is told in the file `script`, and refuses."""
    folder.mkdir()
    (folder / "srun").write_text("#!/bin/sh\n")
    (folder / "sbatch").write_text(
        f'#!/bin/sh\ncp "$1" {folder}/script\necho "$PYTHONPATH,$SLURM_KILL_BAD_EXIT" > {folder}/variables\n'
        "echo 'sbatch: error: invalid partition specified: moon' >&2\nexit 1\n"
    )
    for name in ("srun", "sbatch"):
        (folder / name).chmod(0o755)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


def test_a_multirun_is_an_array_of_jobs(toy: Run, tmp_path: Path) -> None:
    fake_slurm(tmp_path / "bin")
    arguments = ["hydra.launcher.partition=moon", "hydra.launcher.timeout_min=90", "run.root=there"]
    status, _, err = toy("-m", "hydra/launcher=submitit_slurm", *NODES, *arguments, "seed=1,2,3")
    assert (status, err.splitlines()[-1]) == (2, "error: sbatch: error: invalid partition specified: moon")
    lines = (tmp_path / "bin/script").read_text().splitlines()
    folder = Path("there/.submitit").absolute()
    for line in (
        "#SBATCH --array=0-2%3",
        "#SBATCH --nodes=8",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --time=90",
        "#SBATCH --partition=moon",
        "#SBATCH --job-name=toy",
        "#SBATCH --signal=USR2@120",
        f"#SBATCH --output={folder}/%A_%a/%A_%a_0_log.out",
    ):
        assert line in lines
    variables = (tmp_path / "bin/variables").read_text().strip()
    assert variables == f"{os.environ['PYTHONPATH']},1"
    assert variables.endswith(f"{slurm._ROOT},1")
    assert [path.name for path in Path("there").iterdir()] == [".submitit"]


def test_a_job_is_queued_again_when_its_time_is_over() -> None:
    assert "hydra.launcher.max_num_timeout=10" in slurm.prepare("submitit_slurm")
    assert not any("max_num_timeout" in word for word in slurm.prepare("submitit_local"))  # its default is 3


def test_what_cannot_work_is_said(toy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, err = toy("hydra/launcher=submitit_local", "seed=1")
    assert (status, "is for multiruns; put -m before it" in err) == (2, True)
    os.environ["PATH"] = ""
    status, _, err = toy("-m", "hydra/launcher=submitit_slurm", "seed=1")
    assert (status, "there is no srun; run it where" in err) == (2, True)
    missing = MissingConfigException("", "hydra/launcher/submitit_slurm", options=["basic"])
    assert explain(missing) == "hydra/launcher=submitit_slurm: is not installed; run pip install '.[slurm]'"
    assert not list(Path().iterdir())


@pytest.mark.slow  # processes that import torch
def test_two_tasks_are_one_run_that_goes_on_after_an_interruption(
    toy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    local = ["-m", "hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"]
    status, _, err = toy(*local, *SMALL, "run.root=two")
    assert (status, err) == (0, "")
    assert Path("two/sent").exists()
    (run,) = Path("two/toy").iterdir()
    assert len(json.loads((run / "environment.json").read_text())) == 2  # starts
    logs = "".join(path.read_text() for path in Path("two/.submitit").glob("*/*_0_log.*"))
    assert "Requeued job" in logs
    assert json.loads((run / "environment.json").read_text())[0]["command"][1:3] == ["-m", SMALL[0]]

    status, _, err = toy(*SMALL, "gradient_accumulation_steps=2", "run.root=one")
    assert (status, err) == (0, "")
    (one,) = Path("one/toy").iterdir()
    for ours, theirs in zip(
        (run / "metrics.jsonl").read_text().splitlines(),
        (one / "metrics.jsonl").read_text().splitlines(),
        strict=True,
    ):
        assert json.loads(ours) == pytest.approx(json.loads(theirs), rel=1e-5)


@pytest.mark.slow
def test_errors_come_back_from_jobs(toy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    status, _, err = toy("-m", "hydra/launcher=submitit_local", "seed=13")
    assert (status, err.splitlines()[-1]) == (2, "error: seed=13: is unlucky")
