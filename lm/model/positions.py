"""Position encodings. The one here is rotary (RoPE): attention sees how far apart two tokens are.

    (x_2k, x_2k+1) is rotated by the angle  position / theta^(2k / d_k)

Of the two positions, the dot product of a rotated query and a rotated key depends on the distance alone.
"""

import math

import torch
from torch import Tensor, nn


class RotaryPositionalEmbedding(nn.Module):
    """Rotates each pair of adjacent features by an angle that grows with the position (Su et al. 2021).

    The pairs are interleaved, (0, 1), (2, 3) and so on, as in the paper; Hugging Face's Llama pairs i with i + d_k / 2.
    The tables of cosines and sines follow from theta, d_k and max_seq_len, so no checkpoint holds them.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, theta: float, d_k: int, max_seq_len: int, device: torch.device | str | None = None):
        super().__init__()
        if d_k % 2:
            raise ValueError(f"d_k is {d_k}: rotary embeddings rotate pairs of features, so it must be even")
        if not 0 < theta < math.inf:
            raise ValueError(f"theta is {theta}; the base of the wavelengths must be a number above 0")
        self.theta = theta
        cos, sin = rotations(theta, d_k, max_seq_len, torch.device(device or torch.get_default_device()))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor, token_positions: Tensor) -> Tensor:
        """Rotates each vector of x, (..., seq, d_k), to the same shape.

        token_positions: (seq,), the same for all of x; or x.shape[:-1]; or that without the heads, which then share
        their positions: x (batch, heads, seq, d_k) with token_positions (batch, seq). Sizes of 1 are broadcast.
        ValueError for another number of dimensions.
        """
        if token_positions.ndim not in (1, x.ndim - 2, x.ndim - 1):
            raise ValueError(f"token_positions are {tuple(token_positions.shape)}, which does not fit {tuple(x.shape)}")
        if 1 < token_positions.ndim == x.ndim - 2:
            token_positions = token_positions.unsqueeze(-2)
        cos, sin = self.cos[token_positions], self.sin[token_positions]
        even, odd = x[..., 0::2], x[..., 1::2]
        rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
        return rotated.flatten(-2).to(x.dtype)

    def extra_repr(self) -> str:
        max_seq_len, pairs = self.cos.shape
        return f"theta={self.theta}, d_k={2 * pairs}, max_seq_len={max_seq_len}"


def rotations(theta: float, d_k: int, max_seq_len: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the cosine and the sine of each angle, float32, both (max_seq_len, d_k / 2); without memory on "meta"."""
    if device.type == "meta":
        cos, sin = torch.empty(2, max_seq_len, d_k // 2, device=device)
        return cos, sin
    # On the CPU, so that every device has the same tables. In float64, because at position 100,000 a float32 angle is
    # off by 0.004.
    frequencies = theta ** (-torch.arange(0, d_k, 2, dtype=torch.float64, device="cpu") / d_k)
    positions = torch.arange(max_seq_len, dtype=torch.float64, device="cpu")
    angles = torch.outer(positions, frequencies)
    return angles.cos().float().to(device), angles.sin().float().to(device)
