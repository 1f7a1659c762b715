"""The sandbox: programs that mean harm, one layer after the other, and values on their way to the tests."""

import collections
import json
import math
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from llm import humaneval
from llm.code_eval import jail
from llm.code_eval import sandbox as sandboxes
from llm.code_eval.jail import Limits
from llm.code_eval.judge import plain, raised, restored
from llm.code_eval.problems import OWN
from llm.code_eval.sandbox import Sandbox, Verdict
from repro.errors import UserError

HOSTILE = Path(__file__).parent / "hostile_completions.jsonl"
PROMPT = 'def asked(value):\n    """Return something."""\n'


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """One for tests that need no other limits; where it cannot protect this machine, nothing is run."""
    try:
        box = Sandbox(Limits(seconds=10))
    except UserError as error:
        pytest.skip(str(error))
    with box:
        yield box


@pytest.fixture
def judge(sandbox: Sandbox) -> Callable[..., Verdict]:
    """Judge the body of a function by a test of one line."""

    def of(body: str, check: str = "assert candidate(3) == 6", box: Sandbox = sandbox) -> Verdict:
        return box.judge(PROMPT + body, PROMPT, f"def check(candidate):\n    {check}\n", "asked")

    return of


def test_hostile_completions_do_no_harm_and_score_0(
    runner: Any, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims = tmp_path / "victims"
    victims.mkdir()
    victims.chmod(0o777)
    victim = victims / "victim"
    victim.write_text("precious")
    victim.chmod(0o666)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as local,
    ):
        port = server.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        os.chdir(victims)  # as the path of a socket must be short
        local.bind("socket")
        os.chmod("socket", 0o777)
        local.listen()
        os.chdir(tmp_path)
        text = HOSTILE.read_text()
        for name, value in (("/VICTIMS", str(victims)), ("/VICTIM", str(victim)), ("50999", str(port))):
            assert name in text
            text = text.replace(name, value)
        (tmp_path / "hostile.jsonl").write_text(text)
        status, out, err = runner(humaneval.main)(
            "--completions", str(tmp_path / "hostile.jsonl"), "--execute", "--timeout", "0.5",
            "--workers", "4",
            "--out", str(tmp_path / "out"),
        )  # fmt: skip
        assert status == 0, err
        for listening in (server, datagrams, local):
            listening.setblocking(False)
            with pytest.raises(BlockingIOError):
                listening.recv(1) if listening is datagrams else listening.accept()
    results = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    names = [json.loads(line)["hostile"] for line in text.splitlines()]
    assert {name for name, result in zip(names, results, strict=True) if result["passed"]} == set()
    late = {name for name, result in zip(names, results, strict=True) if result["reason"] == "timed out"}
    assert {"fork bomb", "infinite loop", "catch all", "sleep"} <= late
    assert "pass@1    0.0000" in out
    assert victim.read_text() == "precious"
    assert sorted(path.name for path in victims.iterdir()) == ["socket", "victim"]
    assert list(temporary.iterdir()) == []
    assert running("98765.4321") == []
    assert running(str(temporary)) == []


def running(word: str) -> list[str]:
    """The command lines of processes that have a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        if word in text:
            found.append(text)
    return found


def test_each_layer_is_in_force(sandbox: Sandbox, judge: Any) -> None:
    assert set(sandbox.layers) == set(jail.LAYERS) or os.geteuid() != 0
    assert len(sandbox.protection["in force"]) == len(sandbox.layers) + 1
    look = """
    import os, socket, threading, time
    def refused(work):
        try:
            work()
        except (OSError, RuntimeError) as error:
            return True
        return False
    started = []
    while not refused(lambda: threading.Thread(target=time.sleep, args=(5,), daemon=True).start()):
        started.append(1)
    return {
        "user": os.getuid(), "process": os.getpid(), "parent": os.getppid(),
        "home": os.path.exists("/home"), "folder": os.listdir("."),
        "descriptors": [n for n in range(3, 200) if not refused(lambda: os.fstat(n))],
        "threads": len(started), "socket": refused(socket.socket), "kill": refused(lambda: os.kill(1, 0)),
        "root": refused(lambda: open("/x", "w")), "python": refused(lambda: open(os.__file__, "a")),
        "own": open("own", "w").write("x"), "environment": sorted(os.environ),
    }
"""
    for key, check in {
        "user": f"value >= 0x70000000 or value == {os.getuid()} != 0",
        "process": "value == 1",
        "parent": "value == 0",
        "home": "value is False",
        "folder": "value == []",
        "descriptors": "value == [3, 4]",
        "threads": "0 < value < 12",
        "socket": "value",
        "kill": "value",
        "root": "value",
        "python": "value",
        "own": "value == 1",
        "environment": "value == ['HOME', 'OMP_NUM_THREADS', 'PATH', 'TMPDIR']",
    }.items():
        verdict = judge(look, f"value = candidate(0)['{key}']; assert {check}, value")
        assert verdict.passed, (key, verdict.reason)


def test_memory_disk_and_time(judge: Any) -> None:
    with Sandbox(Limits(seconds=5, memory=200 << 20, disk=1 << 20)) as box:
        assert judge("    return len(bytes(value << 20))\n", "assert candidate(50) == 50 << 20", box).passed
        assert judge("    return len(bytes(value << 20))\n", "candidate(250)", box).reason == "MemoryError"
        write = "    return open('a', 'wb').write(bytes(value))\n"
        assert judge(write, "assert candidate(1 << 19) == 1 << 19", box).passed
        assert judge(write, "candidate(1 << 21)", box).reason.startswith("OSError")
    with Sandbox(Limits(seconds=0.2)) as box:
        verdict = judge("    while True: pass\n", box=box)
        assert verdict.reason == "timed out"
        assert verdict.seconds < 5
        assert judge("    return 2 * value\n", "while True: pass", box).reason == "timed out", "of the tests"


def test_nothing_stays_for_the_next_program(judge: Any) -> None:
    assert judge("    open('left', 'w').close()\n    import json\n    json.left = 1\n    return 6\n").passed
    assert judge(
        "    import json, os\n    return 6 - os.path.exists('left') - hasattr(json, 'left')\n"
    ).passed


def test_tests_see_data_and_exceptions(judge: Any) -> None:
    assert judge("    return value\n", "assert candidate([1, (2, {3: {4}})]) == [1, (2, {3: {4}})]").passed
    assert judge("    return value\n", "assert candidate(value=float('inf')) == float('inf')").passed
    assert judge("    return value ** 5000\n", "assert candidate(10) == 10 ** 5000").passed
    assert judge("    yield from range(value)\n", "assert list(candidate(3)) == [0, 1, 2]").passed
    expects = (
        "try: candidate(0)\n    except ZeroDivisionError: return\n    assert False, 'nothing was raised'"
    )
    assert judge("    return 1 / value\n", expects).passed
    assert judge("    return value\n", expects).reason == "AssertionError: nothing was raised"
    assert judge("    return 1 / value\n", "candidate(0)").reason == "ZeroDivisionError: division by zero"
    assert judge("    return value +\n").reason.startswith("SyntaxError")
    swallowed = "try: candidate(0)\n    except BaseException: pass"
    verdict = judge("    raise SystemExit\n", swallowed)
    assert (verdict.passed, verdict.reason) == (False, "the program ended early")
    assert judge("    return print\n").reason.startswith("TypeError: a value of type builtin_function")


def test_the_helpers_of_a_prompt_are_the_prompts_own(sandbox: Sandbox) -> None:
    prompt = 'def helper(x):\n    return x + 1\n\n\ndef asked(x):\n    """Return helper of x."""\n'
    test = "def check(candidate):\n    assert candidate(1) == helper(1) == 2\n    assert asked(1) == 2\n"
    assert sandbox.judge(f"{prompt}    return helper(x)\n", prompt, test, "asked").passed
    replaced = "    return helper(x)\n\ndef helper(x):\n    return 7\n"
    assert not sandbox.judge(prompt + replaced, prompt, test, "asked").passed


@pytest.mark.parametrize(
    "name", ["StopIteration", "StopAsyncIteration", "GeneratorExit", "KeyboardInterrupt"]
)
def test_an_exception_does_not_end_a_loop_of_the_tests_early(judge: Any, name: str) -> None:
    for check in (
        "for value in map(candidate, [1, 2]): assert value == 7",
        "assert [*filter(candidate, [1, 2])] == []",
        "for value in iter(lambda: candidate(1), 0): assert value == 7",
        "assert all(map(lambda x: candidate(x) == 7, [1, 2]))",
        "assert next(map(candidate, [1]), None) is None",
    ):
        assert not judge(f"    raise {name}\n", check).passed, check


def test_calls_are_refused(judge: Any) -> None:
    """By their numbers, and some by their names, lest a number is another call's."""
    look = """
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    found = []
    for name, *arguments in value:
        ctypes.set_errno(0)
        result = getattr(libc, name)(*[a.encode() if isinstance(a, str) else a for a in arguments])
        found.append((name, *arguments) if result != -1 or ctypes.get_errno() != 1 else None)
    return [each for each in found if each]
"""
    column = jail.MACHINES[platform.machine()][0]
    calls: list[tuple[Any, ...]] = [
        ("syscall", numbers[column], *[0] * 6) for numbers in jail.FORBIDDEN.values()
    ]
    calls += [("shmget", 0, 4096, 0o1600), ("semget", 0, 1, 0o1600), ("msgget", 0, 0o1600)]
    calls += [("memfd_create", "x", 0), ("semctl", 0, 0, 0), ("shmctl", 0, 0, 0), ("msgctl", 0, 0, 0)]
    verdict = judge(look, f"found = candidate({calls}); assert not found, found")
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        7,
        -1.5,
        math.inf,
        "ä\ud800",
        b"\0\xff",
        1j,
        [1, [2]],
        (1, (2,)),
        {1, 2},
        {(1, 2): {"a": None}},
    ],
)
def test_data_is_the_same_on_the_other_side(value: Any) -> None:
    back = restored(json.loads(json.dumps(plain(value))))
    assert back == value
    assert type(back) is type(value)


def test_subclasses_become_what_they_are_built_on() -> None:
    class Text(str):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = str.__hash__

    for value, expected in [
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (frozenset([1]), {1}),
        ({1: 2}.keys(), {1}),
        (Fraction(1, 2), 0.5),
        (Text("x"), "x"),
    ]:
        back = restored(json.loads(json.dumps(plain(value))))
        assert type(back) is type(expected)
        assert back == expected
    with pytest.raises(TypeError, match="type object, which is no plain data"):
        plain([object()])


def test_exceptions_are_pythons_own() -> None:
    assert type(raised("KeyError", "x")) is KeyError
    for name in ("SystemExit", "print", "UnicodeDecodeError", "Own", "StopIteration", "StopAsyncIteration"):
        assert repr(raised(name, "x")) == f"RuntimeError('{name}: x')"


def test_where_the_system_permits_nothing(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Namespaces are refused to a server in which `unshare` fails, as in many containers."""
    fault = "import jail, judge; jail.NEWNS = -1;"
    monkeypatch.setattr(sandboxes, "START", sandboxes.START.replace("import judge;", fault))
    with pytest.raises(UserError, match=r"not permitted here: sees Python.*; no network.*--unprotected"):
        Sandbox()
    with Sandbox(Limits(seconds=5), unprotected=True) as box:
        assert len(box.protection["not in force"]) >= 3
        assert "processes" not in box.layers
        assert judge("    return 2 * value\n", box=box).passed
        assert judge("    import socket\n    socket.socket()\n", box=box).reason.startswith("PermissionError")
        daemon = (
            "    import os\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
            "            os.execv('/usr/bin/sleep', ['sleep', '87654.321'])\n"
            "        os._exit(0)\n    return 6\n"
        )
        assert judge(daemon, box=box).passed
        assert running("87654.321") == []
        with ThreadPoolExecutor(1) as pool:
            mark = f"mark-{os.getpid()}"
            body = f"    open({mark!r}, 'w').close()\n    import time\n    time.sleep(99)\n"
            judged = pool.submit(judge, body, box=box)
            wait_for(lambda: [*Path("/tmp").glob(f"*/{mark}")] != [])
            box.server.kill()
            with pytest.raises(RuntimeError, match="the process that starts programs has died"):
                judged.result()
        wait_for(lambda: [*Path("/tmp").glob(f"*/{mark}")] == [])


def test_a_sandbox_that_is_killed_leaves_nothing(tmp_path: Path, sandbox: Sandbox) -> None:
    """The process that uses it, and with it all that it had begun, ends within the time of a program."""
    script = f"""
import sys, tempfile
sys.path[:1] = [{str(Path(humaneval.__file__).parent.parent)!r}]
tempfile.tempdir = {str(tmp_path)!r}
from llm.code_eval.jail import Limits
from llm.code_eval.sandbox import Sandbox
box = Sandbox(Limits(seconds=1))
print(box.server.pid, flush=True)
body = "    import os\\n    os.execv('/usr/bin/sleep', ['sleep', '76543.21'])\\n"
box.judge({PROMPT!r} + body, {PROMPT!r}, "def check(candidate): candidate(1)", "asked")
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        server = Path("/proc", process.stdout.readline().decode().strip())
        wait_for(lambda: running("76543.21") != [])
        process.kill()
    wait_for(lambda: not server.exists() and running("76543.21") == [])
    assert [*tmp_path.iterdir()] == []


def wait_for(true: Callable[[], bool]) -> None:
    """Wait until it is so."""
    for _ in range(500):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to be so")


ORDINARY = """
import json, os, socket, sys
sys.path[:1] = [{root!r}]
from llm.code_eval import jail, judge
sys.base_prefix = "/usr"  # this Python's own may be in a folder that only root can read
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if (server := os.fork()) == 0:
    ours.close()
    os.setsid()
    os.setgroups([])
    os.setresgid(12345, 12345, 12345)
    os.setresuid(12345, 12345, 12345)
    jail.call("prctl", jail.SET_DUMPABLE, 1, 0, 0, 0)  # as a process that was started by that user
    judge.serve(theirs.fileno(), dict(seconds=5))
    os._exit(0)
theirs.close()
found = [json.loads(ours.recv(1 << 16))]
for body in json.loads({bodies!r}):
    job_out, job_in = os.pipe()
    verdict_out, verdict_in = os.pipe()
    socket.send_fds(ours, [b"j"], [job_out, verdict_in])
    os.close(job_out), os.close(verdict_in)
    job = dict(program=body, prompt="", test="def check(candidate): candidate(1)", entry_point="asked")
    with os.fdopen(job_in, "w") as file:
        json.dump(job, file)
    with os.fdopen(verdict_out) as file:
        found.append(json.load(file)["reason"])
    ours.recv(1)
ours.close()
os.waitpid(server, 0)
print(json.dumps(found))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests are an ordinary user's already")
def test_an_ordinary_user_is_protected_by_user_namespaces(sandbox: Sandbox) -> None:
    bodies = [
        "import os\ndef asked(x):\n    raise ValueError((os.getuid(), os.getpid(), os.path.exists('/home')))",
        "def asked(x):\n    open('/usr/new', 'w')",
        "import os\ndef asked(x):\n    for count in range(40):\n        if os.fork() == 0:\n"
        "            import time; time.sleep(9)\n    raise ValueError('no limit')",
    ]
    root = str(Path(humaneval.__file__).parent.parent)
    script = ORDINARY.format(root=root, bodies=json.dumps(bodies))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    layers, first, second, third = json.loads(done.stdout)
    if "files" not in layers:
        pytest.skip("this system permits no user namespaces to ordinary users")
    assert set(layers) == set(jail.LAYERS)
    assert first == "ValueError: (12345, 1, False)"
    assert second.startswith("OSError: [Errno 30] Read-only file system")
    assert third.startswith("BlockingIOError")


def test_limits_that_cannot_work() -> None:
    with pytest.raises(UserError, match="time limit of 0 seconds"):
        Sandbox(Limits(seconds=0))
    assert OWN[0].entry_point == "double", "of which the hostile completions are"
