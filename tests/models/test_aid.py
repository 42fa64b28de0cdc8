"""AID-Purifier: its discriminator against Table 5, and Alg. 2."""

import pytest
import torch
from torch import Tensor, nn

from models import compiled
from models.classifiers import Classifier, build_classifier, frozen
from models.networks import build_network, frozen_network
from models.networks.aid import AidDiscriminator
from models.purifiers import Material, Purifier, build_purifier
from models.purifiers.aid import AdversarialProbability

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


PAPER = {"selection": "fixed", "budgets": [8 / 255], "step_size": 2 / 255, "steps": 10}  # Table 6, CIFAR-10


@pytest.fixture
def classifier(network) -> Classifier:
    return frozen(network("resnet18-thin"))


def purifier(classifier: Classifier, **changed: object) -> Purifier:
    own = frozen_network(discriminator())
    return build_purifier("aid", Material(classifier, {**PAPER, **changed}, (), own))


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def p_adv(classifier: Classifier, x: Tensor) -> Tensor:
    """D(h_low(x), h_high(x)), the plain way."""
    return frozen_network(discriminator())(classifier.tapped(x, TAPS["taps"])).sigmoid()


def test_purification_is_alg_2_and_tells_p_adv(classifier: Classifier) -> None:
    x = images()
    x_pur = x.clone()
    for _ in range(10):  # the algorithm as it is printed
        x_pur.requires_grad_()
        (gradient,) = torch.autograd.grad(p_adv(classifier, x_pur).sum(), x_pur)
        x_pur = x_pur.detach() - 2 / 255 * gradient.sign()
        x_pur = x_pur.clamp(x - 8 / 255, x + 8 / 255).clamp(0, 1)
    found = purifier(classifier).purify(x)
    # Where a gradient is nearly 0, rounding decides its sign.
    assert ((found.image - x_pur).abs() < 1e-5).float().mean() > 0.98
    assert torch.allclose(found.objective_before, p_adv(classifier, x), atol=1e-5)
    assert torch.allclose(found.objective_after, p_adv(classifier, found.image), atol=1e-5)
    assert (found.objective_after < found.objective_before).all()
    assert (found.image - x).abs().max() <= 8 / 255 + 1e-6


def test_an_image_that_is_surely_adversarial_is_purified_too(classifier: Classifier) -> None:
    own = frozen_network(discriminator())
    with torch.no_grad():
        own.output.bias += 200  # p_adv is exactly 1, and the sigmoid's gradient exactly 0
    x = images()
    found = build_purifier("aid", Material(classifier, PAPER, (), own)).purify(x)
    assert found.objective_before.tolist() == [1.0] * len(x)
    assert (own(classifier.tapped(found.image, own.taps)) < own(classifier.tapped(x, own.taps))).all()


def test_the_objective_is_p_adv_and_differentiable(classifier: Classifier) -> None:
    x = images().requires_grad_()
    made = purifier(classifier)
    ours, plain = made.objective(x), p_adv(classifier, x)
    assert torch.allclose(ours, plain, atol=1e-6)
    (one,), (other,) = (torch.autograd.grad(each.sum(), x) for each in (ours, plain))
    assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(("selection", "tails"), [("fixed", 1), ("best-iterate", 11)])
def test_no_layer_runs_twice_for_an_iterate(classifier: Classifier, selection: str, tails: int) -> None:
    made, calls = purifier(classifier, selection=selection), {}
    layers = list(classifier.encoder.children())
    blocks = [layer for layer in layers if type(layer).__name__ == "Block"]
    for name, layer in {"first": layers[0], "block4": blocks[3], "block5": blocks[4]}.items():

        def count(_module: nn.Module, _inputs: object, _output: Tensor, name: str = name) -> None:
            calls[name] = calls.get(name, 0) + 1

        layer.register_forward_hook(count)
    found = made.purify(images(2))
    assert calls == {"first": 11, "block4": 11, "block5": tails}
    assert (found.forward_passes.tolist(), found.backward_passes.tolist()) == ([11, 11], [10, 10])
    assert (made.info.forward_passes, made.info.backward_passes) == (11, 10)


def test_the_logits_go_on_from_the_higher_tap_whatever_the_order(classifier: Classifier) -> None:
    own = AidDiscriminator(taps=["block4", "stem"], channels=[32, 16], deeper=False).eval()
    x, calls = images(1), []  # alone: a classifier then doubles what it sees
    expected = classifier(x)
    next(each for each in classifier.encoder if type(each).__name__ == "Block").register_forward_hook(
        lambda *_: calls.append(1)
    )
    assert torch.equal(AdversarialProbability(classifier, own)(x).logits, expected)
    assert len(calls) == 1


def test_a_classifier_without_the_tap_is_refused() -> None:
    own = AidDiscriminator(taps=["stem", "block9"], channels=[16, 64], deeper=False)
    with pytest.raises(ValueError, match="looks at tap block9; this classifier has stem, block1"):
        AdversarialProbability(frozen(build_classifier("resnet18-thin")), own)
    with pytest.raises(
        ValueError, match="needs a network of its own of type AidDiscriminator; its checkpoint has none"
    ):
        build_purifier("aid", Material(frozen(build_classifier("resnet18-thin")), PAPER, ()))


@pytest.mark.skipif(not compiled.available(), reason="our own convolutions aren't compiled here")
def test_a_frozen_discriminator_computes_no_rows_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    network, rows = frozen_network(discriminator(width=64)), list[int]()
    whole, x = network._classified, activations(5)
    monkeypatch.setattr(network, "_classified", lambda pooled: rows.append(len(pooled)) or whole(pooled))
    together = network(x)
    alone = [network([each[i : i + 1] for each in x]) for i in range(5)]
    assert rows == [5, 1, 1, 1, 1, 1]
    assert torch.equal(torch.cat(alone), together)
