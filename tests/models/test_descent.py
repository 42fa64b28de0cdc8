"""Alg. 2 and the choice of the budget, on objectives whose gradient is known."""

from collections.abc import Callable, Sequence

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from models.classifiers import frozen
from models.purifiers import reference
from models.purifiers.base import Options, Wish
from models.purifiers.descent import DescentSettings, Evaluation, descend, passes
from models.purifiers.soap import LabelConsistency

GRID = tuple(step * 4 / 255 for step in range(11))  # SOAP: 11 budgets, 5 steps of 4/255


class Toy:
    """A per-image objective made of a function; the logits are the image's first two pixels."""

    views = gradient_views = 1
    logit_views = 0
    batch_invariant = True

    def __init__(self, loss: Callable[[Tensor], Tensor]) -> None:
        self.loss = loss

    def __call__(self, x: Tensor) -> Evaluation:
        return Evaluation(self.loss(x), x.flatten(1)[:, :2])


def distance_to(target: float) -> Toy:
    return Toy(lambda x: (x - target).square().flatten(1).sum(1))


def ripples(x: Tensor) -> Tensor:
    """Several minima, and a gradient whose sign differs from pixel to pixel."""
    weights = torch.linspace(-3, 3, x[0].numel())
    pixels = x.flatten(1)
    return (20 * pixels).cos().mul(weights).sum(1) + (pixels * weights).sum(1).square()


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(5))


def settings(selection: str = "min-aux", **changed: object) -> DescentSettings:
    fields = {"selection": selection, "budgets": GRID, "step_size": 4 / 255, "steps": 5} | changed
    return DescentSettings.model_validate(fields)


def pixel(value: float) -> Tensor:
    return torch.tensor([value]).view(1, 1, 1, 1)


def test_two_steps_by_hand() -> None:
    # Gradient 2 (x - 0.5) < 0 at 0.2 and 0.3: two steps up of 0.1.
    purified = descend(distance_to(0.5), pixel(0.2), settings("fixed", budgets=(0.3,), step_size=0.1, steps=2))
    assert purified.image.item() == pytest.approx(0.4)
    assert purified.objective_before.item() == pytest.approx(0.09)
    assert purified.objective_after.item() == pytest.approx(0.01)


def test_the_budget_stops_the_third_step() -> None:
    purified = descend(distance_to(0.9), pixel(0.2), settings("fixed", budgets=(0.25,), step_size=0.1, steps=5))
    assert purified.image.item() == pytest.approx(0.45)
    assert purified.epsilon.item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("selection", "skip_below", "reads"), [("fixed", None, 1), ("fixed", 0.1, 2), ("best-iterate", None, 4)]
)
def test_logits_are_read_only_where_an_image_could_be_chosen(
    selection: str, skip_below: float | None, reads: int
) -> None:
    seen: list[Tensor] = []

    class Late(Toy):
        def __call__(self, x: Tensor) -> Evaluation:
            return Evaluation(self.loss(x), lambda: seen.append(x) or x.detach().flatten(1)[:, :2])

    toy = distance_to(0.9)
    x = torch.tensor([0.2, 0.8]).view(2, 1, 1, 1)
    steps = settings(selection, budgets=(0.3,), step_size=0.1, steps=3)
    expected = descend(toy, x, steps, skip_below)
    found = descend(Late(toy.loss), x, steps, skip_below)
    assert torch.equal(found.logits, expected.logits)
    assert len(seen) == reads


def test_the_image_range_stops_a_step() -> None:
    down = descend(distance_to(-1), pixel(0.05), settings("fixed", budgets=(0.3,), step_size=0.1, steps=2))
    up = descend(distance_to(2), pixel(0.95), settings("fixed", budgets=(0.3,), step_size=0.1, steps=2))
    assert down.image.item() == 0
    assert up.image.item() == 1


def test_a_fixed_budget_keeps_the_last_iterate_even_if_worse() -> None:
    # 0.48 -> 0.58 -> 0.48 -> 0.58: the step is too long for the valley at 0.5.
    purified = descend(distance_to(0.5), pixel(0.48), settings("fixed", budgets=(0.3,), step_size=0.1, steps=3))
    assert purified.image.item() == pytest.approx(0.58)
    assert purified.objective_after > purified.objective_before


@pytest.mark.parametrize("selection", ["fixed", "best-iterate"])
def test_one_path_uses_the_largest_budget(selection: str) -> None:
    grid = settings(selection, budgets=(0.0, 0.1, 0.3), step_size=0.1, steps=5)
    assert descend(distance_to(0.9), pixel(0.2), grid).image.item() == pytest.approx(0.5)


def test_best_iterate_takes_the_earliest_best() -> None:
    # 0.36 -> 0.46 -> 0.56 -> 0.46: the first step is best, and the third only equals it.
    purified = descend(distance_to(0.5), pixel(0.36), settings("best-iterate", budgets=(0.3,), step_size=0.1, steps=3))
    assert purified.image.item() == pytest.approx(0.46)
    assert purified.epsilon.item() == pytest.approx(0.1)


def test_best_iterate_is_never_worse_than_the_start() -> None:
    purified = descend(Toy(ripples), images(32), settings("best-iterate", step_size=0.2, budgets=(0.3,)))
    assert (purified.objective_after <= purified.objective_before).all()


def test_min_aux_picks_the_smallest_budget_of_the_least_loss() -> None:
    # Both budgets of 0.2 and 0.3 end at 0.5 exactly: 0.3 + 0.2 and one step of 0.2.
    grid = settings(budgets=(0.0, 0.125, 0.25, 0.5), step_size=0.25, steps=1)
    purified = descend(distance_to(0.5), pixel(0.25), grid)
    assert purified.image.item() == 0.5
    assert purified.epsilon.item() == 0.25


def test_min_aux_leaves_an_image_at_its_minimum_alone() -> None:
    purified = descend(distance_to(0.5), pixel(0.5), settings(budgets=(0.0, 0.1), step_size=0.1, steps=1))
    assert purified.image.item() == 0.5
    assert purified.epsilon.item() == 0


def test_min_aux_without_zero_in_its_grid_does_not_offer_the_start() -> None:
    purified = descend(distance_to(0.5), pixel(0.45), settings(budgets=(0.1, 0.2), step_size=0.2, steps=1))
    assert purified.image.item() == pytest.approx(0.55)
    assert purified.epsilon.item() == pytest.approx(0.1)


def test_each_image_chooses_its_own_budget() -> None:
    x = torch.tensor([0.5, 0.4, 0.2]).view(3, 1, 1, 1)
    purified = descend(distance_to(0.5), x, settings(budgets=(0.0, 0.1, 0.2, 0.3), step_size=0.1, steps=3))
    assert purified.epsilon.tolist() == pytest.approx([0.0, 0.1, 0.3])
    assert torch.allclose(purified.image, torch.full_like(x, 0.5), atol=1e-6)


@pytest.mark.parametrize(
    "budgets", [GRID, (0.0, 0.01, 0.03, 0.07), (0.005,), (0.02, 4 / 255 * 3)], ids=["paper", "odd", "tiny", "mixed"]
)
def test_shared_prefixes_give_the_published_loops_answers(budgets: tuple[float, ...]) -> None:
    x = images(16)
    expected = reference.purify(Toy(ripples), x, settings(budgets=budgets))
    found = descend(Toy(ripples), x, settings(budgets=budgets))
    assert torch.equal(found.image, expected.image)
    assert torch.allclose(found.epsilon, expected.epsilon)
    assert torch.allclose(found.objective_after, expected.loss, rtol=1e-5)


@pytest.mark.parametrize("selection", ["fixed", "best-iterate"])
@pytest.mark.parametrize("random_start", [0.0, 0.02])
def test_one_budget_is_the_published_loop_bit_for_bit(selection: str, random_start: float) -> None:
    x, seeds = images(16), list(range(16))
    how = settings(selection, budgets=(0.03,), step_size=0.01, random_start=random_start)
    expected = reference.purify(Toy(ripples), x, how, seeds=seeds)
    found = descend(Toy(ripples), x, how, seeds=seeds)
    assert torch.equal(found.image, expected.image)
    assert torch.equal(found.logits, expected.logits)


def test_the_published_loop_skips_what_looks_clean_too() -> None:
    x = images(16)
    below = float(ripples(x).median())
    expected = reference.purify(Toy(ripples), x, settings(), skip_below=below)
    found = descend(Toy(ripples), x, settings(), skip_below=below)
    assert torch.equal(found.image, expected.image)
    assert not torch.equal(expected.image, reference.purify(Toy(ripples), x, settings()).image)


def test_a_network_gives_the_published_loops_answers(network) -> None:
    plain = network("wide-resnet", depth=10, widen=1).double()
    objective = LabelConsistency(plain, 1.0, second_view_share=0.0)
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = reference.purify(objective, x, settings())
    found = descend(LabelConsistency(frozen(plain), 1.0, second_view_share=0.0), x, settings())
    assert torch.allclose(found.image, expected.image, atol=1e-9)
    assert torch.allclose(found.epsilon, expected.epsilon)


def test_every_candidate_is_shown_even_of_images_that_are_skipped() -> None:
    seen: list[Tensor] = []
    found = descend(distance_to(0.5), images(), settings(), skip_below=1e9, on_candidate=seen.append)
    assert torch.equal(found.image, images())
    assert len(seen) == 6  # budgets 0 and 4/255 to 20/255; the larger ones end where the last one does
    assert torch.equal(seen[0], images().flatten(1)[:, :2])


def test_skipped_images_are_untouched() -> None:
    x = torch.tensor([0.45, 0.2]).view(2, 1, 1, 1)  # losses 0.0025 and 0.09
    purified = descend(distance_to(0.5), x, settings("fixed", budgets=(0.1,), step_size=0.1, steps=1), skip_below=0.05)
    assert torch.equal(purified.image[0], x[0])
    assert purified.image[1].item() == pytest.approx(0.3)
    assert purified.epsilon.tolist() == pytest.approx([0.0, 0.1])
    assert (purified.forward_passes.tolist(), purified.backward_passes.tolist()) == ([1, 2], [0, 1])


def test_the_skip_bound_itself_is_skipped() -> None:
    loss = distance_to(0.5)(pixel(0.25)).loss.item()
    for selection in ("fixed", "min-aux", "best-iterate"):
        found = descend(distance_to(0.5), pixel(0.25), settings(selection, budgets=(0.1,)), skip_below=loss)
        assert found.image.item() == 0.25
        assert found.objective_after.item() == loss


def test_the_papers_grid_costs_11_gradients_and_6_ends() -> None:
    # Distinct iterates before steps 1 to 5: 1, 1, 2, 3, 4; after the last: 4, 8, 12, 16 and all from 20/255 on.
    assert passes(distance_to(0), settings()) == (11 + 5, 11)


def test_one_path_costs_a_gradient_a_step() -> None:
    assert passes(distance_to(0), settings("best-iterate")) == (6, 5)
    assert passes(distance_to(0), settings("fixed", budgets=(0.0,))) == (1, 0)


@pytest.mark.parametrize("budgets", [(), (0.2, 0.1), (0.1, 0.1), (-0.1,), (1.5,), (float("nan"),)], ids=str)
def test_odd_budgets_are_refused(budgets: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match=r"budgets must be in \[0, 1\] and strictly ascending"):
        settings(budgets=budgets)


def test_a_random_start_is_inside_its_box_and_every_budget() -> None:
    x, grid = images(8), settings("fixed", budgets=(0.03,), step_size=1e-6, steps=1, random_start=0.1)
    moved = (descend(distance_to(0.5), x, grid, seeds=range(8)).image - x).abs()
    assert moved.max() <= 0.03 + 1e-6
    assert (moved > 0.029).float().mean() > 0.5  # most of a box of 0.1 lies beyond a budget of 0.03


def test_a_random_start_is_drawn_for_each_image_from_its_own_seed() -> None:
    x, grid = images(4), settings("best-iterate", random_start=0.03)
    together = descend(Toy(ripples), x, grid, seeds=[7, 8, 9, 7]).image
    alone = torch.cat([descend(Toy(ripples), x[i : i + 1], grid, seeds=[(7, 8, 9, 7)[i]]).image for i in range(4)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, descend(Toy(ripples), x, grid, seeds=[7, 8, 9, 6]).image)


def test_a_random_start_needs_a_seed_for_each_image() -> None:
    for seeds, came in ((None, "none"), ([1, 2], "2")):
        with pytest.raises(ValueError, match=f"needs a seed for each of 4 images; got {came}"):
            descend(Toy(ripples), images(4), settings(random_start=0.1), seeds=seeds)


def test_a_random_start_costs_one_evaluation_more() -> None:
    assert passes(distance_to(0), settings("best-iterate", random_start=0.01)) == (7, 5)


def test_the_descent_ends_when_nobody_wants_it() -> None:
    calls: list[int] = []

    def counting(x: Tensor) -> Tensor:
        calls.append(len(x))
        return ripples(x)

    left = iter([[True] * 4, [True, False, True, False], [False] * 4])
    descend(Toy(counting), images(4), settings("fixed", budgets=(0.3,)), wanted=lambda: next(left))
    assert calls == [4, 4, 2]  # the start, a step with all four, a step with two


@pytest.mark.parametrize("selection", ["fixed", "min-aux", "best-iterate"])
@pytest.mark.parametrize("steps", [1, 3])
def test_an_image_in_a_hurry_gets_what_its_steps_have_reached(selection: str, steps: int) -> None:
    x, toy, rows = images(), Toy(ripples), [0, 2, 3, 5]
    asked = iter([[True] * 6] * steps + [[True, Wish.HURRIES] + [True] * 2 + [Wish.HURRIES, True]] + [[True] * 6] * 4)
    found = descend(toy, x, settings(selection), wanted=lambda: next(asked))
    whole, short = descend(toy, x, settings(selection)), descend(toy, x, settings(selection, steps=steps))
    for name in ("image", "logits", "epsilon", "objective_after"):
        assert torch.equal(getattr(found, name)[rows], getattr(whole, name)[rows]), name
        assert torch.equal(getattr(found, name)[[1, 4]], getattr(short, name)[[1, 4]]), name
    assert found.forward_passes[[1, 4]].tolist() == short.forward_passes[[1, 4]].tolist()
    assert (found.backward_passes[[1, 4]] > short.backward_passes[[1, 4]]).all()  # the next step's gradient is there
    assert torch.equal(found.backward_passes[rows], whole.backward_passes[rows])


def test_even_a_hurry_leaves_time_for_a_step() -> None:
    at_once = descend(distance_to(0.5), pixel(0.2), settings("fixed", budgets=(0.3,)), wanted=lambda: [Wish.HURRIES])
    assert at_once.image.item() == pytest.approx(0.2 + 4 / 255)


def test_skipped_images_leave_the_batch() -> None:
    sizes: list[int] = []

    def counting(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return (x - 0.5).square().flatten(1).sum(1)

    x = torch.tensor([0.45, 0.2, 0.1]).view(3, 1, 1, 1)
    descend(Toy(counting), x, settings("fixed", budgets=(0.1,), step_size=0.1, steps=2), skip_below=0.05)
    assert sizes == [3, 2, 2]


@pytest.mark.parametrize(
    ("selection", "epsilon", "expected"),
    [("min-aux", 0.02, (0.0, 0.01, 0.02)), ("min-aux", 0.5, (0.0, 0.01, 0.03, 0.5)), ("fixed", 0.02, (0.02,))],
)
def test_a_requests_budget_cuts_the_grid_or_extends_it(selection, epsilon, expected) -> None:
    grid = settings(selection, budgets=(0.0, 0.01, 0.03))
    assert grid.with_options(Options(epsilon=epsilon)).budgets == expected
    assert grid.with_options(Options(steps=9)).steps == 9


def test_logits_that_cost_a_forward_are_read_of_candidates_only() -> None:
    reads: list[int] = []

    def read(x: Tensor) -> Tensor:
        reads.append(len(x))
        return x.flatten(1)[:, :2]

    class Apart(Toy):
        logit_views = 1

        def __call__(self, x: Tensor) -> Evaluation:
            return Evaluation(self.loss(x), lambda: read(x.detach()))

    for selection, expected in (("fixed", 1), ("min-aux", 1 + 5), ("best-iterate", 6)):
        reads.clear()
        found = descend(Apart(ripples), images(1), settings(selection))
        cost = passes(Apart(ripples), settings(selection))[0] - passes(Toy(ripples), settings(selection))[0]
        assert sum(reads) == cost == expected
        assert torch.equal(found.logits, found.image.flatten(1)[:, :2])


def test_random_numbers_belong_to_the_step_and_the_image() -> None:
    asked: list[tuple[int, tuple[int, ...]]] = []

    class Random:
        views = gradient_views = 1
        logit_views = 0
        batch_invariant = True

        def drawn(self, t: int, seeds: Sequence[int]) -> Toy:
            asked.append((t, tuple(seeds)))
            return distance_to(0.5)

    left = iter([[True, True, True], [True, False, True]])
    grid = settings(budgets=(0.01, 0.02), steps=2, step_size=0.01)
    descend(Random(), images(3), grid, seeds=[7, 8, 9], wanted=lambda: next(left))
    # After one step both budgets still share their path; after two they don't.
    assert asked == [(0, (7, 8, 9)), (1, (7, 8, 9)), (2, (7, 9, 7, 9))]
