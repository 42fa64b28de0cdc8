"""What an ascent does, step by step and by hand; test_cross_checks.py holds APGD to its authors' code."""

import pytest
import torch

from training.attacks import AttackSettings
from training.attacks.ascent import AutoAscent, ascend, begin, diverse, drawn_start, smoothed, windows


def settings(**fields):
    start = {"name": "a", "mode": "static", "epsilon": 0.1, "step_size": 0.04, "steps": 1}
    return AttackSettings.model_validate(start | fields)


def pixels(*values):
    """One image of so many pixels."""
    return torch.tensor(values).view(1, 1, 1, -1)


def along(*slopes):
    """A loss that rises by these slopes, one for each pixel."""
    return lambda x: (x * pixels(*slopes)).sum(dim=(1, 2, 3))


def in_turn(*gradients):
    """A loss whose gradient is another one at each look."""
    losses = iter([along(*gradient) for gradient in gradients])
    return lambda x: next(losses)(x)


def rippled(x):
    """A loss with many peaks, each image's its own affair. (N, C, H, W) -> (N,)"""
    place = torch.arange(x[0].numel(), dtype=x.dtype).view(x.shape[1:])
    return (torch.sin(40 * x + place) * (1 + place % 3)).sum(dim=(1, 2, 3))


def images(n, seed=0, size=6):
    """Some pixels are exactly 0 or 1."""
    drawn = torch.rand(n, 2, size, size, generator=torch.Generator().manual_seed(seed))
    return (1.4 * drawn - 0.2).clamp(0, 1)


def length(delta, norm):
    return delta.flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)


def everywhere(image, *values):
    return torch.allclose(image, pixels(*values), atol=1e-6)


def test_a_step_goes_by_the_sign_in_linf_and_by_the_direction_in_l2():
    assert everywhere(ascend(along(3, -4), pixels(0.5, 0.5), settings()), 0.54, 0.46)
    assert everywhere(ascend(along(3, -4), pixels(0.5, 0.5), settings(norm="l2")), 0.524, 0.468)


def test_steps_beyond_the_ball_are_brought_back_in_their_norm():
    assert everywhere(ascend(along(3, -4), pixels(0.5, 0.5), settings(steps=5)), 0.6, 0.4)
    assert everywhere(ascend(along(3, -4), pixels(0.5, 0.5), settings(steps=5, norm="l2")), 0.56, 0.42)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_faint_gradient_leads_as_far_as_a_strong_one(norm):
    x = pixels(0.5, 0.5)
    strong, faint = (ascend(along(3 * by, -4 * by), x, settings(norm=norm)) for by in (1, 1e-25))
    assert torch.allclose(strong, faint)


def test_momentum_adds_gradients_of_length_one():
    loss = in_turn((10, 1), (-20, 20))  # in l_1: (10/11, 1/11), then (-1/2, 1/2); together the first is above 0
    assert everywhere(ascend(loss, pixels(0.5, 0.5), settings(steps=2, momentum=1.0)), 0.58, 0.58)
    loss = in_turn((10, 1), (-20, 20))
    assert everywhere(ascend(loss, pixels(0.5, 0.5), settings(steps=2, momentum=0.5)), 0.5, 0.58)


def test_a_spike_is_smoothed_into_a_gaussian_of_its_channel():
    spike = torch.zeros(1, 2, 9, 9)
    spike[0, 1, 4, 4] = 1
    found = smoothed(spike, 5)
    assert not found[0, 0].any()
    assert float(found.sum()) == pytest.approx(1, abs=1e-6)
    assert all(torch.equal(found, other) for other in (found.flip(2), found.flip(3), found.mT))
    # Five places to three standard deviations on either side are one and a half apart.
    assert float(found[0, 1, 4, 5] / found[0, 1, 4, 4]) == pytest.approx(torch.exp(torch.tensor(-1.125)).item())
    assert torch.count_nonzero(found) == 25


def test_a_smoothed_gradient_takes_a_pixel_along_with_its_neighbours():
    slopes = torch.ones(1, 1, 5, 5)
    slopes[0, 0, 2, 2] = -0.1
    x = torch.full((1, 1, 5, 5), 0.5)
    alone, taken = (ascend(lambda x: (x * slopes).sum(dim=(1, 2, 3)), x, settings(kernel=side)) for side in (0, 5))
    assert float(alone[0, 0, 2, 2]) == pytest.approx(0.46)
    assert torch.allclose(taken, torch.full_like(x, 0.54))


def test_an_input_is_made_diverse_as_often_as_asked_and_else_left_alone():
    x = torch.full((400, 1, 40, 40), 0.5)
    found = diverse(x, list(range(400)), 0.3)
    same = (found == x).flatten(1).all(1)
    assert 0.63 < float(same.float().mean()) < 0.8  # 0.7, and those that lose less than a pixel
    filled = (found[~same] > 0).float().mean(dim=(1, 2, 3))
    assert 0.8 < float(filled.min()) < 0.83  # 36 of 40 pixels on either side at least
    assert torch.equal(diverse(x, list(range(400)), 0.0), x)


def test_where_a_smaller_input_lies_belongs_to_its_seed():
    x = images(4, size=20)
    assert torch.equal(diverse(x, [3, 1, 4, 5], 1.0)[1:2], diverse(x[1:2], [1], 1.0))
    assert not torch.equal(diverse(x, [3, 1, 4, 5], 1.0)[1:2], diverse(x[1:2], [2], 1.0))


def test_diverse_inputs_are_drawn_anew_at_each_step_and_do_not_depend_on_who_else_climbs():
    x, seen = torch.full((4, 1, 20, 20), 0.5), []

    def climbed(parts):
        seen.clear()
        ascent = begin(x, settings(steps=3, diversity=1.0), indices=torch.arange(7, 11))
        for _ in range(3):
            for part in parts:
                ascent.climb(lambda x: (seen.append(x.detach()), rippled(x))[1], torch.tensor(part))
        return ascent.delta

    apart, together = climbed([[0], [1, 3]]), climbed([[0, 1, 3]])
    assert torch.equal(apart, together)
    black = [each[0] == 0 for each in seen]
    assert not torch.equal(black[0], black[1])


def test_random_signs_and_the_step_after_them_stay_in_the_ball():
    x, indices = torch.full((3, 1, 4, 4), 0.5), torch.tensor([4, 5, 6])
    r_fgsm = settings(sign_start=0.04, step_size=0.06)
    start = drawn_start(x, r_fgsm, indices, 0)
    assert torch.allclose(start.abs(), torch.full_like(x, 0.04))
    assert 0 < (start > 0).float().mean() < 1
    found = ascend(along(1, 1, 1, 1), x, r_fgsm, start=start)
    assert torch.allclose(found - x, start + 0.06)
    assert torch.equal(drawn_start(x[1:], r_fgsm, indices[1:], 0), start[1:])


def test_random_signs_beyond_the_ball_are_refused():
    with pytest.raises(ValueError, match="at most epsilon"):
        settings(sign_start=0.2)
    with pytest.raises(ValueError, match="for l_inf"):
        settings(sign_start=0.05, norm="l2")


def test_a_random_start_in_l2_lies_on_the_sphere_and_favours_no_direction():
    x = torch.full((2000, 1, 1, 2), 0.5)
    start = drawn_start(x, settings(norm="l2", random_start=True), torch.arange(2000), 0)
    assert torch.allclose(length(start, "l2"), torch.full((2000,), 0.1))
    small, large = start.flatten(1).abs().sort(dim=1).values.T
    assert 0.46 < float((small / large > 0.4142).float().mean()) < 0.54  # nearer to a diagonal than to an axis


def test_every_restart_begins_elsewhere_and_so_does_every_image():
    x = images(2)
    first, second = (drawn_start(x, settings(random_start=True), torch.tensor([3, 4]), restart) for restart in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(drawn_start(x[:1], settings(random_start=True), torch.tensor([4]), 0), first[:1])
    assert drawn_start(x, settings(), torch.tensor([3, 4]), 0) is None


def test_apgd_looks_back_at_the_checkpoints_of_its_paper():
    assert list(windows(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def told(*looks):
    """A loss of one pixel that has these values and slopes, look by look."""
    each = iter(looks)

    def loss(x):
        value, slope = next(each)
        return value + slope * (x - x.detach()).sum(dim=(1, 2, 3))

    return loss


def apgds_way(loss, steps, planned=10):
    """Where one pixel of 0.5 is after each of so many of the planned steps in a ball of 0.1, the first of 0.2."""
    ascent, found = AutoAscent(pixels(0.5), settings(algorithm="apgd", steps=planned)), []
    for _ in range(steps):
        ascent.climb(loss, torch.tensor([0]))
        found.append(float(ascent.x + ascent.delta))
    return found


def test_apgd_halves_its_step_and_goes_on_from_the_best_image_and_its_gradient():
    # 0.5 + 0.2, in the ball 0.6; 0.6 + 0.75 (0.4 - 0.6) + 0.25 (0.6 - 0.5) = 0.475. Of two looks one has risen, too few: on
    # from 0.5 with 0.1, 0.5 + 0.75 * 0.1 + 0.25 (0.5 - 0.6) = 0.55. That rose: 0.55 - 0.75 * 0.1 + 0.25 (0.55 - 0.5) = 0.4875.
    found = apgds_way(told((1, 1), (0, -1), (0.5, -1), (2, -1)), 4)
    assert found == pytest.approx([0.6, 0.475, 0.55, 0.4875], abs=1e-6)


def test_apgd_keeps_its_step_where_the_loss_rose_from_the_first_step_on():
    # 0.475 + 0.75 (0.6 - 0.475) + 0.25 (0.475 - 0.6) = 0.5375
    found = apgds_way(told((0, 1), (1, -1), (2, 1)), 3)
    assert found == pytest.approx([0.6, 0.475, 0.5375], abs=1e-6)


def test_apgd_goes_back_where_the_loss_rose_often_but_never_above_its_best():
    # Up to the first checkpoint, 22, all is well. Then it falls and climbs again: 18 steps of 19 rise, but not so far.
    looks = [(k, 1) for k in range(23)] + [(k - 100, -1) for k in range(19)]
    found = apgds_way(told(*looks), 42, planned=100)
    assert found[21] == pytest.approx(0.6)
    assert found[40:] == pytest.approx([0.4, 0.6])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_never_leaves_its_ball_nor_the_range_of_images(norm):
    x, rows = images(5), torch.arange(5)
    ascent = begin(x, settings(algorithm="apgd", steps=25, norm=norm, epsilon=0.3))
    for _ in range(25):
        ascent.climb(rippled, rows)
        image = ascent.x + ascent.delta
        assert float(length(image - x, norm).max()) <= 0.3 + 1e-6
        assert 0 <= float(image.min()) <= float(image.max()) <= 1


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.3), ("l2", 2.0)])
def test_apgd_ends_with_the_image_of_the_highest_loss(norm, epsilon):
    losses = []

    def watched(x):
        losses.append(rippled(x).detach())
        return rippled(x)

    found = ascend(watched, images(5), settings(algorithm="apgd", steps=20, norm=norm, epsilon=epsilon))
    assert len(losses) == 21
    assert torch.allclose(rippled(found), torch.stack(losses).amax(0))
    assert not torch.allclose(rippled(found), losses[-1])


@pytest.mark.parametrize(
    "fields",
    [
        {"momentum": 1.0},
        {"norm": "l2"},
        {"kernel": 3},
        {"diversity": 0.7},
        {"algorithm": "apgd"},
        {"algorithm": "apgd", "norm": "l2", "diversity": 0.7},
    ],
    ids=str,
)
def test_an_images_ascent_does_not_depend_on_its_neighbours(fields):
    x, indices, how = images(5), torch.arange(20, 25), settings(**{"steps": 12, "random_start": True, **fields})

    def found(rows):
        start = drawn_start(x[rows], how, indices[rows], 0)
        return ascend(rippled, x[rows], how, start=start, indices=indices[rows])

    together = found(slice(None))
    assert torch.equal(torch.cat([found(slice(i, i + 1)) for i in range(5)]), together)
    assert not torch.equal(together, x)
