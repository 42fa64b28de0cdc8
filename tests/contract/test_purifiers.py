"""What every purifier promises (docs/architecture.md, section 3). `defense` runs over the whole registry and the shipped zoo."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from models.catalog import Defense
from models.purifiers import Options, Purified, Wish
from training.counting import counted

N = 6  # images in a batch, as in conftest.py
FIELDS = ("image", "logits", "epsilon", "objective_before", "objective_after", "forward_passes", "backward_passes")


def assert_identical(found: Purified, expected: Purified, rows: slice | list[int] = slice(None)) -> None:
    for name in FIELDS:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        assert one is None or torch.equal(one[rows], other[rows]), name


def assert_agree(found: Purified, expected: Purified) -> None:
    """Equal up to rounding, which differs between batch shapes; a sign that flips where a gradient is nearly 0 can cascade.

    Measured on the seeded networks: at most 1 of 6 images cascades and no label changes. We hold every purifier to half
    of the images without a cascade, and those to equal answers.
    """
    close = (found.image - expected.image).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert close.sum() >= len(close) / 2
    assert torch.allclose(found.logits[close], expected.logits[close], rtol=1e-3, atol=1e-3)
    if expected.objective_before is not None:
        assert torch.allclose(found.objective_before, expected.objective_before, rtol=1e-3, atol=1e-5)
        assert torch.allclose(found.objective_after[close], expected.objective_after[close], rtol=1e-2, atol=1e-5)


def joined(parts: list[Purified]) -> Purified:
    def cat(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    return Purified(**{name: cat(name) for name in FIELDS})


def test_every_kind_is_represented(missing_kinds: set[str]) -> None:
    assert not missing_kinds, f"add settings of {sorted(missing_kinds)} to REPRESENTATIVE in tests/contract/conftest.py"


def test_shape_dtype_device_and_range_are_kept(images: Tensor, answer: Purified) -> None:
    assert (answer.image.shape, answer.image.dtype, answer.image.device) == (images.shape, images.dtype, images.device)
    assert answer.image.min() >= 0
    assert answer.image.max() <= 1


def test_every_field_is_per_image(defense: Defense, images: Tensor, answer: Purified) -> None:
    assert answer.logits.shape == (len(images), len(defense.card.labels))
    values = [getattr(answer, name) for name in FIELDS[2:]]
    assert all(value is None or value.shape == (len(images),) for value in values)
    assert not any(getattr(answer, name) is not None and getattr(answer, name).requires_grad for name in FIELDS)


def test_no_pixel_moves_further_than_the_budget(defense: Defense, images: Tensor, answer: Purified) -> None:
    moved = (answer.image - images).abs().amax(dim=(1, 2, 3))
    if defense.info.eps_pfy is not None:
        assert moved.max() <= defense.info.eps_pfy + 1e-6
        assert (moved <= answer.epsilon + 1e-6).all()


def test_zero_budget_is_the_identity(without_budget: Defense | None, images: Tensor) -> None:
    if without_budget is not None:
        purified = without_budget.purify(images, seeds=range(N))
        assert torch.equal(purified.image, images)
        assert torch.equal(purified.epsilon, torch.zeros(len(images)))


def test_neighbours_content_changes_nothing(
    defense: Defense, images: Tensor, strangers: Tensor, answer: Purified
) -> None:
    mine = [0, 3, 5]
    batch = strangers.clone()
    batch[mine] = images[mine]
    assert_identical(defense.purify(batch, seeds=range(len(batch))), answer, rows=mine)


def test_order_in_the_batch_does_not_matter(defense: Defense, images: Tensor, answer: Purified) -> None:
    order = [5, 3, 1, 0, 2, 4]
    found = defense.purify(images[order], seeds=order)
    back = [order.index(position) for position in range(len(order))]
    assert_agree(joined([_row(found, row) for row in back]), answer)


def test_an_image_alone_is_answered_as_in_a_batch(defense: Defense, images: Tensor, answer: Purified) -> None:
    solo = [defense.purify(image[None], seeds=[seed]) for seed, image in enumerate(images)]
    assert_agree(joined(solo), answer)


def test_an_image_is_purified_to_the_same_bits_whatever_the_size_of_its_batch(
    defense: Defense, images: Tensor, answer: Purified
) -> None:
    # Convolutions treat 2, 3, ... images alike on the CPUs that we know; see docs/architecture.md.
    for size in (1, 2, 3, 5):
        found = defense.purify(images[:size], seeds=range(size))
        assert torch.equal(found.image, answer.image[:size]), size
        if defense.classifier.batch_invariant:
            assert_identical(found, answer, rows=slice(0, size))


def test_a_seed_decides_what_is_random_and_nothing_else_does(
    defense: Defense, images: Tensor, answer: Purified
) -> None:
    again = defense.purify(images, seeds=[seed + 1 for seed in range(N)])
    assert defense.info.random != torch.equal(again.image, answer.image)


def test_unwanted_images_are_dropped_and_the_others_answered(
    defense: Defense, images: Tensor, answer: Purified
) -> None:
    mine = [1, 4]
    with counted(defense) as passes:
        found = defense.purify(images, seeds=range(N), wanted=lambda: [row in mine for row in range(N)])
    assert torch.equal(found.image[mine], answer.image[mine])
    with counted(defense) as all_wanted:
        defense.purify(images, seeds=range(N))
    dropped = [row for row in range(N) if row not in mine]
    if int(answer.backward_passes[dropped].sum()):  # else they were left alone anyway
        assert passes.backward < all_wanted.backward


def test_an_image_in_a_hurry_has_made_a_step_and_the_others_all(
    defense: Defense, images: Tensor, answer: Purified
) -> None:
    others = [row for row in range(N) if row != 1]
    wishes = [Wish.HURRIES if row == 1 else Wish.WAITS for row in range(N)]
    found = defense.purify(images, seeds=range(N), wanted=lambda: wishes)
    in_steps = "steps" in defense.info.options
    one_step = defense.with_options(Options(steps=1)).purify(images, seeds=range(N)) if in_steps else answer
    assert torch.equal(found.image[others], answer.image[others])
    assert torch.equal(found.image[1], one_step.image[1])


def test_a_requests_budget_holds(defense: Defense, images: Tensor) -> None:
    if "epsilon" not in defense.info.options:
        with pytest.raises(ValueError, match="has no option epsilon; its options:"):
            defense.with_options(Options(epsilon=0.01))
        return
    found = defense.with_options(Options(epsilon=0.01)).purify(images, seeds=range(N))
    assert (found.image - images).abs().max() <= 0.01 + 1e-6
    nothing = defense.with_options(Options(epsilon=0.0)).purify(images, seeds=range(N))
    assert torch.equal(nothing.image, images)
    with pytest.raises(ValueError, match="budgets"):
        defense.with_options(Options(epsilon=1.5))


def test_a_requests_steps_are_spent(defense: Defense, images: Tensor) -> None:
    if "steps" in defense.info.options:
        short = defense.with_options(Options(steps=1))
        assert short.info.backward_passes < defense.info.backward_passes
        assert int(short.purify(images, seeds=range(N)).backward_passes.max()) <= short.info.backward_passes
    assert defense.with_options(Options()) is defense


def test_same_image_and_seed_give_the_same_answer(defense: Defense, images: Tensor, answer: Purified) -> None:
    assert_identical(defense.purify(images, seeds=range(len(images))), answer)


def test_the_argument_is_not_modified(defense: Defense, images: Tensor) -> None:
    before = images.clone()
    purified = defense.purify(images, seeds=range(N))
    purified.image.zero_()
    assert torch.equal(images, before)
    assert not images.requires_grad


def test_the_network_is_left_alone(defense: Defense, images: Tensor) -> None:
    network = defense.classifier
    flags = [module.training for module in network.modules()], [p.requires_grad for p in network.parameters()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    defense.purify(images[:2], seeds=[0, 1])
    assert ([module.training for module in network.modules()], [p.requires_grad for p in network.parameters()]) == flags
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_the_global_generator_is_left_alone(defense: Defense, images: Tensor) -> None:
    before = torch.get_rng_state()
    defense.purify(images[:1], seeds=[3])
    assert torch.equal(torch.get_rng_state(), before)


def test_four_threads_get_equal_answers(defense: Defense, images: Tensor, answer: Purified) -> None:
    # Each with as many cores as this one: products of large matrices are rounded by how many share them.
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool:
        answers = list(pool.map(lambda _: defense.purify(images, seeds=range(len(images))), range(4)))
    for found in answers:
        assert_identical(found, answer)


def test_a_caller_without_gradients_gets_the_same(defense: Defense, images: Tensor, answer: Purified) -> None:
    with torch.no_grad():
        assert_identical(defense.purify(images, seeds=range(len(images))), answer)
        assert not torch.is_grad_enabled()


def test_logits_are_those_of_the_purified_image(defense: Defense, answer: Purified) -> None:
    with torch.no_grad():
        again = defense.logits(answer.image)
    assert torch.allclose(answer.logits, again, rtol=1e-3, atol=1e-4)


def test_logits_are_differentiable(defense: Defense, images: Tensor) -> None:
    x = images[:2].clone().requires_grad_()
    defense.logits(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().amax(dim=(1, 2, 3)).min() > 0


def test_reported_passes_are_those_that_ran(defense: Defense, images: Tensor, answer: Purified) -> None:
    busiest = int(answer.forward_passes.argmax())  # so not one that was skipped, where any was not
    twice = images[[busiest, busiest]]  # alone it could be doubled, see Classifier.features
    with counted(defense) as passes:
        found = defense.purify(twice, seeds=[0, 0])
    assert (passes.forward, passes.backward) == (
        int(found.forward_passes.sum()),
        int(found.backward_passes.sum()),
    )
    assert passes.forward <= 2 * defense.info.forward_passes
    assert passes.backward <= 2 * defense.info.backward_passes


def _row(purified: Purified, row: int) -> Purified:
    values = {name: getattr(purified, name) for name in FIELDS}
    return Purified(**{name: None if value is None else value[row : row + 1] for name, value in values.items()})
