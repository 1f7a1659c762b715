"""Build the fused CPU kernels, if there is a C++ compiler; pyproject.toml describes the rest of a wheel.

The build does not need torch: the library takes raw addresses. Nor is the library linked against an OpenMP
runtime, because it must share the one that torch has loaded (two would compete for the cores).
"""

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.editable_wheel import editable_wheel

# -fschedule-insns helps with small states, where a step is bound by arithmetic: the loop bodies are long.
FLAGS = "-std=c++17 -O3 -g0 -fopenmp -fschedule-insns -fno-math-errno -fno-trapping-math -ffp-contract=off"
FLAGS += " -Wno-psabi"  # vectors pass between inlined functions alone

cpu = Extension(
    "optim._cpu",
    sources=["csrc/cpu.cpp"],
    depends=sorted(map(str, Path("csrc").glob("*.h"))),
    language="c++",
    extra_compile_args=FLAGS.split(),
    py_limited_api=True,  # only functions of the stable ABI, declared in csrc/tensors.h
    optional=True,  # without a compiler the install succeeds and optim.available() says what is missing
)


class Wheel(bdist_wheel):
    """A wheel without kernels, because there is no compiler, is tagged for every platform."""

    def run(self) -> None:
        self.run_command("build_ext")
        if not all(map(Path.exists, map(Path, self.get_finalized_command("build_ext").get_outputs()))):
            self.distribution.ext_modules, self.root_is_pure = [], True
        super().run()


class Checkout(editable_wheel):
    """`pip install -e .`, for work in a checkout: it also finds the packages that a wheel leaves out."""

    def finalize_options(self) -> None:
        self.distribution.packages += ["repro", "vision", "nlp", "llm", "benchmarks", "scripts"]
        super().finalize_options()


setup(
    cmdclass={"bdist_wheel": Wheel, "editable_wheel": Checkout},
    ext_modules=[cpu] if platform.system() == "Linux" else [],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
