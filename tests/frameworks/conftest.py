"""Fixtures of the tests with frameworks: runs examples and programs in processes of their own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

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
        self, script: str, name: str, *arguments: str, world: int = 1, warnings: str = "error"
    ) -> list[list[Parameters]]:
        """Runs examples/script or programs/script with an optimizer, in `world` processes.

        Returns:
            For each process, the parameters of each model that it reported on.
        """
        path = ROOT / "examples" / script
        path = path if path.exists() else Path(__file__).parent / "programs" / script
        self.runs += 1
        folder = self.folder / str(self.runs)
        folder.mkdir()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1] if "torchrun" in path.read_text() else 0
        request = dict(script=str(path), arguments=[name, *arguments], world=world, port=port)
        request |= dict(folder=str(folder), warnings=warnings)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, (self.folder / "stderr").read_text()
        logs = "\n".join((folder / f"{rank}.log").read_text()[-5000:] for rank in range(world))
        assert json.loads(answer) == [0] * world, logs
        return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


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
def plain(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Parameters]:
    """What PyTorch alone arrives at, in one process."""
    known: dict[tuple[str, ...], Parameters] = {}

    def parameters(name: str, *arguments: str, by_class: bool = False) -> Parameters:
        run = ("by_class.py" if by_class else "plain.py", name, *arguments)
        if run not in known:
            [[known[run]]] = server.run(*run, "--folder", str(tmp_path_factory.mktemp("plain")))
        return known[run]

    return parameters
