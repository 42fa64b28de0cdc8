"""Checkpoint folders: what is written is read again, and anything odd is a clear CheckpointError."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from models.checkpoint import CARD, WEIGHTS, Checkpoint, CheckpointError, read_card, write_card


def edit_card(folder: Path, **fields: Any) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, **fields}))


def put_weights(folder: Path, weights: bytes) -> None:
    """Replace the weights, and the card's checksum with them, as an attacker would."""
    (folder / WEIGHTS).write_bytes(weights)
    edit_card(folder, weights_sha256=hashlib.sha256(weights).hexdigest())


def edit_weights(folder: Path, **changed: torch.Tensor | None) -> None:
    tensors = {**load((folder / WEIGHTS).read_bytes()), **changed}
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / WEIGHTS)
    put_weights(folder, (folder / WEIGHTS).read_bytes())


def test_a_saved_network_comes_back(save, network) -> None:
    original, found = network("fcn", aux="decoder"), Checkpoint.open(save()).classifier().eval()
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(found(x), original(x))
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_a_card_comes_back(tmp_path: Path, card) -> None:
    write_card(tmp_path, card)
    assert read_card(tmp_path) == card
    assert '"soap-dr": [0.0, 1.0, 2.0, ' in (tmp_path / CARD).read_text()  # number lists stay on one line


def test_channels_last_networks_are_saved_too(tmp_path: Path, network, card_fields) -> None:
    from models.checkpoint import save_checkpoint

    original = network("cnn").to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path, original, {**card_fields, "architecture": "cnn", "arguments": {}})
    x = torch.rand(2, 1, 28, 28)
    assert torch.allclose(Checkpoint.open(tmp_path).classifier().eval()(x), original(x), atol=1e-5)


def test_wrong_checksum(save) -> None:
    folder = save()
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"its SHA-256 is .*, the card says .*; copy the folder again"):
        Checkpoint.open(folder)


def test_missing_weights(save) -> None:
    folder = save()
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"weights.safetensors: can't be read \(No such file or directory\)"):
        Checkpoint.open(folder)


def test_missing_card(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"card.json: can't be read \(No such file or directory\)"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe\x00", b"null"])
def test_a_broken_card(save, text: bytes) -> None:
    folder = save()
    (folder / CARD).write_bytes(text)
    with pytest.raises(CheckpointError, match=r"card.json: not a valid card"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"colour": "blue"}, "colour"),
        ({"format": 2}, "format"),
        ({"model": "../mnist"}, "model"),
        ({"weights_sha256": "ab"}, "weights_sha256"),
        ({"input": {"channels": 2, "height": 28, "width": 28}}, "input.channels"),
        ({"purifiers": {"none": {"kind": "none", "paper": "?"}}}, "purifiers.none.paper"),
        ({"calibration": {"soap-dr": [1.0] * 100}}, "calibration of 'soap-dr' must be 101 ascending percentiles"),
        ({"calibration": {"soap-dr": [*range(100), 0]}}, "calibration of 'soap-dr' must be 101 ascending percentiles"),
        ({"measured": [{"attack": "pgd", "purifier": "none", "accuracy": 73.0, "n": 9, "detail": ""}]}, "accuracy"),
    ],
)
def test_a_wrong_field_is_named(save, fields: dict, message: str) -> None:
    folder = save()
    edit_card(folder, **fields)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classifier_head.bias": None}, "Missing key.*classifier_head.bias"),
        ({"extra.weight": torch.zeros(1)}, "Unexpected key.*extra.weight"),
        ({"classifier_head.bias": torch.zeros(9)}, "size mismatch for classifier_head.bias"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_weights_that_do_not_fit(save, changed: dict, message: str) -> None:
    folder = save()
    edit_weights(folder, **changed)
    with pytest.raises(CheckpointError, match=f"(?s)weights and card don't fit together.*{message}"):
        Checkpoint.open(folder).classifier()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "vgg"}, "unknown architecture 'vgg'"),
        ({"arguments": {"aux": "rotation"}}, "auxiliary head 'rotation'"),
        ({"arguments": {"depth": 3}}, "unexpected keyword argument 'depth'"),
        ({"arguments": {"architecture": "cnn"}}, "unexpected keyword argument 'architecture'"),
        ({"arguments": {"num_classes": "ten"}}, "architecture 'fcn'"),
        ({"arguments": {"num_classes": -1}}, "weights and card don't fit together"),
    ],
)
def test_a_network_that_can_not_be_built(save, fields: dict, message: str) -> None:
    folder = save()
    edit_card(folder, **fields)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder).classifier()


class Explosive:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle ran its code",)


@pytest.mark.parametrize(
    "weights", [pickle.dumps(Explosive()), b"", b"not weights at all"], ids=["pickle", "empty", "text"]
)
def test_weights_that_are_no_safetensors_are_refused(save, weights: bytes) -> None:
    folder = save()
    put_weights(folder, weights)
    with pytest.raises(CheckpointError, match="weights and card don't fit together"):
        Checkpoint.open(folder).classifier()


def test_a_torch_file_is_refused(save, network, tmp_path: Path) -> None:
    folder = save()
    torch.save(network("fcn", aux="decoder").state_dict(), tmp_path / "weights.pth")
    put_weights(folder, (tmp_path / "weights.pth").read_bytes())
    with pytest.raises(CheckpointError, match="weights and card don't fit together"):
        Checkpoint.open(folder).classifier()
