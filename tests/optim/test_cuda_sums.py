"""Sums of squares under CUDA, without a GPU: launched as on one, and executed by an interpreter (see ptx/).

The bits are those of the CPU kernels.
"""

import itertools

import numpy as np
import pytest
import torch
from harness import assert_same_bits, case_id
from standin import StandIn
from torch.utils._python_dispatch import TorchDispatchMode

import adan_optim
from adan_optim.engine import cuda, cuda_sums, native
from adan_optim.engine.cuda_sums import CudaSums
from adan_optim.engine.sums import CpuSums

pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC comes with the CUDA builds of torch")
if reason := native.load()[1]:
    pytest.skip(reason, allow_module_level=True)

UNIT = cuda_sums.UNIT
LENGTHS = [0, 1, 15, 16, 17, 127, 128, 129, 511, 512, 513, 1025]
# Rows of every awkward length, of which some blocks are full and some are not; rows of several parts.
ROWS = [(rows, length) for rows, length in zip(itertools.cycle([1, 3, 130]), LENGTHS, strict=False)]
ROWS += [(1, UNIT - 1), (1, UNIT), (2, UNIT + 1), (0, 7), (3, 0)]
# Numbers of rows around chains and teams; one row, one column; several chunks, several parts of the rows.
TILES = [(rows, 33) for rows in (0, 1, 7, 8, 9, 63, 64, 65, 130)] + [(5, 1), (1, 700), (70, 512), (66, 1025)]
TILES += [(1030, 130), (2100, 65), (9, UNIT + 520)]
each_dtype = pytest.mark.parametrize("dtype", native.PARAMETER, ids=case_id)
each_dtype_and_offset = pytest.mark.parametrize(
    ("dtype", "offset"),
    [
        pytest.param(dtype, offset, marks=() if offset == number % 2 else pytest.mark.exhaustive)
        for number, dtype in enumerate(native.PARAMETER)
        for offset in (0, 1)
    ],
    ids=case_id,
)


@pytest.fixture
def device(monkeypatch):
    """A stand-in device, whose new memory is not zeros."""
    found = StandIn().install(monkeypatch)

    def allocate(words):
        found.allocated.append(torch.full((words,), -1, dtype=torch.int64))
        return found.allocated[-1]

    monkeypatch.setattr(found, "allocate", allocate)
    return found


class Case:
    """Tensors of [rows, length] elements and weights, with memory between that no kernel may read."""

    def __init__(self, device, dtype, shapes, offset=0):
        rng = np.random.default_rng(0)

        def random(count):
            return torch.as_tensor(rng.standard_normal(count + offset))

        self.dtype, self.shapes = dtype, shapes
        self.x = [random(rows * length).to(dtype)[offset:] for rows, length in shapes]
        self.weights = random(sum(length for _, length in shapes)).abs()
        self.weights = self.weights.to(torch.promote_types(dtype, torch.float32))[offset:]
        device.tensors = lambda: [("weights", self.weights), *(("x", x) for x in self.x)]
        self.ours, self.expected = CudaSums(dtype, shapes, 0), CpuSums(dtype, shapes)

    def check(self, method, *arguments):
        ours, expected = (getattr(sums, method)(self.x, *arguments) for sums in (self.ours, self.expected))
        assert_same_bits([ours], [expected])


@each_dtype_and_offset
def test_rows(dtype, offset, device):
    case = Case(device, dtype, ROWS, offset)
    case.check("rows")
    case.check("rows", case.weights)


@each_dtype_and_offset
def test_rows_and_columns(dtype, offset, device):
    Case(device, dtype, TILES, offset).check("rows_and_columns")


def test_a_row_of_more_parts_than_a_warp_has_lanes(device):
    Case(device, torch.float32, [(1, 33 * UNIT + 5)]).check("rows")


def test_what_is_not_a_number_stays_where_it_is(device):
    case = Case(device, torch.float32, [(3, 17), (1, 513), (2, 700), (70, 30), (9, 600), (1, UNIT + 1)])
    for i, x in enumerate(case.x):
        if i % 2 and len(x):
            x[len(x) // 2] = (torch.nan, torch.inf)[i // 2 % 2]
    case.weights[::50] = 0  # which makes NaN of inf
    for method, weights in (("rows", ()), ("rows", (case.weights,)), ("rows_and_columns", ())):
        ours, expected = (getattr(sums, method)(case.x, *weights) for sums in (case.ours, case.expected))
        torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("count", "launches"), [(480, 1), (481, 2), (961, 3)])
def test_many_tensors(count, launches, device):
    """Each launch takes the addresses of 480."""
    case = Case(device, torch.float32, [((i + 1) % 4, i % 3 + 1) for i in range(count)])
    case.check("rows")
    case.check("rows_and_columns")
    made = [launch.name for _, launch in device.launches]
    assert made.count("sums_0_rows") == made.count("sums_0_tiles") == launches


# ---- what is launched and moved


def test_two_launches_however_many_tensors(device):
    """And what blocks do is copied to the device once for each stream; new tensors change nothing."""
    for count in (1, 300):
        case = Case(device, torch.float32, [(1, UNIT + 1), *[(1, 3)] * (count - 1)])
        for stream in (1, 1, 2, 2):
            device.stream = stream
            case.x = [x.clone() for x in case.x]
            case.ours.rows(case.x)
        uploads, two = ["upload"] * -(-8 * count // cuda.WORDS), ["sums_0_rows", "sums_0_finish"]
        made = [(now, launch.name) for now, launch in device.launches]
        assert made == [(now, name) for now in (1, 2) for name in (*uploads, *two, *two)]
        device.launches.clear()


@each_dtype
def test_every_element_is_read_once(dtype, device):
    """Also for rows and columns together; what is written besides is small."""
    case = Case(device, dtype, [(256, 1024)])
    size, work = 256 * 1024, torch.promote_types(dtype, torch.float32).itemsize
    for method, weights in (("rows", ()), ("rows", (case.weights,)), ("rows_and_columns", ())):
        getattr(case.ours, method)(case.x, *weights)
        launch = next(x for _, x in reversed(device.launches) if x.name.endswith(("_rows", "_tiles")))
        assert launch.moved["ld", "x", dtype.itemsize] == size
        loads = [n * width for (kind, name, width), n in launch.moved.items() if (kind, name) == ("ld", "x")]
        assert sum(loads) == size * dtype.itemsize
        stored = sum(n * width for (kind, _, width), n in launch.moved.items() if kind == "st")
        chains, chunks = 256 * 1024 // cuda_sums.ROW_CHAIN, 256 * 1024 // cuda_sums.CHAIN
        assert stored == (256 * work if method == "rows" else chains * work + chunks * 8)


# ---- whole optimizers


class Operations(TorchDispatchMode):
    """Lists torch's operations that compute something, each of which is a launch or a few."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        if not function.is_view and not name.startswith(("empty", "full.", "promote_types")):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


MOST = {"adafactor": 43, "adam_mini": 26, "lars": 15}  # as in docs/optim.md


@pytest.mark.parametrize("shape", [(20, 30), (40,)], ids=["matrices", "vectors"])
@pytest.mark.parametrize("name", MOST)
def test_the_number_of_operations_does_not_depend_on_that_of_parameters(name, shape, device, monkeypatch):
    """Of launches of our own, and of torch's operations."""
    device.install_for_torch(monkeypatch)
    found = []
    for count in (3, 30):
        params = [torch.randn(shape) for _ in range(count)]
        for p in params:
            p.on_stand_in = True
            p.requires_grad_()
        optimizer = adan_optim.OPTIMIZERS[name](
            params, fused=True, **({"weight_decay": 0.1} if name == "lars" else {})
        )
        for _ in range(2):
            for p in params:
                p.grad = torch.randn(shape)
            device.launches.clear()
            with Operations() as operations:
                optimizer.step()
        launches = [launch.name.rpartition("_")[2] for _, launch in device.launches]
        found.append((launches, operations.names))
    assert found[0] == found[1]
    launches, operations = found[0]
    sums = {
        "adam_mini": ["rows"],
        "lars": ["rows"] * 2,
        "adafactor": ["tiles", "rows", "rows"][len(shape) == 1 :],
    }
    assert launches == [*sums[name], "prepare", "step"]
    assert len(operations) <= MOST[name], operations
