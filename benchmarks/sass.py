"""Reads the machine code (SASS) of a cubin with NVIDIA's nvdisasm and cuobjdump, which come with triton.

It answers what a GPU does with a whole tile: which instructions a warp executes for it, and with what
resources. What only a run would show, such as how often a slow path is taken, is not here.
"""

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_LABEL = re.compile(r"^(\.L_x_\d+):")
_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its guard, such as "@!P0" or "", opcode with modifiers, operands and line of source.

    The line, such as "cuda.cu:151", is there if the kernels were compiled with --generate-line-info.
    """

    guard: str
    opcode: str
    operands: str
    line: str

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]

    @property
    def width(self) -> int:
        """Bytes that a thread moves, of a load or store."""
        return next((WIDTHS[part] for part in self.opcode.split(".") if part in WIDTHS), 4)

    @property
    def is_global(self) -> bool:
        """Whether it accesses global memory, or memory of a space known only at run time."""
        return self.name in ("LDG", "STG", "LD", "ST")

    @property
    def target(self) -> str | None:
        """The label that a branch goes to."""
        match = re.search(r"`\((\.L_x_\d+)\)", self.operands)
        return match[1] if match and self.name == "BRA" else None


@dataclass(frozen=True)
class Usage:
    """What a kernel takes: registers, stack and local bytes of a thread, shared bytes of a block."""

    registers: int
    stack: int
    shared: int
    local: int


def tool(name: str) -> str:
    """The path of one of NVIDIA's binary tools: on PATH, or of triton; FileNotFoundError without it."""
    spec = find_spec("triton")
    folder = Path(spec.origin).parent / "backends/nvidia/bin" if spec and spec.origin else Path()
    for path in (shutil.which(name), shutil.which(folder / name)):
        if path:
            return path
    raise FileNotFoundError(f"{name} is neither on PATH nor in a triton package: pip install triton")


def _read(name: str, *arguments: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool(name), *arguments, file.name], capture_output=True, text=True, check=True)
        return done.stdout


def usage(cubin: bytes) -> dict[str, Usage]:
    """What each kernel of a cubin takes, by its name."""
    text = _read("cuobjdump", "--dump-resource-usage", cubin=cubin)
    return {name: Usage(*map(int, numbers)) for name, *numbers in _USAGE.findall(text)}


def functions(cubin: bytes) -> dict[str, "Function"]:
    """The kernels of a cubin, by name."""
    found: dict[str, Function] = {}
    name, source = "", ""
    for line in _read("nvdisasm", "-c", "-g", cubin=cubin).splitlines():
        if place := re.match(r"\s*//## File \"(?:.*/)?(.*)\", line (\d+)", line):
            source = f"{place[1]}:{place[2]}"
        elif section := re.match(r"\s*\.section\s+\.text\.([^,]+),", line):
            name = section[1]
            found[name] = Function([], {})
        elif name and (label := _LABEL.match(line)):
            found[name].labels[label[1]] = len(found[name].code)
        elif name and (match := _LINE.match(line)):
            found[name].code.append(Instruction(match[1] or "", match[2], match[3], source))
    return found


@dataclass
class Function:
    """The code of a kernel; `labels` give the index of the instruction that follows."""

    code: list[Instruction]
    labels: dict[str, int]

    @functools.cached_property
    def blocks(self) -> list[tuple[int, int]]:
        """The basic blocks: first instruction and the one after the last."""
        ends = [i + 1 for i, x in enumerate(self.code) if x.name in ("BRA", "EXIT", "RET", "CALL")]
        starts = sorted({0, *self.labels.values(), *ends} - {len(self.code)})
        return list(zip(starts, [*starts[1:], len(self.code)], strict=True))

    @functools.cached_property
    def next_blocks(self) -> list[list[int]]:
        """For each block those that may follow it; what follows a call does not: only slow paths call."""
        at = {start: i for i, (start, _) in enumerate(self.blocks)}
        following = []
        for i, (_, end) in enumerate(self.blocks):
            last = self.code[end - 1]
            is_conditional = bool(last.guard) or not last.operands.startswith("`(")
            after = [at[self.labels[last.target]]] if last.target in self.labels else []
            if (last.name not in ("BRA", "EXIT", "RET", "CALL") or is_conditional) and i + 1 < len(
                self.blocks
            ):
                after.append(i + 1)
            following.append(after)
        return following

    def tile(self) -> list[Instruction]:
        """What a warp executes for a whole tile, from the head of the loop over tiles back to it.

        Of all paths through the loop it is the one whose unconditional accesses move the most, and of those
        the shortest.
        """
        head, tail = max(self._loops(), key=lambda loop: self._accesses(*loop))
        following, blocks = self.next_blocks, self.blocks
        best: dict[int, tuple[int, int, list[int]]] = {}
        for i in range(tail, head - 1, -1):  # loops within are not on the way
            start, end = blocks[i]
            moved = sum(x.width for x in self.code[start:end] if x.is_global and not x.guard)
            ways: list[tuple[int, int, list[int]]] = [(0, 0, [])] if head in following[i] else []
            ways += [best[j] for j in following[i] if j > i and j in best]
            if ways:
                more, length, way = max(ways, key=lambda way: way[:2])
                best[i] = (moved + more, length - (end - start), [i, *way])
        return [x for i in best[head][2] for x in self.code[slice(*blocks[i])]]

    def _loops(self) -> Iterator[tuple[int, int]]:
        for i, following in enumerate(self.next_blocks):
            yield from ((j, i) for j in following if j <= i)

    def _accesses(self, head: int, tail: int) -> int:
        return sum(x.is_global for x in self.code[self.blocks[head][0] : self.blocks[tail][1]])
