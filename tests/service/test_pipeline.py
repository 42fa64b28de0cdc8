from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.catalog import Catalog
from models.purifiers import Options, Purified, Wish
from service.decode import File, decode
from service.errors import BrokenImage, NotAnImage, TooManyPixels
from service.pipeline import Answer, Lane, NotFinite, Work, freed_memory, run_batch, run_files


def images(n: int) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def lane_of(catalog: Catalog, purifier: str, **options: float) -> Lane:
    return Lane.of(catalog.defense("cifar10", purifier), Options(**options), (3, 32, 32))


def test_image_with_numbers_that_are_not_finite_is_an_error_and_its_neighbours_are_answered(catalog: Catalog) -> None:
    lane = lane_of(catalog, "none")

    class Overflowing:
        info = lane.defense.info

        def purify(self, x: Tensor, seeds: object = None, wanted: object = None) -> Purified:
            purified = lane.defense.purifier.purify(x)
            purified.logits[1, 3] = float("nan")
            return purified

    broken = replace(lane, defense=replace(lane.defense, purifier=Overflowing()))
    kinds = [type(each) for each in run_batch(broken, [Work(image, 0) for image in images(3)])]
    assert kinds == [Answer, NotFinite, Answer]


@pytest.mark.parametrize("purifier", ["none", "soap-lc", "soap-rp"])
def test_answers_are_what_the_defense_says(catalog: Catalog, purifier: str) -> None:
    x = images(3)
    lane = lane_of(catalog, purifier)
    expected = lane.defense.purify(x)
    for i, answer in enumerate(run_batch(lane, [Work(image, 0, want_image=True) for image in x])):
        assert isinstance(answer, Answer)
        assert answer.probabilities == pytest.approx(expected.logits[i].softmax(0).tolist(), abs=1e-6)
        assert answer.before is None
        assert torch.equal(answer.image, expected.image[i])
        assert answer.epsilon == float(expected.epsilon[i])
        assert answer.linf == pytest.approx(float((expected.image[i] - x[i]).abs().max()))
        assert answer.l2 == pytest.approx(float((expected.image[i] - x[i]).norm()), rel=1e-5)


def test_suspicion_is_the_percentile_of_the_incoming_objective(catalog: Catalog) -> None:
    lane = lane_of(catalog, "soap-lc")
    answer = run_batch(lane, [Work(images(1)[0], 0)])[0]
    assert isinstance(answer, Answer)
    assert answer.objective_before is not None
    assert answer.suspicion == lane.defense.suspicion(answer.objective_before)


def test_no_purifier_has_no_objective_and_changes_nothing(catalog: Catalog) -> None:
    answer = run_batch(lane_of(catalog, "none"), [Work(images(1)[0], 0)])[0]
    assert isinstance(answer, Answer)
    assert (answer.objective_before, answer.suspicion, answer.linf, answer.l2) == (None, None, 0.0, 0.0)
    assert answer.image is None


def test_the_unpurified_probabilities_are_told_to_who_asks(catalog: Catalog) -> None:
    lane, image = lane_of(catalog, "soap-lc"), images(1)[0]
    asked, other = run_batch(lane, [Work(image, 0, want_before=True), Work(image, 0)])
    assert isinstance(asked, Answer)
    assert isinstance(other, Answer)
    assert asked.before == pytest.approx(lane.defense.classifier(image[None])[0].softmax(0).tolist(), abs=1e-5)
    assert other.before is None


def test_options_change_what_is_done(catalog: Catalog) -> None:
    answer = run_batch(lane_of(catalog, "soap-rp", epsilon=0.001), [Work(images(1)[0], 0)])[0]
    assert isinstance(answer, Answer)
    assert 0 < answer.linf <= 0.0011


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error: Exception, memory: bool) -> None:
    assert freed_memory(error) is memory


def test_batch_is_not_modified(catalog: Catalog) -> None:
    image = images(1)[0]
    before = image.clone()
    run_batch(lane_of(catalog, "soap-lc"), [Work(image, 0)])
    assert torch.equal(image, before)


def test_lanes_of_the_same_names_and_shape_are_the_same(catalog: Catalog) -> None:
    lane = lane_of(catalog, "none")
    assert {lane: 1}[lane_of(catalog, "none")] == 1
    assert lane != lane_of(catalog, "soap-lc")
    assert lane != replace(lane, shape=(3, 16, 16))
    assert str(lane) == "cifar10/toy/none/3x32x32"
    assert str(lane_of(catalog, "soap-lc", steps=3)) == "cifar10/toy/soap-lc/3x32x32/steps=3"
    assert lane_of(catalog, "soap-lc", steps=3) != lane_of(catalog, "soap-lc")
    assert lane_of(catalog, "soap-lc", steps=3).group == lane_of(catalog, "soap-lc").group
    assert lane != replace(lane, weights_sha256="0" * 64)  # the same names after a swap


def test_a_file_that_cannot_be_decoded_fails_alone(catalog: Catalog, png: Any) -> None:
    lane, x = lane_of(catalog, "soap-lc"), images(1)
    works = [
        Work(File(png(), 2**20), 0),
        Work(File(png()[:60], 2**20), 0),
        Work(File(png(), 10), 0),
        Work(x[0], 0),
    ]
    first, broken, large, last = run_files(lane, works)
    assert [type(each) for each in (broken, large)] == [BrokenImage, TooManyPixels]
    image = decode(png(), lane.defense.card.input, 2**20)
    for found, expected in ((first, run_batch(lane, [Work(image, 0)])[0]), (last, run_batch(lane, works[3:])[0])):
        assert isinstance(found, Answer)
        assert isinstance(expected, Answer)
        assert found.probabilities == expected.probabilities
        assert found.linf == expected.linf
    assert isinstance(first, Answer)
    assert first.decode_ms > 0


def test_where_no_file_can_be_decoded_nothing_runs(catalog: Catalog) -> None:
    (found,) = run_files(lane_of(catalog, "none"), [Work(File(b"nothing", 2**20), 0)])
    assert isinstance(found, NotAnImage)


def test_wishes_are_those_of_the_images_that_are_left(catalog: Catalog, png: Any) -> None:
    works = [Work(File(b"broken", 2**20), 0), *(Work(image, 0) for image in images(2))]
    hurries = [Wish.WAITS, Wish.HURRIES, Wish.WAITS]
    _, one, other = run_files(lane_of(catalog, "soap-lc", steps=5), works, lambda: hurries)
    assert isinstance(one, Answer)
    assert isinstance(other, Answer)
    assert one.backward_passes < other.backward_passes
