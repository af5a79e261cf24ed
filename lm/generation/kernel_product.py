"""The product of some vectors with a weight by the kernel of kernels.py: for int8, and for bfloat16 on a processor that
has no instructions for it, where torch would convert the weight again for each vector.

Of more vectors than MOST_ROWS, the weight is converted to float32 once, for torch's product.
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
            y = padded @ self.weight.float().T
            return (y if self.scales is None else y.mul_(self.scales)).to(x.dtype)
        y = padded.new_empty(*x.shape[:-1], outputs)
        job = self.program.jobs[0]
        job[self.kernels.X // 8], job[self.kernels.Y // 8] = padded.data_ptr(), y.data_ptr()
        job[self.kernels.ROWS // 8] = rows
        self.program.run()
        return y.to(x.dtype)
