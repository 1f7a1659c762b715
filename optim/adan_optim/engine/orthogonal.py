"""The Newton-Schulz iteration, which brings the singular values of matrices near to one by products alone.

An iteration with the coefficients (a, b, c) takes a matrix X = U S V^T to (a I + b R + c R^2) X, R = X X^T,
that is to U p(S) V^T with the odd polynomial p(s) = a s + b s^3 + c s^5.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Triple = tuple[float, float, float]

# So many iterations are made on R alone, which is square, before X is multiplied. Their product Q multiplies
# small singular values by up to a^RUN, and what Q is rounded by is relative to that: in bfloat16, three would
# take large singular values out of the interval in which the iteration converges.
RUN = {torch.bfloat16: 2, torch.float32: 3, torch.float64: 3}
# On a matrix m x r m, k iterations take k (4 r + 2) m^3 operations on X, and (4 r + 8 k - 6) m^3 on R.
OBLONG = 1.5


def fast_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which the device of x, of float32 or float64, multiplies matrices fastest.

    float64 stays what it is; float32 becomes bfloat16 where the processor has instructions for it.
    """
    if x.dtype == torch.float64:
        return x.dtype
    if x.is_cuda:
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        ask = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)  # from torch 2.6 on; bool() is False
        has = x.device.type == "cpu" and ask()
    return torch.bfloat16 if has else x.dtype


def normalized(x: Tensor, margin: float = 1.0) -> Tensor:
    """Return matrices [..., m, n] over margin times their Frobenius norms; zeros stay zeros."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)  # added up in float32 at least
    normed: Tensor = x / (margin * norm).clamp(min=torch.finfo(x.dtype).tiny)
    return normed


def newton_schulz(x: Tensor, coefficients: Sequence[Triple]) -> Tensor:
    """Return matrices [..., m, n] after the iterations, whose products are those of the definition."""
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


def newton_schulz_fast(x: Tensor, coefficients: Sequence[Triple]) -> Tensor:
    """Return the same for a stack [count, m, n], with fewer operations where matrices are oblong.

    Polynomials of R commute with R, so R, P = a I + b R + c R^2 of an iteration and the product Q of all P so
    far are known without X: R becomes P R P. Then X is multiplied by Q.
    """
    rows, columns = x.shape[-2:]
    if rows > columns:  # products of rows are faster than those of columns
        return newton_schulz_fast(x.mT.contiguous(), coefficients).mT.contiguous()
    run = RUN[x.dtype] if columns > OBLONG * rows else 1
    for start in range(0, len(coefficients), run):
        gram, q = x @ x.mT, None
        part = coefficients[start : start + run]
        for i, (a, b, c) in enumerate(part):
            p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            p.diagonal(dim1=-2, dim2=-1).add_(a)
            q = p if q is None else p @ q
            if i + 1 < len(part):
                gram = p @ gram @ p
        assert q is not None
        x = q @ x
    return x
