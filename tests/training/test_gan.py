"""The trainers of NRP and Pix2Pix: their losses by hand, and a tiny run of each."""

import pytest
import torch
from torch import nn

from models.classifiers import build_classifier, frozen
from models.networks import build_network
from training.addons import Setting, trainer
from training.augment import Cropper
from training.data import load_data
from training.gan import GanSettings
from training.loop import Loop
from training.nrp import NrpGame, NrpSettings, VggCritic, relativistic
from training.perceptual import Perceptual, PerceptualSettings, tapped_vgg
from training.pix2pix import PatchCritic, Pix2PixGame, Pix2PixSettings
from training.recipe import load_recipe

TINY = {
    "nrp-cifar10": {"width": 4, "blocks": 1},
    "pix2pix-cifar10": {"width": 4},
}


@pytest.fixture
def setting(data):
    """A shipped recipe with a small network, on the shipped images, beside a seeded classifier."""

    def make(name, **settings):
        recipe = load_recipe(name, {"precision": "fp32", "batch_size": 64})
        cheap = {**recipe.settings, "steps": 1, "critic_width": 4, **settings}
        recipe = recipe.model_copy(update={"arguments": TINY[name], "settings": cheap})
        images = load_data("cifar10", "train", data)
        torch.manual_seed(0)
        classifier = frozen(build_classifier("resnet18-thin"))
        network = build_network(recipe.network, **recipe.arguments)
        crop = Cropper(images.images, 0, flip=True)
        return Setting(recipe, classifier, network, images, crop, torch.device("cpu"))

    return make


class Constant(nn.Module):
    """A critic that gives each image of a batch its mean, times a factor."""

    def forward(self, x):
        return 10 * x.mean(dim=(1, 2, 3), keepdim=True)


@pytest.mark.parametrize("name", TINY)
def test_one_epoch_is_the_same_from_the_same_seed(name, setting, tmp_path, quiet):
    weights = []
    for attempt in ("a", "b"):
        run = trainer(setting(name))
        out = tmp_path / attempt
        out.mkdir()
        loop = Loop(run, out=out, identity="x", images=256, batch_size=64, epochs=1, seed=3)
        loop.run(name, quiet)
        weights.append(run.exported.state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize("name", TINY)
def test_a_purifier_learns_from_its_pairs(name, setting):
    run = trainer(setting(name, learning_rate=0.003))
    torch.manual_seed(0)
    found = [run.step(torch.arange(64), 0.0) for _ in range(12)]
    for term in ("pixel", "perceptual"):
        assert found[-1][term] < 0.9 * found[0][term]


@pytest.mark.parametrize("name", TINY)
def test_both_networks_move_and_the_classifier_does_not(name, setting):
    made = setting(name)
    run = trainer(made)
    before = {key: [p.clone() for p in network.parameters()] for key, network in run.networks.items()}
    fixed = [p.clone() for p in made.classifier.parameters()]
    run.step(torch.arange(64), 0.0)
    for key, network in run.networks.items():
        assert all(not torch.equal(p, old) for p, old in zip(network.parameters(), before[key], strict=True)), key
        assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(p, old) for p, old in zip(made.classifier.parameters(), fixed, strict=True))


def test_pix2pix_terms_by_hand(setting):
    made = setting("pix2pix-cifar10")
    settings = Pix2PixSettings(tap="block4", alpha=100, lam=10)
    perceptual = Perceptual(made, settings)
    perceptual.features = lambda x: 2 * x  # a feature space twice as wide as the pixels'
    game = Pix2PixGame(made, settings, perceptual, Constant())
    x, x_adv, z = (torch.full((2, 3, 8, 8), value) for value in (0.5, 0.3, 0.6))
    terms = game.purifier_losses(x, x_adv, z)
    assert terms["pixel"].item() == pytest.approx(10 * 0.1**2, rel=1e-4)
    assert terms["perceptual"].item() == pytest.approx(100 * 0.2**2, rel=1e-4)
    fake, real = torch.tensor(4.5), torch.tensor(4.0)  # ten times the mean over the pair
    assert terms["adversarial"] == pytest.approx(-fake.sigmoid().log().item(), rel=1e-4)
    expected = -real.sigmoid().log() - (1 - fake.sigmoid()).log()
    assert game.critic_loss(x, x_adv, z).item() == pytest.approx(expected.item(), rel=1e-3)


def test_nrp_terms_by_hand(setting):
    made = setting("nrp-cifar10")
    settings = NrpSettings(tap="block5", alpha=0.005, gamma=0.01, lam=1)
    perceptual = Perceptual(made, settings)
    perceptual.features = lambda x: 2 * x
    game = NrpGame(made, settings, perceptual, Constant())
    x, x_adv, z = (torch.full((2, 3, 8, 8), value) for value in (0.5, 0.3, 0.6))
    terms = game.purifier_losses(x, x_adv, z)
    assert terms["perceptual"].item() == pytest.approx(0.2, rel=1e-4)
    assert terms["pixel"].item() == pytest.approx(0.01 * 0.1 * (3 * 8 * 8) ** 0.5, rel=1e-4)
    gap = torch.tensor(10 * (0.6 - 0.5))  # the purified images look cleaner to this critic
    assert terms["adversarial"].item() == pytest.approx(0.005 * -gap.sigmoid().log().item(), rel=1e-3)
    assert game.critic_loss(x, x_adv, z).item() == pytest.approx(-2 * (-gap).sigmoid().log().item(), rel=1e-3)


def test_the_relativistic_loss_compares_each_with_the_mean_of_the_others():
    higher, lower = torch.tensor([[2.0], [0.0]]), torch.tensor([[3.0], [-1.0]])
    expected = -(torch.tensor([1.0, -1.0]).sigmoid().log()).mean()
    assert relativistic(higher, lower).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("side", [32, 128])
def test_the_vgg_critic_judges_crops_of_any_size(side):
    assert VggCritic(4)(torch.rand(2, 3, side, side)).shape == (2, 1)


def test_the_patch_critic_judges_nine_by_nine_patches_of_sixteen_pixels():
    critic = PatchCritic(width=4, dropout=0.5).eval()
    pair = torch.rand(1, 6, 32, 32, requires_grad=True)
    judged = critic(pair)
    assert judged.shape == (1, 1, 9, 9)
    (gradient,) = torch.autograd.grad(judged[0, 0, 0, 0], pair)
    seen = gradient.abs().amax(dim=(0, 1)).nonzero()
    assert seen.max() == 15


def test_a_perturbation_keeps_its_budget_and_distorts_features(setting):
    made = setting("pix2pix-cifar10", steps=3)
    settings = PerceptualSettings(tap="block4", epsilon=0.05, step_size=0.02, steps=3)
    perceptual = Perceptual(made, settings)
    x = made.crop(torch.arange(8))
    torch.manual_seed(1)
    x_adv = perceptual.perturbed(x)
    noise = (x + 0.05 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    assert (x_adv - x).abs().max() <= 0.05 + 1e-6
    assert (x_adv.min() >= 0) & (x_adv.max() <= 1)
    assert not x_adv.requires_grad

    def moved(image):
        return (perceptual.features(image) - perceptual.features(x)).square().mean()

    assert moved(x_adv) > 3 * moved(noise)


def test_an_unknown_tap_is_refused_with_the_known_ones(setting):
    with pytest.raises(ValueError, match=r"no tap 'conv9'; the extractor has stem, block1"):
        trainer(setting("pix2pix-cifar10", tap="conv9"))


def test_a_vgg_is_tapped_after_the_relu_of_each_convolution():
    from torchvision.models import vgg16

    extractor = frozen(tapped_vgg(vgg16(weights=None).features[:17]))
    assert extractor.taps == ["conv1-1", "conv1-2", "conv2-1", "conv2-2", "conv3-1", "conv3-2", "conv3-3"]
    (found,) = extractor.tapped(torch.rand(2, 3, 32, 32), ["conv3-3"])
    assert found.shape == (2, 256, 8, 8)
    assert found.min() >= 0


def test_the_learning_rate_falls_linearly_at_the_end():
    settings = GanSettings(tap="block4", learning_rate=0.01, decay_from=0.5)
    assert [round(settings.rate(share), 6) for share in (0.0, 0.5, 0.75)] == [0.01, 0.01, 0.005]
    assert GanSettings(tap="block4", learning_rate=0.01).rate(0.999) == 0.01
