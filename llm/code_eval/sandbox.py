"""Runs untrusted programs, and judges them by tests that they cannot reach.

Each program gets processes of its own, under the limits and layers of llm/code_eval/jail.py, and none
outlives its verdict. The tests run in a separate process, see llm/code_eval/judge.py: a program passes only
by returning, for each call of the tests, plain data equal to what they expect. It gains nothing by printing
the success text, exiting with status 0, changing builtins, `assert` or any module, returning an object that
equals everything, or searching memory for the tests.

What remains: a program sees the arguments of each call, and may answer in any way.
"""

import json
import os
import platform
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from llm.code_eval.jail import LAYERS, Limits
from repro.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("files", "network")  # without these, a program may cause lasting damage

# Not -I, which would ignore PYTHONHASHSEED: the order of sets would differ between starts.
START = (
    "import sys; sys.path[:1] = [{root!r}]; from llm.code_eval import judge; "
    "del sys.path[0]; judge.serve({rest})"
)


@dataclass
class Verdict:
    """The verdict on a program."""

    passed: bool
    reason: str  # of a failure
    seconds: float


class Sandbox:
    """Judges one program after another. Use it in a `with` block, or close it.

    Several may work in parallel, one in each thread; the thread that created one must outlive it.
    """

    def __init__(self, limits: Limits | None = None, unprotected: bool = False) -> None:
        """Start the process that starts the others.

        Args:
            limits: of each program.
            unprotected: run programs even if the system does not permit protecting files and network.

        Raises:
            UserError: the system does not support it.
        """
        if platform.system() != "Linux":
            raise UserError(f"programs can be run only on Linux, not on {platform.system()}: use a container")
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
                raise RuntimeError("the sandbox did not start; its output is above")
            self.layers: list[str] = json.loads(told)
            missing = [LAYERS[layer] for layer in NEEDED if layer not in self.layers]
            if missing and not unprotected:
                raise UserError(
                    f"not permitted here: {'; '.join(missing)}. Run as root or permit user namespaces "
                    "(sysctl kernel.unprivileged_userns_clone, apparmor_restrict_unprivileged_userns); "
                    "--unprotected runs them anyway, on a machine that may be lost"
                )
            self._stack = stack.pop_all()

    @property
    def protection(self) -> dict[str, list[str]]:
        """The layers and limits in force on this machine, and the layers that are not."""
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
        """Test a function of a program.

        Args:
            program: the whole program.
            prompt: its given beginning, whose helpers the tests may use; valid by itself.
            test: defines check(candidate), which raises unless the function is correct.
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
            with suppress(BrokenPipeError), os.fdopen(job_in, "wb") as file:  # it may end before it reads all
                file.write(json.dumps(job).encode())
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
        self.server.kill()  # which also ends the guards, and these their programs
        self.server.wait()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
