"""`python -m optim` prints what works on this machine."""

from . import available

available()
