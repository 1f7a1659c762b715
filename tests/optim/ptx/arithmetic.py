"""What the instructions compute, and in which types.

Arithmetic is numpy's, which rounds as IEEE 754 and so as a GPU; NaNs that a float32 operation gives are
0x7fffffff as on a GPU.
"""

import ctypes
import ctypes.util
from collections.abc import Sequence

import numpy as np

from .program import SIZES

RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
FLOATS = {"f32": np.float32, "f64": np.float64}
TYPES = {
    name: FLOATS.get(name) or (SIGNED if name[0] == "s" else RAW)[size]
    for name, size in SIZES.items()
    if name != "pred"
} | {"pred": np.bool_}

_fma = ctypes.CDLL(ctypes.util.find_library("m")).fma
_fma.restype, _fma.argtypes = ctypes.c_double, [ctypes.c_double] * 3


class Fault(Exception):
    """Something that a GPU would leave undefined, or an instruction that is not known here."""


def _canonical(x: np.ndarray) -> np.ndarray:
    """With the NaNs of a GPU's arithmetic."""
    nan = np.isnan(x)
    if nan.any():
        raw = x.view(RAW[x.itemsize])
        raw[nan] = 0x7FFFFFFF if x.itemsize == 4 else 0xFFF8000000000000
    return x


def _rounded(modifiers: Sequence[str], x: np.ndarray) -> np.ndarray:
    """A result of float arithmetic; Fault unless it is rounded to nearest and keeps subnormal numbers."""
    if modifiers[-1] == "f32" and modifiers[:-1] != ["rn"]:
        raise Fault(f"float32 arithmetic that is not of IEEE 754: {'.'.join(modifiers)}")
    return _canonical(x)


def _narrow(to: str, how: Sequence[str], x: np.ndarray) -> np.ndarray:
    """Float32 numbers as 16-bit ones: their bits. To nearest, ties to even; NaN is 0x7fff."""
    if how != ["rn"]:
        raise Fault(f"cvt.{'.'.join(how)}.{to}")
    if to == "f16":
        half = x.astype(np.float16).view(np.uint16)
    else:
        raw = x.view(np.uint32)
        half = ((raw + 0x7FFF + (raw >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), half)


COMPARISONS = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal}
COMPARISONS |= {"gt": np.greater, "ge": np.greater_equal}


class Arithmetic:
    """Instructions that compute a register from values: (modifiers, *values) -> values."""

    @staticmethod
    def add_(modifiers, x, y):
        return _rounded(modifiers, x + y) if x.dtype.kind == "f" else x + y

    @staticmethod
    def sub_(modifiers, x, y):
        return _rounded(modifiers, x - y) if x.dtype.kind == "f" else x - y

    @staticmethod
    def mul_(modifiers, x, y):
        if x.dtype.kind == "f":
            return _rounded(modifiers, x * y)
        if modifiers[0] == "wide":
            wide = {2: np.int32, 4: np.int64} if x.dtype.kind == "i" else {2: np.uint32, 4: np.uint64}
            return x.astype(wide[x.itemsize]) * y.astype(wide[x.itemsize])
        if modifiers[0] != "lo":
            raise Fault(f"mul.{'.'.join(modifiers)}")
        return x * y

    @staticmethod
    def mad_(modifiers, x, y, z):
        return Arithmetic.mul_(modifiers, x, y) + z

    @staticmethod
    def fma_(modifiers, x, y, z):
        if modifiers[-1] != "f64":
            raise Fault("contraction: fma in float32")
        return _canonical(np.array([_fma(*each) for each in zip(x, y, z, strict=True)]))

    @staticmethod
    def div_(modifiers, x, y):
        if x.dtype.kind == "f":
            return _rounded(modifiers, x / y)
        if (y == 0).any():
            raise Fault("an integer is divided by zero")
        if x.dtype.kind == "i":  # towards zero
            sign = np.sign(x) * np.sign(y)
            return (sign * (np.abs(x) // np.abs(y))).astype(x.dtype)
        return x // y

    @staticmethod
    def rem_(modifiers, x, y):
        return x - Arithmetic.div_(modifiers, x, y) * y

    @staticmethod
    def sqrt_(modifiers, x):
        return _rounded(modifiers, np.sqrt(x))

    @staticmethod
    def rcp_(modifiers, x):
        y = 1 / x
        if "approx" in modifiers:  # of the upper word, some 20 bits
            y = (y.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
        return _canonical(y)

    @staticmethod
    def neg_(modifiers, x):
        if x.dtype.kind == "f":
            return x.view(RAW[x.itemsize]) ^ RAW[x.itemsize](1 << (8 * x.itemsize - 1))
        return -x

    @staticmethod
    def abs_(modifiers, x):
        return x.view(RAW[x.itemsize]) & RAW[x.itemsize]((1 << (8 * x.itemsize - 1)) - 1)

    @staticmethod
    def min_(modifiers, x, y):
        return np.minimum(x, y)

    @staticmethod
    def max_(modifiers, x, y):
        if x.dtype.kind == "f":
            if modifiers[0] != "NaN":
                raise Fault("a maximum that drops NaN")
            return _canonical(np.maximum(x, y))
        return np.maximum(x, y)

    @staticmethod
    def and_(modifiers, x, y):
        return x & y

    @staticmethod
    def or_(modifiers, x, y):
        return x | y

    @staticmethod
    def xor_(modifiers, x, y):
        return x ^ y

    @staticmethod
    def not_(modifiers, x):
        return ~x

    @staticmethod
    def shl_(modifiers, x, by):
        bits = 8 * x.itemsize
        return np.where(by >= bits, 0, x << np.minimum(by, bits - 1).astype(x.dtype)).astype(x.dtype)

    @staticmethod
    def shr_(modifiers, x, by):
        bits = 8 * x.itemsize
        shifted = x >> np.minimum(by, bits - 1).astype(x.dtype)
        return shifted if x.dtype.kind == "i" else np.where(by >= bits, 0, shifted).astype(x.dtype)

    @staticmethod
    def bfe_(modifiers, x, at, length):
        return (x >> at) & ((x.dtype.type(1) << length) - x.dtype.type(1))

    @staticmethod
    def prmt_(modifiers, x, y, selector):
        parts = np.stack([x, y], axis=1).view(np.uint8)
        out = np.zeros((len(x), 4), np.uint8)
        for i in range(4):
            choice = (selector >> np.uint32(4 * i)) & np.uint32(15)
            byte = parts[np.arange(len(x)), (choice & 7).astype(np.int64)]
            out[:, i] = np.where(choice & 8, np.where(byte & 128, 255, 0), byte)
        return out.view(np.uint32)[:, 0]

    @staticmethod
    def mov_(modifiers, x):
        return x

    @staticmethod
    def cvta_(modifiers, x):
        return x

    @staticmethod
    def selp_(modifiers, x, y, condition):
        return np.where(condition, x, y)

    @staticmethod
    def setp_(modifiers, x, y):
        compare, *_, type_ = modifiers
        if type_[0] != "f":
            return COMPARISONS[compare](x, y)
        unordered = np.isnan(x) | np.isnan(y)
        if compare in ("nan", "num"):
            return unordered if compare == "nan" else ~unordered
        if compare.endswith("u"):
            return COMPARISONS[compare[:-1]](x, y) | unordered
        return COMPARISONS[compare](x, y) & ~unordered

    @staticmethod
    def cvt_(modifiers, x):
        *how, to, source = modifiers
        if to in ("bf16", "f16"):
            return _narrow(to, how, x)
        if source == "f16":
            return _canonical(x.view(np.float16).astype(TYPES[to]))
        if to[0] == "f" and source[0] == "f":
            if "rzi" in how:
                return np.trunc(x)
            return _canonical(x.astype(TYPES[to]))
        if to[0] == "f":
            return x.astype(TYPES[to])
        if source[0] == "f":  # towards zero; what does not fit becomes the nearest that does
            if "rzi" not in how:
                raise Fault(f"cvt.{'.'.join(modifiers)}")
            info = np.iinfo(TYPES[to])
            whole = np.nan_to_num(np.trunc(x.astype(np.float64)), nan=0.0)
            return np.clip(whole, info.min, info.max).astype(TYPES[to])
        return x.astype(TYPES[to])
