"""Adan and the optimizers it is compared with: reference, foreach and fused paths behind one interface.

The names are in public.py, which is imported when the first of them is used: that needs torch, which takes
seconds, and `python -m adan_optim --help` or `adan_optim.text` do not.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .public import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        import importlib

        if name == "__version__":
            from importlib.metadata import version

            return version("adan-optim")
        if name == "__all__" or not name.startswith("__"):  # Python asks modules for other names of this kind
            public = importlib.import_module(".public", __name__)
            globals().update({each: getattr(public, each) for each in ("__all__", *public.__all__)})
        if name in globals():
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
