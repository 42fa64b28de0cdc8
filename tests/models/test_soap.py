"""SOAP's objectives, Eq. (6) to (8), against values computed by hand."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from models.classifiers import Classifier, build_classifier, frozen
from models.purifiers import Material, build_purifier
from models.purifiers.soap import (
    LabelConsistency,
    Reconstruction,
    RotationPrediction,
    flip_crop,
    label_consistency,
    reconstruction_error,
    rotation_error,
    rotations,
    symmetric_kl,
)

FIXED = {"selection": "fixed", "budgets": [0.1], "step_size": 0.1, "steps": 1}


class Linear(nn.Module):
    """x -> (w . x, v . x), so that every gradient is known."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", x, self.weight)


def linear_classifier(aux_head: nn.Module | None = None) -> Classifier:
    return Classifier(nn.Identity(), Linear((1, 8, 8)), mean=(0.0,), std=(1.0,), aux_head=aux_head)


def image(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_label_consistency_by_hand() -> None:
    # Eq. (8): (1 - 0)^2 + (2 - 4)^2 = 5 and (0 - 0)^2 + (3 - 0)^2 = 9.
    one, two = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    assert label_consistency(one, two).tolist() == [5.0, 9.0]


def test_symmetric_kl_by_hand() -> None:
    sure, even = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)  # 3/4 and 1/4; 1/2 and 1/2
    expected = (3 / 4 - 1 / 2) * (math.log(3 / 4) - math.log(1 / 2)) + (1 / 4 - 1 / 2) * (
        math.log(1 / 4) - math.log(1 / 2)
    )
    assert symmetric_kl(sure, even).tolist() == pytest.approx([expected])
    assert symmetric_kl(even, sure).tolist() == pytest.approx([expected])
    assert symmetric_kl(sure, sure + 5).tolist() == pytest.approx([0.0], abs=1e-6)  # logits 5 apart, one distribution


def test_with_symmetric_kl_the_descent_lowers_it_while_skip_and_reports_stay_with_the_squares() -> None:
    torch.manual_seed(0)
    classifier = frozen(build_classifier("resnet18-thin"))
    settings = {"selection": "best-iterate", "budgets": [8 / 255], "step_size": 2 / 255, "steps": 3}
    x = image(2, 3, 32, 32).float()
    found, far = {}, {}
    for distance in ("squared", "symmetric-kl"):
        purifier = build_purifier("soap-lc", Material(classifier, {**settings, "distance": distance}, ()))
        found[distance] = purifier.purify(x)
        far[distance] = symmetric_kl(*purifier.view_logits(found[distance].image))
        after = label_consistency(*purifier.view_logits(found[distance].image))
        assert torch.allclose(found[distance].objective_after, after, atol=1e-5)
    assert torch.equal(found["squared"].objective_before, found["symmetric-kl"].objective_before)
    assert not torch.equal(found["squared"].image, found["symmetric-kl"].image)
    assert (far["symmetric-kl"] <= symmetric_kl(*purifier.view_logits(x))).all()


def test_reconstruction_error_by_hand() -> None:
    # Eq. (6): 4 pixels off by 0.5 are 4 * 0.25 = 1; a perfect copy is 0.
    x = torch.full((2, 1, 2, 2), 0.5)
    copy = torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), 0.5)])
    assert reconstruction_error(x, copy).tolist() == [1.0, 0.0]


def test_rotation_error_by_hand() -> None:
    # Eq. (7), squared error: equal scores are (1/4, ...) against a one-hot row: (3/4)^2 + 3 (1/4)^2 = 3/4, four times.
    undecided, sure = torch.zeros(4, 1, 4), 1000 * torch.eye(4)[:, None]
    assert rotation_error(torch.cat([undecided, sure], dim=1)).tolist() == [3.0, 0.0]


def test_rotations_go_counterclockwise_rotation_by_rotation() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    quarters = rotations(torch.cat([x, 10 * x]))
    assert quarters[:2].flatten().tolist() == [1, 2, 3, 4, 10, 20, 30, 40]
    assert quarters[2].flatten().tolist() == [2, 4, 1, 3]
    assert quarters[6].flatten().tolist() == [3, 1, 4, 2]


def test_flip_crop_is_index_arithmetic() -> None:
    x = image(2, 3, 32, 32).float()
    rows = [4 + 24 * i // 32 for i in range(32)]  # the centre 24 of 32, nearest neighbour
    columns = [31 - row for row in rows]  # mirrored
    assert torch.equal(flip_crop(x), x[:, :, rows][..., columns])


def test_flip_crop_has_the_right_gradient() -> None:
    assert gradcheck(flip_crop, image(1, 2, 8, 8).requires_grad_())


@pytest.mark.parametrize("weight", [1.0, 0.25, 0.0, -0.1])
def test_the_second_views_gradient_is_weighted_and_its_value_is_not(weight: float) -> None:
    classifier, x = linear_classifier(), image(3, 1, 8, 8).requires_grad_()
    first, second = classifier(torch.cat([x, flip_crop(x)])).chunk(2)
    through_first = torch.autograd.grad(label_consistency(first, second.detach()).sum(), x, retain_graph=True)[0]
    through_second = torch.autograd.grad(label_consistency(first.detach(), second).sum(), x, retain_graph=True)[0]
    found = LabelConsistency(classifier, weight, second_view_share=0.0)(x)
    assert torch.allclose(found.loss, label_consistency(first, second), rtol=1e-12)
    assert weight == 0 or torch.equal(found.loss, label_consistency(first, second))
    gradient = torch.autograd.grad(found.loss.sum(), x)[0]
    assert torch.allclose(gradient, through_first + weight * through_second)


def test_the_exact_gradient_is_that_of_the_loss() -> None:
    objective = LabelConsistency(linear_classifier(), 1.0, second_view_share=0.0)
    assert gradcheck(lambda x: objective(x).loss, image(2, 1, 8, 8).requires_grad_())


def test_averaged_views_read_the_mean_of_both_logits() -> None:
    classifier, x = linear_classifier(), image(2, 1, 8, 8)
    objective = LabelConsistency(classifier, 0.0, second_view_share=0.5)
    expected = (classifier(x) + classifier(flip_crop(x))) / 2
    assert torch.allclose(objective(x).logits, expected)
    assert torch.allclose(objective.logits(x), expected)


def test_reconstruction_compares_with_the_decoders_output() -> None:
    halved = nn.Module()
    halved.forward = lambda z: z / 2
    objective, x = Reconstruction(linear_classifier(halved)), image(2, 1, 8, 8)
    assert torch.allclose(objective(x).loss, x.square().sum(dim=(1, 2, 3)) / 4)
    assert gradcheck(lambda x: objective(x).loss, x.requires_grad_())


def test_rotation_prediction_agrees_with_four_single_passes(network) -> None:
    classifier, x = network("wide-resnet", depth=10, widen=1, aux="rotation"), torch.rand(2, 3, 8, 8)
    found = RotationPrediction(classifier)(x)
    expected = torch.zeros(2)
    for quarter in range(4):
        shares = classifier.aux_head(classifier.features(x.rot90(quarter, (-2, -1)))).softmax(1)
        expected += (shares - torch.eye(4)[quarter]).square().sum(1)
    assert torch.allclose(found.loss, expected, atol=1e-5)
    assert torch.allclose(found.logits, classifier(x), atol=1e-5)


@pytest.mark.parametrize(("kind", "what"), [("soap-rp", "rotation head"), ("soap-dr", "decoder")])
def test_a_missing_auxiliary_head_is_named(network, kind: str, what: str) -> None:
    material = Material(frozen(network("fcn")), FIXED, ())
    with pytest.raises(ValueError, match=f"needs a classifier trained with a {what}"):
        build_purifier(kind, material)


def test_an_unknown_setting_is_refused(network) -> None:
    with pytest.raises(ValueError, match="second_view_gradient"):
        build_purifier("soap-dr", Material(network("fcn", aux="decoder"), {**FIXED, "second_view_gradient": 1}, ()))


def test_the_skip_rule_needs_a_calibration(network) -> None:
    material = Material(network("fcn", aux="decoder"), {**FIXED, "skip_percentile": 80}, ())
    with pytest.raises(ValueError, match="101 percentiles"):
        build_purifier("soap-dr", material)


def test_the_skip_rule_interpolates_between_percentiles(network) -> None:
    classifier, x = network("fcn", aux="decoder"), torch.rand(1, 1, 28, 28)
    loss = Reconstruction(classifier)(x).loss.item()
    # The 80th percentile is 0.1 below the loss and the 81st 0.3 above it, so that the loss is at 80.25.
    calibration = [loss - 0.1 if p <= 80 else loss + 0.3 for p in range(101)]
    for percentile, skipped in ((80.2, False), (80.3, True)):
        material = Material(classifier, {**FIXED, "skip_percentile": percentile}, calibration)
        assert torch.equal(build_purifier("soap-dr", material).purify(x).image, x) == skipped


def test_the_declared_budget_is_what_the_steps_can_reach(network) -> None:
    settings = {"selection": "min-aux", "budgets": [0, 0.1, 0.9], "step_size": 0.1, "steps": 5}
    purifier = build_purifier("soap-dr", Material(network("fcn", aux="decoder"), settings, ()))
    assert purifier.info.eps_pfy == 0.5
    assert (purifier.info.kind, purifier.info.objective) == ("soap-dr", "Reconstruction")
