"""The purifiers `nrp` and `pix2pix`: tiles, noise, settings."""

import pytest
import torch
from torch import Tensor, nn

from models.classifiers import frozen
from models.networks import Generator, build_network, frozen_network
from models.purifiers import Material, Options, build_purifier
from models.purifiers.generator import GeneratorPurifier, GeneratorSettings, generated
from tests.models.test_generators import SMALL, images, seeded


@pytest.fixture
def purifier(network):
    """A purifier of a kind on a small generator."""

    def make(kind: str, own: str, **settings: float) -> GeneratorPurifier:
        made = build_purifier(kind, Material(frozen(network("resnet18-thin")), settings, (), seeded(own)))
        assert isinstance(made, GeneratorPurifier)
        return made

    return make


class Passes:
    """Remembers the shapes that go through a network."""

    def __init__(self, network: nn.Module) -> None:
        self.shapes: list[torch.Size] = []
        network.register_forward_hook(self._remember)

    def _remember(self, _module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        self.shapes.append(inputs[0].shape)


@pytest.mark.parametrize("name", SMALL)
def test_tiles_that_overlap_enough_give_the_untiled_answer(name: str) -> None:
    network, x = seeded(name), images(2, 3, 300, 250)
    overlap = max(32, 16 * (2 * network.reach // 16 + 1))
    tiled = generated(network, x, GeneratorSettings(tile=max(64, 2 * overlap), overlap=overlap))
    assert torch.allclose(tiled, network(x), atol=1e-5)


class Average(Generator):
    """Paints its whole input in its mean colour, so that an answer shows which tile it came from."""

    reach = 1000

    def translate(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x)


def test_tiles_that_overlap_less_fade_into_each_other_without_a_seam() -> None:
    x = torch.linspace(0, 1, 160).expand(2, 3, 64, 160)  # grows by 0.2 from tile to tile
    tiled = generated(Average().eval(), x, GeneratorSettings(tile=64, overlap=32))
    jumps = tiled.diff(dim=-1)
    assert jumps.min() >= -1e-6
    assert jumps.max() < 1.1 * 0.2 / 16  # over the half of the overlap that sees least of the borders
    assert tiled[..., 0].mean() == pytest.approx(32 / 160, abs=0.01)


def test_no_more_than_two_tiles_go_through_at_once() -> None:
    network = seeded("nrp-resg")
    passes = Passes(network)
    generated(network, images(5, 3, 100, 70), GeneratorSettings(tile=64, overlap=32))
    assert max(shape.numel() for shape in passes.shapes) <= 2 * 3 * 64 * 64
    assert all(len(shape) == 4 and shape[0] in (1, 2) for shape in passes.shapes)


def test_small_images_go_through_together() -> None:
    network = seeded("nrp-resg")
    passes = Passes(network)
    generated(network, images(8, 3, 32, 32), GeneratorSettings())
    assert passes.shapes == [(8, 3, 32, 32)]


def test_no_tile_is_computed_for_an_image_that_nobody_waits_for() -> None:
    network = seeded("nrp-resg")
    passes = Passes(network)
    answers = iter([[True], [True], [False]])
    generated(network, images(1, 3, 200, 64), GeneratorSettings(tile=64, overlap=32), lambda: next(answers))
    assert len(passes.shapes) == 2


def test_the_epsilon_of_an_answer_is_how_far_the_image_moved(purifier) -> None:
    x = images(3, 3, 32, 32)
    found = purifier("pix2pix", "pix2pix").purify(x)
    assert torch.equal(found.epsilon, (found.image - x).abs().amax(dim=(1, 2, 3)))


def test_noise_is_an_images_own_and_clipped(purifier) -> None:
    dynamic = purifier("nrp", "nrp-resg", noise=0.05, noise_limit=0.02)
    seen: list[Tensor] = []
    dynamic.network.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].clone()))
    x = images(3, 3, 32, 32)
    dynamic.purify(x, seeds=[4, 5, 4])
    dynamic.purify(x[[1, 0]], seeds=[5, 4])
    noise = seen[0] - x
    assert noise.abs().max() == pytest.approx(0.02, abs=1e-6)
    assert noise.std() > 0.01
    assert torch.equal(seen[1], seen[0][[1, 0]])
    assert not torch.allclose(noise[0], noise[1], atol=1e-3)
    with pytest.raises(ValueError, match="needs a seed for each of 3 images"):
        dynamic.purify(x)


def test_only_noise_makes_nrp_random(purifier) -> None:
    assert purifier("nrp", "nrp", noise=0.05).info.random
    assert not purifier("nrp", "nrp").info.random


def test_a_generator_of_another_paper_is_refused(network) -> None:
    classifier = frozen(network("resnet18-thin"))
    other = frozen_network(build_network("pix2pix", width=4))
    with pytest.raises(ValueError, match="of type NrpGenerator; its checkpoint has UNet"):
        build_purifier("nrp", Material(classifier, {}, (), other))
    with pytest.raises(ValueError, match="of type UNet; its checkpoint has none"):
        build_purifier("pix2pix", Material(classifier, {}, ()))


def test_tiles_overlap_by_half_at_most() -> None:
    with pytest.raises(ValueError, match="overlap 64 is more than half of tile 96"):
        GeneratorSettings(tile=96, overlap=64)


def test_there_are_no_options(purifier) -> None:
    with pytest.raises(ValueError, match="takes no options; got steps"):
        purifier("pix2pix", "pix2pix").with_options(Options(steps=3))
