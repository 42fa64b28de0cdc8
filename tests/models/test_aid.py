"""AID-Purifier: its discriminator against Table 5."""

import pytest
import torch
from torch import nn

from models.networks import build_network, frozen_network

TAPS = {"taps": ["stem", "block4"], "channels": [16, 32]}


def discriminator(deeper: bool = True, **changed: object) -> nn.Module:
    """Seeded, with lively batch norm statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = build_network("aid", **{**TAPS, "deeper": deeper, **changed})
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm1d):
                nn.init.normal_(layer.running_mean, std=0.3)
                nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return network


def activations(n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.rand(n, 16, 8, 8, generator=generator), torch.rand(n, 32, 4, 4, generator=generator)]


@pytest.mark.parametrize(
    ("deeper", "table"),
    [
        (False, [(16, 1024), (1024, 1024), (32, 1024), (1024, 1024), (2048, 1024), (1024, 512), (512, 1)]),
        (
            True,  # A.2: one more before and after concatenating
            [
                *[(16, 1024), (1024, 1024), (1024, 1024), (32, 1024), (1024, 1024), (1024, 1024)],
                *[(2048, 1024), (1024, 1024), (1024, 512), (512, 1)],
            ],
        ),
    ],
)
def test_the_layers_are_those_of_table_5(deeper: bool, table: list[tuple[int, int]]) -> None:
    network = discriminator(deeper)
    linear = [(each.in_features, each.out_features) for each in network.modules() if isinstance(each, nn.Linear)]
    assert linear == table
    # Each hidden layer's norm has a scale and a shift, the last layer a bias.
    expected = sum(a * b for a, b in table) + sum(2 * b for _, b in table[:-1]) + 1
    assert sum(each.numel() for each in network.parameters()) == expected


def test_one_logit_an_image_from_the_mean_over_each_tap() -> None:
    network, seen = frozen_network(discriminator()), activations(3)
    logits = network(seen)
    assert logits.shape == (3,)
    pooled = [each.mean(dim=(2, 3), keepdim=True) for each in seen]
    assert torch.allclose(network(pooled), logits, atol=1e-5)


def test_an_images_logit_is_the_same_bits_in_any_batch() -> None:
    network, seen = frozen_network(discriminator()), activations(40)
    together = network(seen)
    for start, stop in ((0, 1), (1, 3), (5, 22), (7, 40)):
        assert torch.equal(network([each[start:stop] for each in seen]), together[start:stop])


def test_each_tap_needs_its_number_of_channels() -> None:
    with pytest.raises(ValueError, match="a number of channels for each tap; got 1 for 2"):
        discriminator(channels=[16])
