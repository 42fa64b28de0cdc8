import torch

from training.augment import Cropper, mirrored, noisy, zoomed


def test_no_padding_and_no_flip_returns_the_images():
    images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    x = Cropper(images, 0, flip=False)(torch.tensor([2, 0]))
    assert torch.equal((x * 255).round().to(torch.uint8), images[[2, 0]].permute(0, 3, 1, 2))


def test_every_crop_is_a_window_of_the_padded_image():
    images = torch.arange(1, 17, dtype=torch.uint8).view(1, 4, 4, 1)
    padded = torch.nn.functional.pad(images[0, :, :, 0], (1, 1, 1, 1))
    windows = {tuple(padded[t : t + 4, l : l + 4].flatten().tolist()) for t in range(3) for l in range(3)}  # noqa: E741
    torch.manual_seed(0)
    crops = (Cropper(images, 1, flip=False)(torch.zeros(64, dtype=torch.long)) * 255).round().long()
    assert {tuple(crop.flatten().tolist()) for crop in crops} == windows


def test_mirroring_is_drawn_for_each_image():
    columns = torch.arange(4).expand(200, 4)
    torch.manual_seed(0)
    flipped = (mirrored(columns, 0.5)[:, 0] == 3).float().mean()
    assert 0.3 < flipped < 0.7
    assert torch.equal(mirrored(columns, 0.0), columns)


def test_a_zoom_of_the_whole_image_is_the_image():
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(zoomed(x, (8, 8), 0.0), x)
    assert torch.equal(zoomed(x, (8, 8), 1.0), x.flip(-1))


def test_a_zoom_shows_pixels_of_a_square_of_that_side():
    x = torch.arange(64.0).view(1, 1, 8, 8)
    torch.manual_seed(1)
    seen = zoomed(x.expand(50, 1, 8, 8), (4, 4), 0.0)
    assert all(len(image.unique()) == 16 for image in seen)
    assert all(image.max() - image.min() == 3 * 8 + 3 for image in seen)


def test_noise_is_clipped_and_has_its_sigma():
    torch.manual_seed(0)
    x = noisy(torch.full((1, 1, 200, 200), 0.5), 0.1)
    assert abs(float(x.std()) - 0.1) < 0.005
    assert noisy(torch.rand(1, 1, 50, 50), 1.0).min() >= 0
