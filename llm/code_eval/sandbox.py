"""Runs programs that nobody has read, and judges them by tests which they cannot reach.

Each program gets processes of its own, under the limits and layers of llm/code_eval/jail.py, and none
outlives its verdict. The tests run in another process than the program, see llm/code_eval/judge.py: a program
passes only by returning, for each call of the tests, plain data that is equal to what they expect. To print
the success text, to exit with status 0, to change builtins, `assert` or any module, to return an object that
is equal to all, or to search memory for the tests, leads nowhere.

What is left open: a program sees the arguments of each call, and may answer in any way it likes.
"""

import json
import os
import platform
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from llm.code_eval.jail import LAYERS, Limits
from repro.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("files", "network")  # without which what a program does may last

# Not -I: it would ignore PYTHONHASHSEED, without which the order of sets differs from start to start.
START = (
    "import sys; sys.path[:1] = [{root!r}]; from llm.code_eval import judge; "
    "del sys.path[0]; judge.serve({rest})"
)


@dataclass
class Verdict:
    """What became of a program."""

    passed: bool
    reason: str  # why not
    seconds: float


class Sandbox:
    """A place where one program after another is judged. Use it in a `with` block, or close it.

    Several work side by side, one in each thread; the thread that made one must live as long.
    """

    def __init__(self, limits: Limits | None = None, unprotected: bool = False) -> None:
        """Start the process that starts the others.

        Args:
            limits: of each program.
            unprotected: run programs even where the system does not permit to protect files and network.

        Raises:
            UserError: this system cannot do it.
        """
        if platform.system() != "Linux":
            raise UserError(
                f"programs can be run on Linux alone, not on {platform.system()}: use a container"
            )
        self.limits = limits or Limits()
        if self.limits.seconds <= 0:
            raise UserError(f"a time limit of {self.limits.seconds} seconds: must be above 0")
        with ExitStack() as stack:
            self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(self.control)
            rest = f"{theirs.fileno()}, {asdict(self.limits)!r}"
            with theirs:
                self.server = subprocess.Popen(
                    [sys.executable, "-S", "-s", "-B", "-c", START.format(root=str(ROOT), rest=rest)],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/", pass_fds=[theirs.fileno()],
                    env={"PYTHONHASHSEED": "0", "PATH": os.defpath}, start_new_session=True,
                )  # fmt: skip
            stack.callback(self._end)
            told = self.control.recv(1 << 16)
            if not told:
                raise RuntimeError("the sandbox did not start; what it printed is above")
            self.layers: list[str] = json.loads(told)
            missing = [LAYERS[layer] for layer in NEEDED if layer not in self.layers]
            if missing and not unprotected:
                raise UserError(
                    f"not permitted here: {'; '.join(missing)}. Run as root or permit user namespaces "
                    "(sysctl kernel.unprivileged_userns_clone, apparmor_restrict_unprivileged_userns); "
                    "--unprotected runs them all the same, in a machine that may be lost"
                )
            self._stack = stack.pop_all()

    @property
    def protection(self) -> dict[str, list[str]]:
        """What is in force on this machine, and what is not."""
        limits = self.limits
        figures = (
            f"{limits.seconds:g} s, {limits.memory >> 20} MB of memory a process, {limits.processes} "
            f"processes and threads, {limits.disk >> 20} MB of files, {limits.files} open files"
        )
        return {
            "in force": [*(LAYERS[layer] for layer in LAYERS if layer in self.layers), figures],
            "not in force": [LAYERS[layer] for layer in LAYERS if layer not in self.layers],
        }

    def judge(self, program: str, prompt: str, test: str, entry_point: str) -> Verdict:
        """Run a program's function under tests.

        Args:
            program: the whole of it.
            prompt: its beginning as it was given, whose helpers the tests may use; valid by itself.
            test: defines check(candidate), which raises unless the function is right.
            entry_point: the function's name.
        """
        begin = time.perf_counter()
        job = {"program": program, "prompt": prompt, "test": test, "entry_point": entry_point}
        job_out, job_in = os.pipe()
        verdict_out, verdict_in = os.pipe()
        socket.send_fds(self.control, [b"j"], [job_out, verdict_in])
        os.close(job_out)
        os.close(verdict_in)
        with os.fdopen(verdict_out, "rb") as answer:
            try:
                with os.fdopen(job_in, "wb") as file:
                    file.write(json.dumps(job).encode())
            except BrokenPipeError:
                pass  # it ended before it had read all
            told = answer.read(1 << 20)
        done = self.control.recv(1)
        if not done:
            raise RuntimeError("the process that starts programs has died")
        verdict = json.loads(told or b'{"passed": false, "reason": "the tests ended early"}')
        passed = verdict["passed"] is True
        reason = "timed out" if done == b"t" and not passed else str(verdict["reason"])
        return Verdict(passed, reason, time.perf_counter() - begin)

    def close(self) -> None:
        """End all processes."""
        self._stack.close()

    def _end(self) -> None:
        self.server.kill()  # with it, those that it guards with end, and with them their programs
        self.server.wait()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
