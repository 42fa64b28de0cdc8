"""What attacks climb: values by hand, and those of AutoAttack's own code."""

import pytest
import torch
from torch.nn import functional as F

from training.attacks import AttackSettings
from training.attacks.losses import criterion, dlr, likely_wrong, targeted_dlr

LOGITS = torch.tensor([[4.0, 1.0, 2.0, 0.0], [1.0, 3.0, 2.0, 0.0]])
FIRST = torch.tensor([0, 0])  # right, and third of four


def drawn(n=64, classes=10):
    generator = torch.Generator().manual_seed(0)
    labels, shifts = (torch.randint(low, classes, (n,), generator=generator) for low in (0, 1))
    return 3 * torch.randn(n, classes, generator=generator), labels, (labels + shifts) % classes


def of_autoattack(targeted):
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    return (APGDAttack_targeted if targeted else APGDAttack)(None, eps=0.1)


def slope(loss, logits):
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf).sum(), leaf)[0]


def test_dlr_by_hand():
    # -(4 - 2) / (4 - 1), then -(1 - 3) / (3 - 1): above 0 where it is wrong
    assert dlr(LOGITS, FIRST).tolist() == pytest.approx([-2 / 3, 1])


def test_targeted_dlr_by_hand():
    # -(4 - 1) / (4 - (1 + 0) / 2), then -(1 - 2) / (3 - (1 + 0) / 2)
    assert targeted_dlr(LOGITS, FIRST, torch.tensor([1, 2])).tolist() == pytest.approx([-3 / 3.5, 1 / 2.5])


def test_dlr_is_autoattacks():
    logits, labels, target = drawn()
    theirs = of_autoattack(targeted=True)
    theirs.y_target = target
    assert torch.equal(dlr(logits, labels), theirs.dlr_loss(logits, labels))
    assert torch.equal(targeted_dlr(logits, labels, target), theirs.dlr_loss_targeted(logits, labels))


def test_dlr_does_not_change_with_the_scale_of_the_logits():
    logits, labels, target = drawn()
    assert torch.allclose(dlr(1e-3 * logits, labels), dlr(logits, labels), atol=1e-5)
    assert torch.allclose(targeted_dlr(1e3 * logits, labels, target), targeted_dlr(logits, labels, target), atol=1e-5)


def test_where_the_label_ties_with_another_class_the_gradient_parts_them():
    tied = torch.tensor([[2.0, 2.0, 1.0, 0.0], [2.0, 2.0, 1.0, 0.0]])
    labels = torch.tensor([0, 1])
    assert torch.equal(dlr(tied, labels), torch.zeros(2))
    found = slope(lambda logits: dlr(logits, labels), tied)
    assert found[0, :2].tolist() == pytest.approx([-1, 1])
    assert found[1, :2].tolist() == pytest.approx([1, -1])


def test_logits_that_are_all_alike_give_numbers():
    flat, labels = torch.ones(2, 5), torch.tensor([0, 3])
    for loss in (lambda x: dlr(x, labels), lambda x: targeted_dlr(x, labels, torch.tensor([1, 2]))):
        assert torch.equal(loss(flat), torch.zeros(2))
        assert slope(loss, flat).isfinite().all()


def test_too_few_classes_for_dlr_are_counted():
    with pytest.raises(ValueError, match="compares 3 classes; the classifier has 2"):
        dlr(LOGITS[:, :2], FIRST)
    with pytest.raises(ValueError, match="compares 4 classes; the classifier has 3"):
        targeted_dlr(LOGITS[:, :3], FIRST, FIRST)


def test_the_likeliest_wrong_classes_leave_the_label_out():
    assert likely_wrong(LOGITS, FIRST, 0).tolist() == [2, 1]
    assert likely_wrong(LOGITS, FIRST, 2).tolist() == [3, 3]
    assert likely_wrong(LOGITS, torch.tensor([2, 1]), 0).tolist() == [0, 2]


def test_more_targets_than_wrong_classes_are_refused():
    with pytest.raises(ValueError, match="of 4 classes 3 are wrong; asked for 4"):
        likely_wrong(LOGITS, FIRST, 3)


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_criteria_go_away_from_the_label_or_towards_the_target(loss):
    settings = AttackSettings(name="a", mode="static", loss=loss)
    logits, labels, target = drawn(4)
    away = slope(criterion(settings, labels), logits)
    towards = slope(criterion(settings, labels, target), logits)
    assert (away.gather(1, labels[:, None]) < 0).all()
    assert (towards.gather(1, target[:, None]) > 0).all()
    if loss == "ce":
        assert torch.allclose(
            criterion(settings, labels, target)(logits), -F.cross_entropy(logits, target, reduction="none")
        )
