"""The registries of purifier kinds and architectures."""

import pytest

from models.classifiers import architectures, build_classifier
from models.classifiers.base import register_architecture
from models.purifiers import Material, build_purifier, kinds
from models.purifiers.base import register


def test_a_kind_can_be_taken_once() -> None:
    with pytest.raises(ValueError, match="purifier kind 'none' is already registered"):
        register("none")(lambda material: None)


def test_an_unknown_kind_is_answered_with_the_known_ones(network) -> None:
    with pytest.raises(ValueError, match=r"unknown purifier kind 'soap'; known: .*none, .*soap-dr, soap-lc, soap-rp"):
        build_purifier("soap", Material(network("fcn"), {}, ()))


def test_none_has_no_settings(network) -> None:
    with pytest.raises(ValueError, match=r"purifier 'none' has no settings; got \['steps'\]"):
        build_purifier("none", Material(network("fcn"), {"steps": 5}, ()))


def test_the_four_kinds_of_soap_are_registered() -> None:
    assert set(kinds()) >= {"none", "soap-dr", "soap-rp", "soap-lc"}


def test_an_architecture_can_be_taken_once() -> None:
    with pytest.raises(ValueError, match="architecture 'fcn' is already registered"):
        register_architecture("fcn")(build_classifier)


def test_an_unknown_architecture_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown architecture 'resnet50'; known: cnn, fcn, preactresnet18"):
        build_classifier("resnet50")


@pytest.mark.parametrize("architecture", architectures())
def test_an_unknown_argument_is_named(architecture: str) -> None:
    with pytest.raises(
        ValueError, match=f"architecture '{architecture}': .*unexpected keyword argument 'architecture'"
    ):
        build_classifier(architecture, **{"architecture": 3})
