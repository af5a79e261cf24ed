"""The product of some vectors with a weight by the kernel of kernels.py: for int8, and for bfloat16 where oneDNN does
not multiply it, and torch would convert the weight again for each vector.

For more than MOST_ROWS vectors, the weight is converted to float32 once a call, for torch's product.
"""

import torch
from torch import Tensor

from lm.generation.program import Program

MOST_ROWS = {torch.int8: 32, torch.bfloat16: 8}


class KernelProduct:
    """The product with a weight in int8 or bfloat16: (..., in_features) -> (..., out_features), of the dtype of x.

    weight: (out_features, in_features and zeros up to a multiple of 16). scales: (out_features,), float32, for int8.
    """

    def __init__(self, weight: Tensor, scales: Tensor | None = None):
        from lm.generation import kernels

        self.kernels, self.weight, self.scales = kernels, weight, scales
        outputs, inputs = weight.shape
        job: dict[int, int | float | Tensor] = {kernels.WEIGHTS: weight, kernels.SIZE: weight.element_size()}
        job |= {kernels.INPUTS: inputs, kernels.OUTPUTS: outputs, kernels.ROWS: MOST_ROWS[weight.dtype]}
        if scales is not None:
            job[kernels.SCALES] = scales
        self.program = Program([{kernels.KIND: kernels.PRODUCT, **job}])

    def __call__(self, x: Tensor) -> Tensor:
        outputs, inputs = self.weight.shape
        padded = torch.constant_pad_nd(x.float(), (0, inputs - x.shape[-1])).contiguous()
        rows = padded.numel() // inputs
        if rows > MOST_ROWS[self.weight.dtype]:
            return self.multiply_many(padded).to(x.dtype)
        y = padded.new_empty(*x.shape[:-1], outputs)
        job = self.program.jobs[0]
        job[self.kernels.X // 8], job[self.kernels.Y // 8] = padded.data_ptr(), y.data_ptr()
        job[self.kernels.ROWS // 8] = rows
        self.program.run()
        return y.to(x.dtype)

    def multiply_many(self, x: Tensor) -> Tensor:
        """Computes the same by torch; for int8, x is rounded to 16 bits as the kernel rounds it."""
        if self.scales is None:
            return x @ self.weight.float().T
        from lm.generation.whole_numbers import LARGEST, SMALLEST_SCALED

        largest = x.abs().amax(dim=-1, keepdim=True)
        numbers = x * torch.where(largest < SMALLEST_SCALED, 0, torch.full_like(largest, LARGEST) / largest)
        return (numbers.round_() @ self.weight.float().T).mul_(self.scales).mul_(largest / LARGEST)
