import math

import torch
from torch import nn

from models.classifiers import Classifier
from training.augment import Cropper
from training.recipe import Views
from training.soap import joint, natural, soap_dr, soap_lc, soap_rp

LABELS = torch.tensor([0, 1])


def crop(channels=3, size=8):
    return Cropper(torch.full((2, size, size, channels), 51, dtype=torch.uint8), 0, flip=False)  # 0.2 everywhere


def network(channels=3, size=8, aux=None):
    flat = nn.Linear(channels * size * size, 10)
    nn.init.zeros_(flat.weight)
    nn.init.zeros_(flat.bias)
    return Classifier(nn.Flatten(), flat, mean=[0.0] * channels, std=[1.0] * channels, aux_head=aux)


def test_the_joint_loss_is_classification_plus_alpha_times_auxiliary():
    losses = joint(torch.zeros(2, 10), LABELS, torch.tensor(3.0), alpha=2.0)
    assert math.isclose(float(losses.total.detach()), math.log(10) + 6, rel_tol=1e-6)
    assert losses.count == 2


def test_natural_training_has_no_auxiliary_loss(tiny):
    losses = natural(network(), tiny("natural"), crop(), torch.arange(2), LABELS)
    assert torch.equal(losses.total, losses.classification)


def test_reconstruction_is_compared_with_the_clean_image(tiny):
    decoder = nn.Sequential(nn.Unflatten(1, (3, 8, 8)))  # the identity: what remains is the noise itself
    torch.manual_seed(0)
    losses = soap_dr(network(aux=decoder), tiny("soap-dr-fcn", noise=0.1), crop(), torch.arange(2), LABELS)
    assert math.isclose(float(losses.auxiliary.detach()), 0.01, rel_tol=0.2)


def test_all_four_rotations_are_classified_and_predicted(tiny):
    aux = nn.Linear(192, 4)
    nn.init.zeros_(aux.weight)
    nn.init.zeros_(aux.bias)
    losses = soap_rp(network(aux=aux), tiny("soap-rp"), crop(), torch.arange(2), LABELS)
    assert losses.count == 8
    assert math.isclose(float(losses.auxiliary.detach()), math.log(4), rel_tol=1e-6)


def test_both_views_are_classified_and_equal_views_are_consistent(tiny):
    views = Views(zoom_1=(8, 8), zoom_2=(8, 8), independent=False)
    still = soap_lc(network(), tiny("soap-lc", noise=0.0, views=views), crop(), torch.arange(2), LABELS)
    assert still.count == 4
    assert float(still.auxiliary.detach()) == 0


def test_each_view_draws_its_own_noise(tiny):
    net = network()
    nn.init.ones_(net.classifier_head.weight)
    views = Views(zoom_1=(8, 8), zoom_2=(8, 8), independent=False)
    losses = soap_lc(net, tiny("soap-lc", noise=0.1, views=views), crop(), torch.arange(2), LABELS)
    assert float(losses.auxiliary.detach()) > 0
