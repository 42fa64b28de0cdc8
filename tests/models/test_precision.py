"""bf16, which somebody must ask for: networks compute in it, and nobody outside of them sees it."""

import pickle

import pytest
import torch
from torch import Tensor

from models.catalog import Catalog, Defense
from models.classifiers import build_classifier, frozen
from models.networks import build_network, frozen_network


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def defense(precision: str, purifier: str) -> Defense:
    return Catalog.open(precision=precision).defense("cifar10", purifier)


def test_nobody_gets_it_unasked() -> None:
    assert Catalog.open().defense("cifar10", "none").classifier.precision == "fp32"
    network = frozen(build_classifier("resnet18-thin"))
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


def test_the_encoder_computes_in_it_and_the_rest_does_not(network, x: Tensor) -> None:
    made = network("resnet18-thin")
    exact, rough = frozen(made), frozen(made, precision="bf16")
    assert {weight.dtype for weight in rough.encoder.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in rough.classifier_head.parameters()} == {torch.float32}
    (tapped,) = rough.tapped(x, ["block2"])
    image = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(rough(image).square().sum(), image)
    outside = rough(x), rough.features(x), tapped, rough.from_tap("block2", tapped), gradient
    assert {each.dtype for each in outside} == {torch.float32}
    assert not torch.equal(rough(x), exact(x))
    assert torch.allclose(rough(x), exact(x), atol=0.05 * float(exact(x).abs().max()))


def test_a_generator_computes_in_it(x: Tensor) -> None:
    network = build_network("nrp-resg", width=8, blocks=2)
    exact, rough = frozen_network(network), frozen_network(network, precision="bf16")
    assert {weight.dtype for weight in rough.parameters()} == {torch.bfloat16}
    assert rough(x).dtype == torch.float32
    assert 0 < float((rough(x) - exact(x)).abs().max()) < 0.05


@pytest.mark.parametrize("purifier", ["soap-lc", "aid", "nrp", "reverse"])
def test_a_catalogs_networks_answer_in_it_to_the_same_bits_in_every_batch(x: Tensor, purifier: str) -> None:
    rough = defense("bf16", purifier)
    assert rough.classifier.precision == "bf16"
    found = rough.purify(x, seeds=range(5))
    assert (found.image.dtype, found.logits.dtype) == (torch.float32, torch.float32)
    assert torch.equal(rough.purify(x[:1], seeds=range(1)).logits, found.logits[:1])
    assert not torch.equal(found.logits, defense("fp32", purifier).purify(x, seeds=range(5)).logits)


def test_it_travels_with_the_networks(x: Tensor) -> None:
    rough = defense("bf16", "none").classifier
    assert torch.equal(pickle.loads(pickle.dumps(rough))(x), rough(x))
