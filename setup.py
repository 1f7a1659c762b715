"""Build the fused CPU kernels, if there is a C++ compiler; pyproject.toml describes the rest of a wheel."""

import gzip
import os
import subprocess
import sys
import tarfile
from distutils.errors import CompileError
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel
from setuptools.command.sdist import sdist

sys.path.insert(0, str(Path(__file__).parent / "optim"))
from build_kernels import build


class Kernels(build_ext):
    """Compiles as optim/build_kernels.py says, not as Python was compiled."""

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        try:
            build(library)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(str(error)) from None


class Wheel(bdist_wheel):
    """A wheel without kernels, because there is no compiler, is tagged for every platform."""

    def run(self) -> None:
        self.run_command("build_ext")
        if not all(map(Path.exists, map(Path, self.get_finalized_command("build_ext").get_outputs()))):
            self.distribution.ext_modules, self.root_is_pure = [], True
        super().run()


class Source(sdist):
    """With SOURCE_DATE_EPOCH, which wheels heed anyway, the same files give the same bytes."""

    def make_archive(self, base_name: str, format: str, *folders: object, **options: object) -> str:
        if format != "gztar" or "SOURCE_DATE_EPOCH" not in os.environ:
            return super().make_archive(base_name, format, *folders, **options)
        time = int(os.environ["SOURCE_DATE_EPOCH"])

        def plain(file: tarfile.TarInfo) -> tarfile.TarInfo:
            file.mtime, file.uid, file.gid, file.uname, file.gname = time, 0, 0, "", ""
            file.mode = 0o755 if file.isdir() or file.mode & 0o100 else 0o644
            return file

        path = f"{base_name}.tar.gz"
        with (
            open(path, "wb") as raw,
            gzip.GzipFile("", "wb", mtime=time, fileobj=raw) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            archive.add(options["base_dir"], filter=plain)
        return path


class Checkout(editable_wheel):
    """`pip install -e .`, for work in a checkout: it also finds the packages that a wheel leaves out."""

    def finalize_options(self) -> None:
        for name in ("repro", "vision", "nlp", "llm", "benchmarks", "scripts"):
            self.distribution.packages.append(name)
            self.distribution.package_dir[name] = name
        super().finalize_options()


cpu = Extension(
    "adan_optim._cpu",
    sources=[],
    py_limited_api=True,  # a name without a version: it does not depend on Python
    optional=True,  # without a compiler the install succeeds and adan_optim.available() says what is missing
)
setup(
    cmdclass={"bdist_wheel": Wheel, "build_ext": Kernels, "editable_wheel": Checkout, "sdist": Source},
    ext_modules=[cpu],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
