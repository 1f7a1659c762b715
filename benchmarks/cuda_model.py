"""What the CUDA kernels should reach, without a GPU.

The kernels are compiled for each GPU, and the machine code that a warp executes for a whole tile is read
(benchmarks/sass.py). A step takes as long as the busiest of these:

    memory   the bytes of an element, at 92 % of the data sheet's bandwidth: about what a copy reaches
    issue    one instruction of each of a multiprocessor's four schedulers in a clock
    fp32     additions and multiplications; imad: products of integers
    alu      all other integer and logical operations, comparisons, selections
    xu       reciprocals, roots, conversions; lsu: shuffles, loads and stores, 128 bytes in a clock

`sums of rows` have weights, which are in a cache: they cost loads and no bytes. `sums of both` are of rows
and of columns, with what `finish` reads again.

`of copy` is the time of a copy of the same bytes over that: 100 % where memory is the busiest. Latencies,
caches and falling clocks are not in the model, so a GPU may show less; `make bench-gpu` measures it.

Examples:
    python benchmarks/cuda_model.py
    python benchmarks/cuda_model.py --out cuda_model
"""

import argparse
from collections.abc import Sequence

from benchmarks.common import parser


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    return parser(__doc__).parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

import adan_optim
from adan_optim.card import FusedRule
from adan_optim.engine import cuda, cuda_sums, native
from benchmarks import sass
from benchmarks.common import machine
from repro.results import bullets, page, publish, table
from repro.train.cli import exit_status

LANES, TILE, COPY = 32, 256, 0.92


@dataclass(frozen=True)
class Gpu:
    """A GPU as NVIDIA's data sheets and the CUDA programming guide (arithmetic throughput) have it."""

    arch: int  # compute capability: 90 for sm_90
    processors: int
    clock: float  # Hz, under load: the sheets' boost clock is up to a tenth higher
    bandwidth: float  # bytes/s
    fp32: int  # lanes of a multiprocessor in a clock


GPUS = {
    "A100-80": Gpu(80, 108, 1.41e9, 2.04e12, 64),
    "H100": Gpu(90, 132, 1.75e9, 3.35e12, 128),
    "H200": Gpu(90, 132, 1.75e9, 4.8e12, 128),
    "B200": Gpu(100, 148, 1.85e9, 8.0e12, 128),
}
UNITS = {"issue": 128, "imad": 64, "alu": 64, "xu": 16, "lsu": 32}  # lanes of a multiprocessor in a clock
XU = ("MUFU", "F2F", "I2F", "F2I", "FRND", "I2FP", "F2IP")
FP32 = ("FADD", "FMUL", "FFMA", "FADD2", "FMUL2", "FFMA2")
CONTROL = ("BRA", "BSSY", "BSYNC", "EXIT", "NOP", "WARPSYNC", "CALL", "RET", "DEPBAR", "LDC", "ULDC", "LDCU")
PARAMETERS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STATES = (None, "bfloat16", "int8")
SUMS = {"sums of rows": "rows", "sums of both": "tiles"}  # and the kernel


def unit(instruction: sass.Instruction) -> str:
    """The unit that executes an instruction."""
    name = instruction.name
    if name in FP32:
        return "fp32"
    if name.startswith(("IMAD", "HFMA2")):
        return "imad"
    if name in XU:
        return "xu"
    if instruction.is_global or name in ("SHFL", "LDS", "STS"):
        return "lsu"
    if name in CONTROL or name.startswith(("U", "S2", "R2")):
        return "issue"
    return "alu"


def clocks(code: Iterable[sass.Instruction], gpu: Gpu) -> dict[str, float]:
    """Clocks of a multiprocessor for a tile, by unit."""
    code = list(code)
    work: Counter[str] = Counter()
    for instruction in code:
        wide = instruction.is_global or instruction.name in ("LDS", "STS")
        work[unit(instruction)] += max(1, instruction.width // 4) if wide else 1
    work["issue"] = len(code)
    units = {**UNITS, "fp32": gpu.fp32}
    return {name: LANES * count / units[name] for name, count in work.items()}


def bytes_moved(rule: FusedRule, dtype: torch.dtype, state: str | None) -> float:
    """Bytes of an element that a step reads and writes, by the byte model of docs/optim.md."""
    each = {None: dtype.itemsize, "float32": 4, "bfloat16": 2, "int8": 1 + 4 / TILE}[state]
    of_tensors = 3 - len(rule.unread) - ("param" in rule.unwritten)  # the parameter twice, the gradient
    of_states = len(rule.states) + len(rule.written_states)
    return of_tensors * dtype.itemsize + of_states * each


def kernels() -> dict[tuple[str, str, str], tuple[FusedRule, native.Kinds, str | None]]:
    """The kernels of the table: rule, parameter and state, then what compiles them."""
    found = {}
    for card in (card for card in adan_optim.CARDS.values() if "cuda" in card.fused_devices):
        for rule in card.fused_rules:
            for name, dtype in PARAMETERS.items():
                for state in STATES if rule.states else (None,):
                    if not rule.small and (dtype, state) != (torch.float32, None):
                        continue
                    kinds = native.Kinds(native.PARAMETER[dtype], native.STATE[state], 0, False)
                    found[rule.name, name, state or name] = (rule, kinds, state)
    return found


def sums(functions: dict[str, sass.Function], dtype: torch.dtype) -> dict[str, Any]:
    """For each name in SUMS what a warp executes for a chunk of two teams, and the bytes of an element."""
    name, _ = cuda_sums.instance(dtype)
    code = {key: functions[f"{name}_{kernel}"].tile() for key, kernel in SUMS.items()}
    column = [
        sass.Instruction("", opcode, "", "") for opcode in ("LDS", "FADD")
    ]  # a loop that `tile` leaves out
    code["sums of both"] += column * (cuda_sums.CHAIN // cuda_sums.LANES)
    again = 2 * (4 / cuda_sums.ROW_CHAIN + 8 / cuda_sums.CHAIN)
    return {key: (code[key], dtype.itemsize + again * (key == "sums of both")) for key in SUMS}


def predict() -> list[dict[str, Any]]:
    """A row for each kernel and GPU."""
    wanted = kernels()
    rows = []
    for arch in sorted({gpu.arch for gpu in GPUS.values()}):
        names = {key: cuda.instance(rule, kinds) for key, (rule, kinds, _) in wanted.items()}
        lines = [line for _, line in names.values()]
        lines += [cuda_sums.instance(dtype)[1] for dtype in PARAMETERS.values()]
        functions = sass.functions(cuda.compile_kernels("".join(lines), arch))
        found = {
            key: (
                functions[f"{names[key][0]}_step"].tile(),
                TILE,
                bytes_moved(rule, PARAMETERS[key[1]], state),
            )
            for key, (rule, _, state) in wanted.items()
        }
        for parameter, dtype in PARAMETERS.items():
            for kind, (code, moved) in sums(functions, dtype).items():
                found[kind, parameter, ""] = code, 2 * cuda_sums.CHAIN, moved
        for (rule_name, parameter, kept), (code, elements, moved) in found.items():
            for gpu_name, gpu in GPUS.items():
                if gpu.arch == arch:
                    about = {"rule": rule_name, "parameter": parameter, "state": kept, "gpu": gpu_name}
                    rows.append(about | judge(code, elements, moved, gpu))
    return rows


def judge(code: Sequence[sass.Instruction], elements: int, moved: float, gpu: Gpu) -> dict[str, Any]:
    """What limits a kernel, of which a warp executes `code` for elements that move so many bytes each."""
    speed = gpu.processors * gpu.clock * elements  # elements a second, at a clock for each execution
    seconds = {unit: n / speed for unit, n in clocks(code, gpu).items()}
    seconds["memory"] = moved / (COPY * gpu.bandwidth)
    busiest = max(seconds, key=lambda unit: (seconds[unit], unit))
    return {
        "bytes": moved,
        "instructions": len(code) * LANES / elements,
        "limit": busiest,
        "of_copy": seconds["memory"] / seconds[busiest],
    }


def show(rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """The page."""
    cells: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["rule"], row["parameter"], row["state"]), {})[row["gpu"]] = row
    body = [
        [
            f"`{rule}`",
            parameter,
            state,
            f"{by_gpu['H100']['bytes']:.3g}",
            f"{by_gpu['H100']['instructions']:.0f}",
            *(f"{by_gpu[gpu]['of_copy']:.0%} ({by_gpu[gpu]['limit']})" for gpu in GPUS),
        ]
        for (rule, parameter, state), by_gpu in cells.items()
    ]
    head = ["rule", "parameter", "state", "B/element", "instructions/element, sm_90", *GPUS]
    assumed = (
        f"{name}: {gpu.processors} multiprocessors at {gpu.clock / 1e9:.2f} GHz, "
        f"{gpu.bandwidth / 1e12:.3g} TB/s"
        for name, gpu in GPUS.items()
    )
    return page(
        "Predicted speed of the CUDA kernels",
        f"`{about['command']}` at commit {about['commit']}, NVRTC {about['nvrtc']}.",
        "No kernel was run. For each GPU: the share of a copy's bandwidth that the kernel should reach, and "
        "what limits it.",
        table(head, body),
        bullets(assumed),
        "See the script's docstring for the model and for what is not in it.",
    )


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Make the page; return the exit status."""
    options = read_options(arguments)
    about = machine("cpu", arguments) | {"nvrtc": cuda.nvrtc_build().split("release ")[1].split(" Based")[0]}
    rows = predict()
    result = {"about": about, "gpus": {name: asdict(gpu) for name, gpu in GPUS.items()}, "rows": rows}
    publish(result, show(rows, about), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
