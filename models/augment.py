"""Random views of images for contrastive learning, at training and at purification: resized crop, mirror, colour.

The list is that of Mao et al., ICCV 2021, Sec. 3.2 (SimCLR's, Chen et al. 2020, without blur), with the ranges of the authors'
public code: torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter(0.8, 0.8, 0.8, 0.2) and RandomGrayscale(0.2).

A view is decided by `DRAWS` uniform numbers, so who draws them decides what is random: the training from torch's global
generator, a purifier from each image's seed. It is differentiable in the image, and on a CPU the same bits whatever the
size of the batch. Where we differ from torchvision:
- The colour changes come in one order, not in a random one; contrast before the others mixes pixels of one image only.
- Hue turns the chroma plane of YIQ instead of HSV's hexagon: the same up to saturation, linear, and so its gradient is smooth.
  Saturation, hue and grayscale (saturation 0) are then one 3x3 matrix an image.
- A crop that doesn't fit is cut to the image instead of being drawn anew; its sides are not rounded to pixels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.rounding import by_rows

DRAWS = 10  # uniform numbers that decide one view

AREA = (0.08, 1.0)  # share of the image that a crop covers
RATIO = (3 / 4, 4 / 3)  # its width by its height
FLIP = 0.5
BRIGHTNESS = CONTRAST = SATURATION = (0.2, 1.8)
HUE = (-0.2, 0.2)  # turns
GRAY = 0.2

LUMA = torch.tensor([0.299, 0.587, 0.114])
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_GRAY = LUMA.expand(3, 3)  # keeps the luma alone
# A quarter turn of the chroma plane: (I, Q) -> (-Q, I).
_TURN = torch.linalg.inv(_YIQ) @ torch.tensor([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ _YIQ


@dataclass(frozen=True)
class Views:
    """What happens to each of N images; all tensors (N,), but `colour` (N, 9), the rows of a matrix that acts on RGB.

    left, top, width, height: the crop, as shares of the image. brightness, contrast: factors.
    """

    left: Tensor
    top: Tensor
    width: Tensor
    height: Tensor
    mirrored: Tensor
    brightness: Tensor
    contrast: Tensor
    colour: Tensor

    @classmethod
    def drawn(cls, uniform: Tensor) -> "Views":
        """The views that uniform numbers decide. uniform: (N, DRAWS) in [0, 1)."""
        # In blocks of rows: cosine and square root may round the end of a vector differently.
        values = by_rows(_parameters, uniform)
        left, top, width, height, mirrored, brightness, contrast = values[:, :7].unbind(1)
        return cls(left, top, width, height, mirrored, brightness, contrast, colour=values[:, 7:])

    def of(self, x: Tensor) -> Tensor:
        """Image i's view i, differentiable in x. (N, 3, H, W) in [0, 1] -> the same."""
        assert x.shape[1] == 3, f"views are made for RGB images; got {x.shape[1]} channels"
        x = self._cropped(x)
        x = (_image(self.brightness) * x).clamp(0, 1)
        contrast = _image(self.contrast)
        x = (contrast * x + (1 - contrast) * _mean_luma(x)).clamp(0, 1)
        return _recoloured(x, self.colour).clamp(0, 1)

    def _cropped(self, x: Tensor) -> Tensor:
        """Cut and mirrored, resized back by bilinear interpolation."""
        height, width = x.shape[-2:]
        columns = (torch.arange(width, device=x.device) + 0.5) / width
        columns = torch.where(self.mirrored[:, None] > 0, 1 - columns, columns)  # (N, W)
        rows = (torch.arange(height, device=x.device) + 0.5) / height
        across = self.left[:, None] + self.width[:, None] * columns  # (N, W), as shares of the image
        down = self.top[:, None] + self.height[:, None] * rows  # (N, H)
        shape = (len(x), height, width)
        grid = torch.stack([across[:, None, :].expand(shape), down[:, :, None].expand(shape)], dim=-1)
        return F.grid_sample(x, 2 * grid - 1, padding_mode="border", align_corners=False)


def _parameters(uniform: Tensor) -> Tensor:
    """The fields of `Views` side by side. (N, DRAWS) in [0, 1) -> (N, 16)."""
    area, shape, left, top, flip, brightness, contrast, saturation, hue, gray = uniform.unbind(1)
    area = _between(AREA, area)
    ratio = _between((math.log(RATIO[0]), math.log(RATIO[1])), shape).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    saturation = torch.where(gray < GRAY, 0.0, _between(SATURATION, saturation))
    return torch.cat(
        [
            torch.stack([left * (1 - width), top * (1 - height), width, height, (flip < FLIP).float()], dim=1),
            torch.stack([_between(BRIGHTNESS, brightness), _between(CONTRAST, contrast)], dim=1),
            colour_matrix(saturation, _between(HUE, hue)),
        ],
        dim=1,
    )


def colour_matrix(saturation: Tensor, hue: Tensor) -> Tensor:
    """Chroma scaled by `saturation` and turned by `hue` (in turns), luma kept. (N,), (N,) -> (N, 9), rows of (3, 3)."""
    gray, turn = _GRAY.to(hue).flatten(), _TURN.to(hue).flatten()
    chroma = torch.eye(3).to(hue).flatten() - gray
    angle = 2 * math.pi * hue[:, None]
    matrix: Tensor = gray + saturation[:, None] * (angle.cos() * chroma + angle.sin() * turn)
    return matrix


def _recoloured(x: Tensor, colour: Tensor) -> Tensor:
    # Three products and two sums of whole planes: a matrix product would round by the number of rows.
    matrix = colour.view(-1, 3, 3, 1, 1)
    red, green, blue = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    recoloured: Tensor = matrix[:, :, 0] * red + matrix[:, :, 1] * green + matrix[:, :, 2] * blue
    return recoloured


def _mean_luma(x: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, 1, 1)."""
    red, green, blue = LUMA.tolist()
    luma = red * x[:, 0] + green * x[:, 1] + blue * x[:, 2]
    return _image(by_rows(lambda rows: rows.mean(dim=1), luma))


def _between(bounds: tuple[float, float], uniform: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * uniform


def _image(values: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)
