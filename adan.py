"""Drop-in for the official package: `from adan import Adan`."""

from optim import Adan

__all__ = ["Adan"]
