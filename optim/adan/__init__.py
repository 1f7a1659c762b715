"""Drop-in for the official package: `from adan import Adan`."""

from adan_optim import Adan
from adan_optim.interop.official import warn_if_installed

__all__ = ["Adan"]

warn_if_installed("adan")
