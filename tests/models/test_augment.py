"""Random views: what each parameter does, that gradients pass, and that nobody sees a neighbour."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from models.augment import DRAWS, GRAY, LUMA, Views, colour_matrix


def images(n: int = 6, size: int = 16) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(5))


def draws(n: int = 6) -> Tensor:
    return torch.rand(n, DRAWS, generator=torch.Generator().manual_seed(6))


def nothing(n: int = 6) -> Views:
    """The view that changes nothing."""
    zero, one = torch.zeros(n), torch.ones(n)
    return Views(zero, zero, one, one, zero, one, one, colour_matrix(one, zero))


def test_identity_parameters_give_the_identity() -> None:
    assert torch.allclose(nothing().of(images()), images(), atol=1e-6)


def test_a_mirrored_view_is_the_flipped_image() -> None:
    assert torch.allclose(replace(nothing(), mirrored=torch.ones(6)).of(images()), images().flip(-1), atol=1e-6)


def test_a_crop_of_the_left_upper_quarter_is_enlarged() -> None:
    half, x = torch.full((6,), 0.5), images()
    found = replace(nothing(), width=half, height=half).of(x)
    # Output pixel (1, 1) lies at input (0.25, 0.25): bilinear weights 9/16, 3/16, 3/16, 1/16.
    corner = 9 / 16 * x[..., 0, 0] + 3 / 16 * (x[..., 0, 1] + x[..., 1, 0]) + 1 / 16 * x[..., 1, 1]
    assert torch.allclose(found[..., 1, 1], corner, atol=1e-6)


def test_brightness_scales_and_clips() -> None:
    found = replace(nothing(), brightness=torch.full((6,), 1.5)).of(images())
    assert torch.allclose(found, (1.5 * images()).clamp(max=1), atol=1e-6)


def test_contrast_shrinks_towards_the_mean_luma() -> None:
    x = images()
    mean = (LUMA.view(3, 1, 1) * x).sum(1).mean((1, 2)).view(-1, 1, 1, 1)
    found = replace(nothing(), contrast=torch.full((6,), 0.5)).of(x)
    assert torch.allclose(found, 0.5 * x + 0.5 * mean, atol=1e-6)


def test_without_saturation_an_image_is_gray_whatever_its_hue() -> None:
    zero, turned = torch.zeros(6), torch.linspace(-0.2, 0.2, 6)
    found = replace(nothing(), colour=colour_matrix(zero, turned)).of(images())
    luma = (LUMA.view(3, 1, 1) * images()).sum(1, keepdim=True)
    assert torch.allclose(found, luma.expand(-1, 3, -1, -1), atol=1e-6)


def test_hue_keeps_the_luma_and_a_full_turn_comes_back() -> None:
    third, whole = colour_matrix(torch.ones(2), torch.tensor([1 / 3, 1.0])).view(2, 3, 3)
    assert torch.allclose(LUMA @ third, LUMA, atol=1e-4)  # YIQ's printed matrix has four digits
    assert torch.allclose(whole, torch.eye(3), atol=1e-4)
    assert torch.allclose(third @ third @ third, torch.eye(3), atol=1e-4)


def test_drawn_parameters_are_in_their_bounds() -> None:
    views = Views.drawn(torch.rand(2000, DRAWS, generator=torch.Generator().manual_seed(7)))
    for start, side in ((views.left, views.width), (views.top, views.height)):
        assert start.min() >= 0
        assert (start + side).max() <= 1 + 1e-6
    assert (views.width * views.height).min() > 0.07
    gray = (views.colour.view(-1, 3, 3) - LUMA).abs().amax((1, 2)) < 1e-6
    assert gray.float().mean().item() == pytest.approx(GRAY, abs=0.03)
    assert views.mirrored.mean().item() == pytest.approx(0.5, abs=0.04)


def test_views_stay_in_range_and_differ() -> None:
    found = Views.drawn(draws()).of(images())
    assert found.min() >= 0
    assert found.max() <= 1
    twice = Views.drawn(draws()).of(images(1).expand(6, -1, -1, -1))
    assert (twice[1:] - twice[0]).abs().amax((1, 2, 3)).min() > 0.05


def test_the_gradient_is_that_of_the_view() -> None:
    views = Views.drawn(draws(2))
    exact = Views(*(getattr(views, field.name).double() for field in fields(views)))
    x = 0.3 + 0.4 * images(2, size=4).double()  # away from the clips, where the view has a kink
    assert gradcheck(exact.of, x.requires_grad_(), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_image_gets_the_same_bits_whatever_the_size_of_its_batch(layout: torch.memory_format) -> None:
    def seen(n: int) -> tuple[Tensor, Tensor]:
        x = images(70)[:n].contiguous(memory_format=layout).requires_grad_()
        view = Views.drawn(draws(70)[:n]).of(x)
        return view, torch.autograd.grad(view.square().sum(), x)[0]

    view, gradient = seen(70)
    for n in (1, 2, 5, 33):
        assert torch.equal(seen(n)[0], view[:n])
        assert torch.equal(seen(n)[1], gradient[:n])
