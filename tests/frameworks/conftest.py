"""Fixtures of the tests with frameworks: runs examples and programs in processes of their own."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import adan_optim

ROOT = Path(__file__).resolve().parents[2]
Parameters = list[torch.Tensor]


class Server:
    """See fork_server.py."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT}/optim",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "DS_ACCELERATOR": "cpu",
        }
        with (folder / "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=folder,
                env=environment,
                text=True,
            )

    def run(
        self,
        script: str,
        name: str,
        *changes: tuple[str, str],
        folder: Path | None = None,
        world: int = 1,
        warnings: str = "error",
    ) -> list[Parameters]:
        """Runs examples/script or programs/script with an optimizer, in `world` processes.

        Args:
            changes: of its text; each must be in it.
            folder: where it runs; an empty one by default.

        Returns:
            For each process, the parameters of its model.
        """
        path = ROOT / "examples" / script
        path = path if path.exists() else Path(__file__).parent / "programs" / script
        text = of_optimizer(path.read_text(), name)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        self.runs += 1
        here = self.folder / str(self.runs)
        (here / "work").mkdir(parents=True)
        (here / script).write_text(text)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1] if "torchrun" in text else 0
        request = dict(script=str(here / script), folder=str(folder or here / "work"), world=world, port=port)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request | {"warnings": warnings}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, (self.folder / "stderr").read_text()
        logs = "\n".join((here / f"{rank}.log").read_text()[-5000:] for rank in range(world))
        assert json.loads(answer) == [0] * world, logs
        return [torch.load(here / f"{rank}.pt") for rank in range(world)]


def of_optimizer(text: str, name: str) -> str:
    """An example's text with another optimizer in place of Adan."""
    for adan, other in {
        '"adan"': f'"{name}"',
        "adan-optim.adan": f"adan-optim.{name.replace('_', '-')}",
        "adan_optim.Adan": f"adan_optim.{adan_optim.OPTIMIZERS[name].__name__}",
    }.items():
        text = re.sub(rf"{adan}\b" if adan[-1] != '"' else adan, other, text)
    return text


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    assert server.process.stdin is not None
    assert server.process.stdout is not None
    server.process.stdin.close()
    server.process.stdout.close()
    server.process.wait()


@pytest.fixture(scope="session")
def plain(server: Server) -> Callable[..., Parameters]:
    """What PyTorch alone arrives at, in one process."""
    known: dict[tuple[object, ...], Parameters] = {}

    def parameters(name: str, *changes: tuple[str, str], by_class: bool = False) -> Parameters:
        run = ("by_class.py" if by_class else "plain.py", name, *changes)
        if run not in known:
            [known[run]] = server.run(*run)
        return known[run]

    return parameters
