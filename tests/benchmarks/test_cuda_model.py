"""benchmarks/cuda_model.py: what limits a kernel."""

import re

import pytest

from benchmarks import cuda_model
from benchmarks.sass import Instruction


def made(*opcodes):
    return [Instruction("", opcode, "", "") for opcode in opcodes]


def test_every_instruction_has_its_unit():
    code = made("FADD", "IMAD.WIDE.U32", "MUFU.RCP", "LDG.E.128", "SHFL.BFLY", "LOP3.LUT", "BRA", "ULDC")
    found = [cuda_model.unit(x) for x in code]
    assert found == ["fp32", "imad", "xu", "lsu", "lsu", "alu", "issue", "issue"]


def test_clocks_of_a_tile():
    """A warp's instruction takes 32 lanes; a wide access four times as long as a narrow one."""
    h100 = cuda_model.GPUS["H100"]
    code = made("FADD", "FADD", "LOP3.LUT", "MUFU.RSQ", "LDG.E.128", "STG.E")
    assert cuda_model.clocks(code, h100) == {"fp32": 0.5, "alu": 0.5, "xu": 2, "lsu": 5, "issue": 1.5}


@pytest.mark.static
def test_the_page(capsys):
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC comes with the CUDA builds of torch")
    assert cuda_model.main([]) == 0
    page = capsys.readouterr().out
    rows = [line for line in page.splitlines() if re.match("`(?!python )", line)]
    assert len(rows) == len(cuda_model.kernels()) + len(cuda_model.SUMS) * len(cuda_model.PARAMETERS)
    assert re.search(r"^`adan` +float32 +float32 +44 ", page, re.M)
    assert re.search(r"^`sums of both` +float32 +4.16 ", page, re.M)
    assert page.count("(memory)") > len(rows)  # of four cards
