"""The processes of a sandbox: one that starts the others, and two for each program that is judged.

The *examiner* has the task's tests. The *candidate* has the program, and is called over a pipe: it gets the
arguments of a call and returns the function's result as plain data. That is the only way from the program to
the verdict, which the examiner writes: whatever it does to its own interpreter, the program cannot reach the
tests, their expected values or the verdict. See llm/code_eval/sandbox.py and docs/humaneval.md.

As in llm/code_eval/jail.py, only Python's standard library is used.
"""

import builtins
import collections
import contextlib
import functools
import json
import math
import numbers
import os
import random
import re
import signal
import socket
import string
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

from llm.code_eval import jail

LONGEST = 16 << 20  # maximum bytes of a message
PRELOADED = (collections, functools, math, random, re, string, typing)  # often imported by programs


def serve(descriptor: int, limits: dict[str, Any]) -> None:
    """Start an examiner and a candidate for each message, one pair at a time, until the socket is closed.

    First the layers in force are sent as JSON. Each message comes with two descriptors, of the job and of the
    verdict. The answer is a byte: `t` if the program ran out of time.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})  # keepers wait for them
    control = socket.socket(fileno=descriptor)
    most = jail.Limits(**limits)
    longer = jail.Limits(**{**limits, "seconds": most.seconds + 1})  # so that the examiner outlives it
    layers = jail.enter()
    sys.set_int_max_str_digits(0)
    random.seed(0)  # all processes start with the same
    control.send(json.dumps(layers).encode())
    while True:
        message, given, _, _ = socket.recv_fds(control, 1, 2)
        if not message:
            return
        (job, verdict), calls, answers = given, os.pipe(), os.pipe()
        examiner = _kept(examine, [job, verdict, answers[0], calls[1]], layers, longer)
        candidate = _kept(answer, [calls[0], answers[1]], layers, most)
        for end in (job, verdict, *calls, *answers):
            os.close(end)
        os.waitpid(examiner, 0)
        os.kill(candidate, signal.SIGTERM)
        late = os.waitstatus_to_exitcode(os.waitpid(candidate, 0)[1]) == 1
        control.send(b"t" if late else b".")


def _kept(role: Callable[[], None], descriptors: list[int], layers: list[str], limits: jail.Limits) -> int:
    """Return the process that guards `role`; its exit status is 1 if the role ran out of time."""
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            status = int(jail.keep(role, descriptors, layers, limits))
        finally:
            os._exit(status)
    return pid


# ---- the candidate: descriptors 3, calls, and 4, answers


def answer() -> None:
    """Run the program, then its function for each call."""
    calls, answers = os.fdopen(3, "rb"), os.fdopen(4, "wb")

    def tell(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode() + b"\n")
        answers.flush()

    def attempt(work: Callable[[], Any]) -> None:
        try:
            message = {"value": plain(work())}
        except Exception as error:
            message = {"raised": type(error).__name__, "text": str(error)[:200]}
        tell(message)

    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # which need site-packages
    job = json.loads(calls.readline())
    names: dict[str, Any] = {"__name__": "program"}
    attempt(lambda: exec(compile(job["program"], "program.py", "exec"), names))

    def call(asked: dict[str, Any]) -> Any:
        positional = [restored(value) for value in asked["positional"]]
        named = {name: restored(value) for name, value in asked["named"].items()}
        return names[job["entry_point"]](*positional, **named)

    for line in calls:
        attempt(functools.partial(call, json.loads(line)))


# ---- the examiner: descriptors 3, job, 4, verdict, 5, answers, and 6, calls


class Ended(BaseException):
    """The candidate is gone. It is no Exception, as a test might expect one."""


def examine() -> None:
    """Run the tests of a job and write the verdict {"passed": ..., "reason": ...}."""
    with os.fdopen(3, "rb") as file:
        job = json.load(file)
    answers, calls = os.fdopen(5, "rb"), os.fdopen(6, "wb")
    gone: list[str] = []

    def ask(message: dict[str, Any]) -> Any:
        try:
            calls.write(json.dumps(message).encode() + b"\n")
            calls.flush()
            line = answers.readline(LONGEST)
            if not line.endswith(b"\n"):
                raise OSError
            told = json.loads(line)
            value = restored(told["value"]) if "raised" not in told else None
            name, text = str(told.get("raised", "")), str(told.get("text", ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            gone.append("the program ended early" if isinstance(error, OSError) else "an unreadable answer")
            raise Ended from None
        if name:
            raise raised(name, text)
        return value

    def candidate(*positional: Any, **named: Any) -> Any:
        values = [plain(value) for value in positional]
        return ask({"positional": values, "named": {name: plain(value) for name, value in named.items()}})

    passed, reason = False, ""
    try:
        ask({"program": job["program"], "entry_point": job["entry_point"]})
        names: dict[str, Any] = {"__name__": "tests"}
        exec(compile(job["prompt"], "prompt.py", "exec"), names)  # its helpers, for the tests
        names[job["entry_point"]] = candidate
        exec(compile(job["test"], "test.py", "exec"), names)
        names["check"](candidate)
        passed = not gone
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"[:300].rstrip(": ")
    verdict = {"passed": passed, "reason": gone[0] if gone else reason}
    with os.fdopen(4, "wb") as out:
        out.write(json.dumps(verdict).encode())


def raised(name: str, text: str) -> Exception:
    """Return the builtin exception of this name, as a test may expect it, else a RuntimeError.

    StopIteration and StopAsyncIteration also become RuntimeErrors, as in generators (PEP 479): raised by a
    call, they would end a test's `map`, `filter` or `for` early, and the test would pass.
    """
    kind = getattr(builtins, name, None)
    stops = (StopIteration, StopAsyncIteration)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, stops):
        with contextlib.suppress(TypeError):  # it takes other arguments
            return kind(text)
    return RuntimeError(f"{name}: {text}")


# ---- values in transit


def plain(value: Any) -> Any:
    """Return a value as JSON data; an instance of a subclass, such as a Counter, as its base class.

    Raises:
        TypeError: it is not data, such as a function or an instance of the program's own class.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, tuple):
        return {"tuple": [plain(each) for each in value]}
    if isinstance(value, Mapping):
        return {"dict": [[plain(key), plain(each)] for key, each in value.items()]}
    if isinstance(value, Set):
        return {"set": [plain(each) for each in value]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, numbers.Complex):
        whole = complex(value)
        return {"complex": [whole.real, whole.imag]}
    if isinstance(value, Iterator):
        return {"iterator": [plain(each) for each in value]}
    raise TypeError(f"a value of type {type(value).__name__}, which is no plain data")


def restored(value: Any) -> Any:
    """Return the value that `plain` encoded; only builtin types can result, whoever sent it."""
    if isinstance(value, list):
        return [restored(each) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, parts),) = value.items()
    if kind == "bytes":
        return bytes.fromhex(parts)
    if kind == "dict":
        return {restored(key): restored(each) for key, each in parts}
    makers: dict[str, Callable[[list[Any]], Any]] = {
        "tuple": tuple, "set": set, "iterator": iter, "complex": lambda parts: complex(*parts),
    }  # fmt: skip
    return makers[kind]([restored(each) for each in parts])
