"""The generators of NRP and Pix2Pix."""

import pytest
import torch
from torch import nn

from models.networks import build_network, frozen_network
from models.networks.generator import Generator

SMALL = {
    "nrp": {"width": 8, "blocks": 1, "growth": 4},
    "nrp-resg": {"width": 8, "blocks": 2},
    "pix2pix": {"width": 4},
}


def seeded(name: str) -> Generator:
    """A small generator with livelier weights than fresh ones."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = build_network(name, **SMALL[name])
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight)
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.running_mean, std=0.3)
    made = frozen_network(network)
    assert isinstance(made, Generator)
    return made


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("name", "parameters"), [("nrp", 16_550_275), ("nrp-resg", 1_702_211)])
def test_by_default_nrp_has_as_many_parameters_as_the_published_weights(name: str, parameters: int) -> None:
    network = build_network(name)
    assert sum(value.numel() for value in network.parameters()) == parameters  # 16.55 and 1.70 million


def test_layers_carry_the_names_of_the_published_weights() -> None:
    dense = build_network("nrp").state_dict()
    assert len(dense) == 2 * (2 + 23 * 3 * 5)
    assert {"conv_first.weight", "RRDB_trunk.22.RDB3.conv5.bias", "trunk_conv.weight"} <= set(dense)
    assert dense["RRDB_trunk.0.RDB1.conv4.weight"].shape == (32, 64 + 3 * 32, 3, 3)
    residual = build_network("nrp-resg").state_dict()
    assert len(residual) == 2 * (2 + 23 * 2)
    assert {"conv_first.bias", "recon_trunk.22.conv2.weight", "conv_last.bias"} <= set(residual)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 100)])
def test_any_size_comes_back_in_range(name: str, size: tuple[int, int]) -> None:
    x = images(2, 3, *size)
    y = seeded(name)(x)
    assert y.shape == x.shape
    assert (y.min() >= 0) & (y.max() <= 1)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(32, 32), (37, 45)])
def test_the_size_of_the_batch_changes_no_bit(name: str, size: tuple[int, int]) -> None:
    network, x = seeded(name), images(7, 3, *size)
    whole = network(x)
    for count in (1, 2, 3, 5):
        assert torch.equal(network(x[:count]), whole[:count]), count


@pytest.mark.parametrize("name", SMALL)
def test_no_output_depends_on_inputs_beyond_the_reach(name: str) -> None:
    network = seeded(name).double()
    size, far = 32 + 16 * (2 * network.reach // 16 + 1), 0
    for position in range(size // 2, size // 2 + network.stride):
        x = images(1, 3, size, size).double().expand(2, -1, -1, -1).clone()
        x[1, :, position] += 0.5  # a whole row of pixels
        one, other = network.translate(x)
        changed = (one - other).abs().amax(dim=(0, 2)).nonzero()
        far = max(far, int((changed - position).abs().max()))
    assert far == network.reach  # no less either: tiles would overlap more than they need


def test_a_generator_in_training_is_not_clamped() -> None:
    network = seeded("nrp-resg").train()
    assert network(images(2, 3, 32, 32)).max() > 1
