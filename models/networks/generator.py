"""What every generator here is: a network from images to images of the same size."""

import torch
from torch import Tensor, nn

from models.fused import runs
from models.precision import DTYPES, Precision


class Generator(nn.Module):
    """Images in, images out; a subclass only says how, in `translate`.

    reach: an output pixel depends on input pixels at most so far away. stride: a tile whose corner lies on a multiple of it is
    computed as within the whole image, but for what it sees beyond its border. fused: every convolution is, see models/fused.py.
    """

    reach: int
    stride: int = 1
    fused: bool = False
    precision: Precision = "fp32"

    def translate(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W) in [0, 1], channels last -> (N, C, H, W), anything."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W) in [0, 1] -> (N, C, H, W), in [0, 1] but for training, where a clamped pixel would not learn."""
        # CPU convolutions round one image alone otherwise than two or more, see models/classifiers/base.py.
        if len(x) == 1 and not self.training and not (self.fused and runs(x)):
            return self.forward(x.expand(2, -1, -1, -1))[:1]
        inside = x if self.precision == "fp32" else x.to(DTYPES[self.precision])
        y = self.translate(inside.contiguous(memory_format=torch.channels_last)).to(x.dtype)
        return y if self.training else y.clamp(0, 1)
