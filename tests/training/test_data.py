import numpy as np
import pytest
import torch
from PIL import Image

from training.data import DataError, data_root, load_data


def test_shipped_subsets_load_as_uint8_with_their_class_names(data):
    cifar, mnist = load_data("cifar10", "test", data), load_data("mnist", "train", data)
    assert cifar.images.shape == (256, 32, 32, 3)
    assert mnist.images.shape == (256, 28, 28, 1)
    assert cifar.images.dtype == mnist.images.dtype == torch.uint8
    assert cifar.classes[3] == "cat"


def test_floats_are_nchw_in_zero_one(data):
    x = load_data("cifar10", "test", data).floats(0, 5)
    assert x.shape == (5, 3, 32, 32)
    assert 0 <= x.min() < x.max() <= 1


@pytest.mark.parametrize("name", ["cifar10", "mnist", "photos"])
def test_a_missing_data_set_says_where_it_was_looked_for_and_what_to_do(name, tmp_path):
    with pytest.raises(DataError, match="UNPERTURB_DATA") as caught:
        load_data(name, "train", tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_broken_npz_says_what_was_expected(tmp_path):
    (tmp_path / "cifar10.npz").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="expected arrays x_train"):
        load_data("cifar10", "train", tmp_path)


def test_an_npz_with_pickled_objects_is_refused(tmp_path):
    np.savez(
        tmp_path / "cifar10.npz", x_train=np.array([{}], dtype=object), y_train=np.zeros(1), classes=np.array(["a"])
    )
    with pytest.raises(DataError, match="can't be read"):
        load_data("cifar10", "train", tmp_path)


def test_class_folders_become_labels_in_alphabetical_order(tmp_path):
    for name, colour in (("dog", 10), ("cat", 200)):
        folder = tmp_path / "pets" / "train" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (colour,) * 3).save(folder / "1.png")
    found = load_data("pets", "train", tmp_path)
    assert found.classes == ("cat", "dog")
    assert found.images[0, 0, 0, 0] == 200


def test_images_of_different_sizes_are_named(tmp_path):
    folder = tmp_path / "pets" / "train" / "cat"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    Image.new("RGB", (9, 8)).save(folder / "2.png")
    with pytest.raises(DataError, match=r"2\.png is 9x8.*resize"):
        load_data("pets", "train", tmp_path)


def test_the_environment_names_the_data_root(monkeypatch, tmp_path):
    monkeypatch.setenv("UNPERTURB_DATA", str(tmp_path))
    assert data_root() == tmp_path
