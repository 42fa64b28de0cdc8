"""The networks of SOAP Table 7 and of the robustness literature, and their frozen form."""

import pytest
import torch
from torch import Tensor, nn

from models import compiled
from models.classifiers import Classifier, architectures, build_classifier, frozen
from models.classifiers.preact import PreActBlock
from models.fused import fold_batch_norm
from models.pooling import Pooling

WITH_AUX = [
    ("fcn", {"aux": "decoder"}, (1, 28, 28)),
    ("cnn", {"aux": "decoder"}, (1, 28, 28)),
    ("resnet18-thin", {"aux": "rotation"}, (3, 32, 32)),
    ("wide-resnet", {"depth": 10, "widen": 2, "aux": "rotation"}, (3, 32, 32)),
]
EVERY = [
    *WITH_AUX,
    ("preactresnet18", {}, (3, 32, 32)),
    ("wide-resnet-preact", {"depth": 10, "widen": 2, "dropout": 0.3}, (3, 32, 32)),
    ("vgg16", {}, (3, 32, 32)),
    ("vgg19", {}, (3, 32, 32)),
]


def _each(networks: list[tuple]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("name", "arguments", "shape"), networks, ids=[name for name, *_ in networks])


every_architecture, every_with_aux = _each(EVERY), _each(WITH_AUX)


def test_every_architecture_is_tested() -> None:
    assert {name for name, *_ in EVERY} == set(architectures())


def images(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(4))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_thin_resnet_has_the_papers_size() -> None:
    assert parameters(build_classifier("resnet18-thin")) == 175_258


def test_fcn_size_by_hand() -> None:
    # 784 * 256 + 256, 256 * 128 + 128, 128 * 10 + 10; the decoder mirrors it.
    assert parameters(build_classifier("fcn")) == 200_960 + 32_896 + 1_290
    assert parameters(build_classifier("fcn", aux="decoder")) == 235_146 + 33_024 + 201_488


def test_cnn_size_by_hand() -> None:
    # 9 * 32 + 32, 9 * 32 * 64 + 64, BN 128; 3136 * 128 + 128, BN 256, 128 * 10 + 10.
    assert parameters(build_classifier("cnn")) == 320 + 18_496 + 128 + 401_536 + 256 + 1_290


def test_wide_resnet_28_10_size_by_hand() -> None:
    widths, channels, expected = (160, 320, 640), 16, 9 * 3 * 16 + 2 * 16
    for width in widths:
        for block in range(4):
            before = channels if block == 0 else width
            expected += 9 * before * width + 9 * width * width + 4 * width
            expected += before * width + 2 * width if block == 0 else 0
        channels = width
    with torch.device("meta"):
        network = build_classifier("wide-resnet")
    assert parameters(network) == expected + 640 * 10 + 10 == 36_481_434


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        # As counted in the public code of Wong et al.; TRADES (less the block that it never uses); kuangliu/pytorch-cifar (less
        # the 4,224 and 5,504 biases that its norms cancel).
        ("preactresnet18", {}, 11_172_170),
        ("wide-resnet-preact", {}, 46_160_474),
        ("wide-resnet-preact", {"depth": 28}, 36_479_194),
        ("vgg16", {}, 14_728_266 - 4_224),
        ("vgg19", {}, 20_040_522 - 5_504),
    ],
)
def test_sizes_known_from_the_literature(name: str, arguments: dict, expected: int) -> None:
    with torch.device("meta"):
        assert parameters(build_classifier(name, **arguments)) == expected


@every_architecture
def test_logits_shape(network, name: str, arguments: dict, shape: tuple[int, ...]) -> None:
    assert network(name, num_classes=7, **arguments)(images(shape)).shape == (2, 7)


@every_architecture
def test_every_weight_learns(network, name: str, arguments: dict, shape: tuple[int, ...]) -> None:
    classifier = network(name, **arguments).train()
    z = classifier.features(images(shape))
    outputs = [head(z) for head in (classifier.classifier_head, classifier.aux_head) if head is not None]
    sum(output.square().sum() for output in outputs).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in classifier.parameters())


@every_architecture
def test_an_image_has_the_same_bits_in_every_batch_where_the_network_says_so(
    network, name: str, arguments: dict, shape: tuple[int, ...]
) -> None:
    classifier = frozen(network(name, **arguments))
    x = torch.rand(9, *shape, generator=torch.Generator().manual_seed(4))
    # Large linear layers are where our own code computes them.
    assert classifier.batch_invariant == (name not in ("fcn", "cnn") or (name == "fcn" and compiled.available()))
    if classifier.batch_invariant:
        answers = [classifier(x[:size])[:1] for size in (1, 2, 3, 9)]
        assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_pooling_is_the_mean_and_gives_every_pixel_an_even_share_of_the_gradient() -> None:
    x = images((5, 7, 9)).contiguous(memory_format=torch.channels_last).requires_grad_()
    given = torch.rand(len(x), 5)
    found = Pooling()(x)
    assert torch.equal(found, x.mean((2, 3)))
    (gradient,) = torch.autograd.grad(found, x, given)
    assert torch.equal(gradient, (given / 63)[:, :, None, None].expand_as(x))
    assert gradient.stride()[2:] == (0, 0)  # nobody has written any pixel yet


@every_with_aux
def test_auxiliary_shapes(network, name: str, arguments: dict, shape: tuple[int, ...]) -> None:
    classifier = network(name, **arguments)
    x = images(shape)
    auxiliary = classifier.aux_head(classifier.features(x))
    assert auxiliary.shape == ((2, 4) if arguments["aux"] == "rotation" else x.shape)


def test_the_mean_and_deviation_are_inside() -> None:
    classifier = Classifier(nn.Flatten(), nn.Identity(), mean=(0.5, 0.25), std=(0.5, 0.25))
    x = torch.tensor([1.0, 1.0]).view(1, 2, 1, 1)
    assert classifier(x).tolist() == [[1.0, 3.0]]
    assert not classifier.state_dict()


@every_architecture
def test_frozen_copy_answers_as_the_network(network, name: str, arguments: dict, shape: tuple[int, ...]) -> None:
    original = network(name, **arguments)
    copy, x = frozen(original), images(shape)
    with torch.no_grad():
        assert torch.allclose(copy(x), original(x), atol=1e-5)


@every_with_aux
def test_frozen_copy_has_the_same_auxiliary_output(network, name: str, arguments: dict, shape: tuple[int, ...]) -> None:
    original = network(name, **arguments)
    copy, x = frozen(original), images(shape)
    with torch.no_grad():
        assert torch.allclose(copy.aux_head(copy.features(x)), original.aux_head(original.features(x)), atol=1e-5)


@every_architecture
def test_frozen_copy_gives_the_same_input_gradient(network, name: str, arguments: dict, shape: tuple[int, ...]) -> None:
    original = network(name, **arguments)
    x = images(shape).requires_grad_()
    one = torch.autograd.grad(original(x).square().sum(), x)[0]
    other = torch.autograd.grad(frozen(original)(x).square().sum(), x)[0]
    assert torch.allclose(one, other, atol=1e-5 * one.abs().max().item())


def test_freezing_leaves_the_original_alone(network) -> None:
    original = network("resnet18-thin").train()
    before = {name: value.clone() for name, value in original.state_dict().items()}
    copy = frozen(original)
    assert original.training
    assert all(parameter.requires_grad for parameter in original.parameters())
    assert original.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert not copy.training
    assert not any(parameter.requires_grad for parameter in copy.parameters())


def test_every_norm_behind_a_convolution_is_folded(network) -> None:
    def norms(module: nn.Module) -> int:
        return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())

    assert norms(frozen(network("resnet18-thin"))) == 0
    assert norms(frozen(network("wide-resnet", depth=10, widen=1))) == 3  # those behind a shortcut's sum
    assert norms(frozen(network("cnn"))) == 1  # behind a ReLU
    assert norms(frozen(network("vgg16"))) == 0
    assert norms(frozen(network("wide-resnet-preact", depth=10, widen=1))) == 4  # each block's first, and the last one


def test_folding_skips_dropout_between_convolution_and_norm() -> None:
    layers = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(0.9), nn.BatchNorm2d(2), nn.ReLU()).eval()
    nn.init.constant_(layers[2].running_mean, 0.3)
    x = torch.rand(1, 1, 3, 3)
    expected = layers(x)
    fold_batch_norm(layers)
    assert [type(layer).__name__ for layer in layers] == ["Conv2d", "ReLU"]
    assert torch.allclose(layers(x), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["fcn", "cnn"])
def test_mnist_networks_have_a_decoder_or_none(name: str) -> None:
    assert build_classifier(name).aux_head is None
    with pytest.raises(ValueError, match="auxiliary head 'rotation': the MNIST networks have 'decoder' or none"):
        build_classifier(name, aux="rotation")


def test_cifar_networks_have_a_rotation_head_or_none() -> None:
    assert build_classifier("resnet18-thin").aux_head is None
    with pytest.raises(ValueError, match="auxiliary head 'decoder': the CIFAR networks have 'rotation' or none"):
        build_classifier("resnet18-thin", aux="decoder")


def test_wide_resnet_depths_are_6n_plus_4() -> None:
    with pytest.raises(ValueError, match=r"wide-resnet depth is 6n \+ 4 .*; got 18"):
        build_classifier("wide-resnet", depth=18)


@pytest.mark.parametrize(
    ("architecture", "arguments", "taps"),
    [
        ("resnet18-thin", {}, ["stem", *(f"block{i}" for i in range(1, 7))]),
        ("wide-resnet", {"depth": 10, "widen": 1}, ["stem", "block1", "block2", "block3"]),
        ("preactresnet18", {}, ["stem", *(f"block{i}" for i in range(1, 9))]),
        ("wide-resnet-preact", {"depth": 10, "widen": 1}, ["stem", "block1", "block2", "block3"]),
        ("vgg16", {"width": 16}, [f"block{i}" for i in range(1, 6)]),
    ],
)
def test_taps_are_the_encoders_activations_on_the_way_to_z(architecture, arguments, taps):
    network = frozen(build_classifier(architecture, **arguments))
    x = torch.rand(3, 3, 32, 32)
    assert network.taps == taps
    first, last = network.tapped(x, [taps[0], taps[-1]])
    assert first.shape[2:] == (32, 32)
    for name, activation in ((taps[0], first), (taps[-1], last)):
        assert torch.allclose(network.from_tap(name, activation), network.features(x), atol=1e-5)


def test_tapping_goes_no_deeper_than_asked():
    network = frozen(build_classifier("resnet18-thin"))
    ran = []
    for i, layer in enumerate(network.encoder.children()):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    network.tapped(torch.rand(2, 3, 32, 32), ["block1"])
    assert ran == [0, 2]  # the folded stem, with its ReLU in it, and the block


def test_taps_of_a_lone_image_are_those_it_has_in_company():
    network = frozen(build_classifier("resnet18-thin"))
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(network.tapped(x[:1], ["block3"])[0], network.tapped(x, ["block3"])[0][:1])


def test_an_unknown_tap_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no tap layer9; .* stem, block1"):
        build_classifier("resnet18-thin").tapped(torch.rand(2, 3, 32, 32), ["layer9"])


def test_pre_activation_wide_resnet_depths_are_6n_plus_4() -> None:
    with pytest.raises(ValueError, match=r"wide-resnet-preact depth is 6n \+ 4 .*; got 12"):
        build_classifier("wide-resnet-preact", depth=12)


def test_a_block_that_keeps_the_shape_adds_to_its_input_untouched() -> None:
    block = PreActBlock(4, 4, 1).eval()
    nn.init.zeros_(block.body[-1].weight)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x)


def test_a_block_sees_only_what_its_norm_lets_through() -> None:
    block = PreActBlock(4, 8, 2).eval()
    nn.init.constant_(block.norm.bias, -100.0)
    assert torch.equal(block(torch.randn(1, 4, 8, 8)), block(torch.randn(1, 4, 8, 8)))


def test_vgg_blocks_are_layers_of_the_encoder_each_as_large_as_its_convolutions() -> None:
    x, shapes = images((3, 32, 32)), []
    for block in list(build_classifier("vgg19", width=4).encoder)[:5]:
        x = block(x)
        shapes.append(x.shape[1:3])
    assert shapes == [(4, 32), (8, 16), (16, 8), (32, 4), (32, 2)]
