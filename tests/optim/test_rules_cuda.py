"""The rules of csrc/rules.h are valid CUDA too: NVRTC, which needs no GPU, compiles each for every card."""

import re
from pathlib import Path

import pytest

RULES = Path(__file__).resolve().parents[2] / "csrc" / "rules.h"
KERNEL = """
#include "rules.h"
template <class Rule, class T>
__global__ void step(T* p, const T* g, T* s, const float* steps, typename Rule::Hyper hyper, double scale) {
  const typename Rule::template Scalars<T> scalars(hyper, *steps, scale);
  T state[Rule::states];
  for (int j = 0; j < Rule::states; ++j) state[j] = s[j];
  Rule::update(scalars, *g, *p, state);
  for (int j = 0; j < Rule::states; ++j) s[j] = state[j];
}
"""
nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC comes with the CUDA builds of torch")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("rule", re.findall(r"^struct (\w+)", RULES.read_text(), flags=re.MULTILINE))
def test_rule_compiles(rule: str, arch: str) -> None:
    instances = (
        f"template __global__ void step<rules::{rule}, {t}>"
        f"({t}*, const {t}*, {t}*, const float*, rules::{rule}::Hyper, double);"
        for t in ("float", "double")
    )
    source = KERNEL + "\n".join(instances)
    headers = [RULES.read_text().encode()]
    error, program = nvrtc.nvrtcCreateProgram(source.encode(), b"step.cu", 1, headers, [b"rules.h"])
    assert not error.value
    options = [f"--gpu-architecture={arch}".encode(), b"-std=c++17"]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
    nvrtc.nvrtcGetProgramLog(program, log)
    assert not error.value, log.decode()
    assert nvrtc.nvrtcGetCUBINSize(program)[1] > 0
    nvrtc.nvrtcDestroyProgram(program)
