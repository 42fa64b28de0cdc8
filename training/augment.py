"""Random augmentations of whole batches, drawn for each image, from torch's global generator (see training/train.py)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from training.data import to_float


class Cropper:
    """Random windows of zero-padded images, mirrored at random; one gather a batch.

    images: (N, H, W, C) uint8.
    """

    def __init__(self, images: Tensor, padding: int, flip: bool) -> None:
        self.height, self.width = images.shape[1:3]
        self.padding, self.flip = padding, flip
        self.padded = F.pad(images, (0, 0, padding, padding, padding, padding))

    def __call__(self, indices: Tensor) -> Tensor:
        """(B,) -> (B, C, H, W) float32 in [0, 1]."""
        count = len(indices)
        if self.padding == 0 and not self.flip:
            return to_float(self.padded[indices])
        top = torch.randint(0, 2 * self.padding + 1, (count, 1))
        left = torch.randint(0, 2 * self.padding + 1, (count, 1))
        columns = mirrored(left + torch.arange(self.width), 0.5 if self.flip else 0.0)
        rows = top + torch.arange(self.height)
        return to_float(self.padded[indices[:, None, None], rows[:, :, None], columns[:, None, :]])


def mirrored(columns: Tensor, chance: float) -> Tensor:
    """Reverse each image's column indices with the given chance. (B, W) -> (B, W)."""
    return torch.where(torch.rand(len(columns), 1) < chance, columns.flip(1), columns)


def zoomed(x: Tensor, sides: tuple[int, int], flip: float) -> Tensor:
    """Cut a random square of a random side from `sides` (inclusive), resize it back by nearest neighbour, maybe mirror.

    (B, C, S, S) in [0, 1] -> the same. One gather a batch.
    """
    count, size = len(x), x.shape[-1]
    if sides == (size, size) and flip == 0:
        return x
    side = torch.randint(sides[0], sides[1] + 1, (count, 1))
    top = (torch.rand(count, 1) * (size + 1 - side)).long()
    left = (torch.rand(count, 1) * (size + 1 - side)).long()
    grid = torch.arange(size) * side // size  # (B, S)
    columns, rows = mirrored(left + grid, flip), top + grid
    pixels = x.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return pixels.permute(0, 3, 1, 2)


def noisy(x: Tensor, sigma: float) -> Tensor:
    """Additive Gaussian noise, clipped to [0, 1] (SOAP Sec. 3.4: "corrupted with additive Gaussian noise (and clipped)")."""
    return (x + sigma * torch.randn_like(x)).clamp_(0, 1) if sigma else x
