"""Orthogonalizes matrices by matrix products alone: U S V^T -> about U V^T, without a singular value decomposition.

    x <- x / |x|                                          now no singular value is above 1
    x <- a x + b (x x^T) x + c (x x^T)^2 x                a few times (Newton-Schulz)

Each iteration maps every singular value s to a s + b s^3 + c s^5 and leaves the directions as they are. With the same
coefficients in each (Jordan et al. 2024), small values grow fast, and all end between 0.7 and 1.2. Polar Express (Amsel
et al. 2025) has other coefficients in each iteration, those that bring the worst value nearest to 1. Products of
matrices are robust: bfloat16 will do.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Iteration(NamedTuple):
    """A way to orthogonalize: (a, b, c) of each iteration, and a factor on the norm |x| that x is first divided by."""

    coefficients: tuple[tuple[float, float, float], ...]
    safety: float = 1.0


SAFETY = 1.01  # Polar Express: room for the rounding of bfloat16, as a value above 1 would diverge
PUBLISHED = (  # arXiv 2505.16932, algorithm 1, the first five
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
JORDAN = Iteration(((3.4445, -4.7750, 2.0315),) * 5)
POLAR_EXPRESS = Iteration(tuple((a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in PUBLISHED), SAFETY)
ITERATIONS = {"jordan": JORDAN, "polar-express": POLAR_EXPRESS}


def orthogonalize(matrices: Tensor, iteration: Iteration = JORDAN) -> Tensor:
    """Sets all singular values near 1: each matrix U S V^T of (..., rows, columns) -> about U V^T."""
    x: Tensor = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT  # x x^T is the smaller square
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) * iteration.safety + 1e-7)
    x = x.flatten(0, -3) if x.ndim > 2 else x[None]
    for a, b, c in iteration.coefficients:  # a product and the sum with it are one operation
        square = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x if matrices.shape[-2] <= matrices.shape[-1] else x.mT).view(matrices.shape)
