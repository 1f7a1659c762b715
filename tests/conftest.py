"""What tests of several folders use."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Run = Callable[..., tuple[int, str, str]]
ROWS = Path(__file__).resolve().parents[1] / "configs" / "paper"  # of the ledger: TABLE/ROW.yaml

# Before torch is imported, and for the processes that tests start: there is a test worker for each core, and
# the tensors are small. A number of threads that is set already counts.
os.environ |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "OMP_WAIT_POLICY": "passive"}

if "ADAN_TEST_LUCK" in os.environ:
    import luck  # noqa: F401 (it changes this process)


@pytest.hookimpl(tryfirst=True)  # before -m is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `recipe` what tests of the ledger's rows show of further rows of a table.

    The first row of each table stands for them in `make test`.
    """
    shown: set[tuple[str, ...]] = set()
    for item in items:
        test, _, case = item.nodeid.partition("[")
        row = re.search(r"\b(\w+)/[\w.]+", case)
        if row and (ROWS / f"{row[0]}.yaml").exists():
            one = (test, case.replace(row[0], row[1]))
            if one in shown:
                item.add_marker("recipe")
            shown.add(one)


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    """Commands compose their configuration once: Hydra does it a first time only to read `hydra.mode`.

    That is half the time of a test whose command does little more. No configuration of ours sets it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda self, config_name, overrides: None)
        yield


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of logs that were released with Adan, which the code under test finds, too."""
    named = os.environ.get("ADAN_RELEASED")
    data = os.environ.get("ADAN_DATA")
    path = Path(named) if named else Path(data).parent / "released_adan" if data else None
    if path is None or not path.is_dir():
        pytest.skip("neither ADAN_RELEASED nor ADAN_DATA leads to the released logs")
    monkeypatch.setenv("ADAN_RELEASED", str(path))
    return path


@pytest.fixture
def apex(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for NVIDIA's apex, which needs its CUDA toolkit: its constructors, around torch's AdamW."""
    import torch

    class FusedAdam(torch.optim.AdamW):
        def __init__(
            self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True,
            weight_decay=0.0, amsgrad=False, set_grad_none=True, capturable=False, master_weights=False,
        ) -> None:  # fmt: skip
            assert (bias_correction, adam_w_mode) == (True, True)
            super().__init__(params, lr, betas, eps, weight_decay, amsgrad)

    class FusedLAMB(torch.optim.AdamW):
        def __init__(
            self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01,
            amsgrad=False, adam_w_mode=True, grad_averaging=True, set_grad_none=True, max_grad_norm=1.0,
            use_nvlamb=False,
        ) -> None:  # fmt: skip
            assert (bias_correction, adam_w_mode, grad_averaging) == (True, True, True)
            assert (max_grad_norm, use_nvlamb) == (1, False)
            super().__init__(params, lr, betas, eps, weight_decay, amsgrad)

    package, optimizers = ModuleType("apex"), ModuleType("apex.optimizers")
    optimizers.FusedAdam, optimizers.FusedLAMB = FusedAdam, FusedLAMB  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", package)
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)


@pytest.fixture
def killed_after() -> Callable[[int], AbstractContextManager[None]]:
    """Kill the run in a block once it has taken this many steps."""

    @contextmanager
    def block(steps: int) -> Iterator[None]:
        from repro.train.trainer import Trainer

        end_step = Trainer._end_step

        def killed(self: Trainer, *arguments: Any) -> None:
            end_step(self, *arguments)
            if self.progress.step == steps:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_end_step", killed)
            yield

    return block


@pytest.fixture
def runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[Callable[[Sequence[str]], int]], Run]:
    """Turn a command's `main` into a function of its arguments that returns (exit status, stdout, stderr).

    It runs in an empty folder, and in this process: to start one for every test would take minutes.
    """
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def of(main: Callable[[Sequence[str]], int]) -> Run:
        def run(*arguments: str) -> tuple[int, str, str]:
            capfd.readouterr()
            status = main(list(arguments))
            out, err = capfd.readouterr()
            return status, out, err

        return run

    return of
