"""Foreign .pth files: tensors only, every one accounted for, and the same function afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.classifiers import build_classifier
from models.convert import ConversionError, convert

Write = Callable[[Any], Path]
NORMALISED = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # the foreign networks below don't normalise


class ForeignBlock(nn.Module):
    """A residual block with conv biases, as in the networks that SOAP's public code trains."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride=stride), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        body = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(body + self.shortcut(x))


class ForeignResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(ForeignBlock(16, 16, 1), ForeignBlock(16, 16, 1))
        self.layer2 = nn.Sequential(ForeignBlock(16, 32, 2), ForeignBlock(32, 32, 1))
        self.layer3 = nn.Sequential(ForeignBlock(32, 64, 2), ForeignBlock(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(z.mean((2, 3)))


@pytest.fixture
def foreign() -> ForeignResNet:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        network = ForeignResNet().eval()
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.running_mean)
                nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return network


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(content: Any) -> Path:
        torch.save(content, tmp_path / "foreign.pth")
        return tmp_path / "foreign.pth"

    return to_file


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights.items()}


def test_a_foreign_resnet_is_the_same_function_afterwards(foreign: ForeignResNet, write: Write) -> None:
    found = convert(write(foreign.state_dict()), build_classifier, "resnet18-thin", NORMALISED)
    x = torch.rand(4, 3, 32, 32)
    assert torch.allclose(found.network.eval()(x), foreign(x), atol=1e-4)
    assert (found.unplaced, found.unfilled) == ((), ())
    assert found.placed["layer2.0.shortcut.0.weight"] == "encoder.5.shortcut.0.weight"


def test_biases_before_a_norm_are_folded_and_reported(foreign: ForeignResNet, write: Write) -> None:
    found = convert(write(foreign.state_dict()), build_classifier, "resnet18-thin", NORMALISED)
    convolutions = [name for name, layer in foreign.named_modules() if isinstance(layer, nn.Conv2d)]
    assert sorted(found.folded) == sorted(f"{name}.bias" for name in convolutions)
    mean = found.network.state_dict()["encoder.1.running_mean"]
    assert torch.allclose(mean, foreign.bn1.running_mean - foreign.conv1.bias)


@pytest.mark.parametrize(
    "nested",
    [
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {"model": prefixed("module.", weights)},
        lambda weights: {"model": {"state_dict": prefixed("module.", weights)}, "optimizer": {}},
    ],
)
def test_common_nestings_are_unwrapped(foreign: ForeignResNet, write: Write, nested: Callable[[Any], Any]) -> None:
    found = convert(write(nested(foreign.state_dict())), build_classifier, "resnet18-thin", NORMALISED)
    assert torch.equal(found.network.state_dict()["encoder.0.weight"], foreign.conv1.weight)
    assert found.placed["conv1.weight"] == "encoder.0.weight"


def test_our_own_names_are_placed_exactly(network, write: Write) -> None:
    original = network("cnn", aux="decoder")
    found = convert(write(original.state_dict()), build_classifier, "cnn", {"aux": "decoder"})
    assert all(theirs == ours for theirs, ours in found.placed.items())
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in found.network.state_dict().items())


def test_an_autoencoder_is_placed_by_order(write: Write) -> None:
    # The layers of SOAP's public FCN autoencoder, in its order.
    sizes = {"fc1": (784, 256), "fc2": (256, 128), "fc3": (128, 256), "fc4": (256, 784), "cls": (128, 10)}
    theirs = nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})
    found = convert(write(theirs.state_dict()), build_classifier, "fcn", {"aux": "decoder"})
    assert found.placed["cls.bias"] == "classifier_head.bias"
    assert found.placed["fc4.weight"] == "aux_head.2.weight"


def test_a_name_can_be_given(network, write: Write) -> None:
    weights = network("fcn").state_dict()
    renamed = {key.replace("encoder.1.", "first."): value for key, value in weights.items()}
    renamed["last_bias"] = renamed.pop("classifier_head.bias")
    rename = {"first": "encoder.1", "last_bias": "classifier_head.bias"}
    found = convert(write(renamed), build_classifier, "fcn", {}, rename)
    assert found.placed["first.weight"] == "encoder.1.weight"
    assert found.placed["last_bias"] == "classifier_head.bias"


def test_what_is_left_over_is_an_error(foreign: ForeignResNet, write: Write) -> None:
    weights = {**foreign.state_dict(), "fc1.weight": torch.zeros(4, 64), "fc1.bias": torch.zeros(4)}
    with pytest.raises(ConversionError, match=r"unplaced: fc1.weight, fc1.bias; unfilled: nothing; name their places"):
        convert(write(weights), build_classifier, "resnet18-thin", NORMALISED)


def test_what_stays_empty_is_an_error(foreign: ForeignResNet, write: Write) -> None:
    path = write(foreign.state_dict())
    with pytest.raises(ConversionError, match=r"unplaced: nothing; unfilled: aux_head.weight, aux_head.bias"):
        convert(path, build_classifier, "resnet18-thin", {"aux": "rotation"})
    found = convert(path, build_classifier, "resnet18-thin", {"aux": "rotation"}, allow_partial=True)
    assert found.unfilled == ("aux_head.weight", "aux_head.bias")


def test_different_counts_of_one_shape_are_never_guessed(foreign: ForeignResNet, write: Write) -> None:
    weights = {key: value for key, value in foreign.state_dict().items() if not key.startswith("layer3.1.conv2")}
    found = convert(write(weights), build_classifier, "resnet18-thin", NORMALISED, allow_partial=True)
    assert {"layer3.0.conv2.weight", "layer3.1.conv1.weight"} <= set(found.unplaced)
    assert "layer3.0.conv2.bias" in found.unplaced
    assert sum(key.endswith(".weight") and "encoder" in key for key in found.unfilled) == 3


def test_a_bias_without_a_norm_behind_it_is_not_dropped(write: Write) -> None:
    ours = build_classifier("wide-resnet", depth=10, widen=1).state_dict()
    second = next(key for key in ours if key.endswith("body.4.weight"))  # its norm comes after the shortcut's sum
    weights = {**ours, second.replace("weight", "bias"): torch.ones(len(ours[second]))}
    with pytest.raises(ConversionError, match=r"unplaced: encoder.3.body.4.bias; unfilled: nothing"):
        convert(write(weights), build_classifier, "wide-resnet", {"depth": 10, "widen": 1})


class Explosive:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle ran its code",)


@pytest.mark.parametrize("content", [{"state_dict": Explosive()}, nn.Linear(1, 1)], ids=["code", "module"])
def test_a_pickle_with_code_is_refused(write: Write, content: Any) -> None:
    with pytest.raises(ConversionError, match="refused, it is no file of plain tensors"):
        convert(write(content), build_classifier, "fcn", {})


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, torch.zeros(2), [torch.zeros(2)]], ids=str)
def test_a_file_without_a_state_dict_is_named(write: Write, content: Any) -> None:
    with pytest.raises(ConversionError, match="no state dict here"):
        convert(write(content), build_classifier, "fcn", {})


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"missing.pth: can't be read"):
        convert(tmp_path / "missing.pth", build_classifier, "fcn", {})
    (tmp_path / "page.pth").write_text("<!doctype html>")
    with pytest.raises(ConversionError, match=r"page.pth: refused"):
        convert(tmp_path / "page.pth", build_classifier, "fcn", {})
