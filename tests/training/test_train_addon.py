"""Training of purifiers' own networks: the recipes that ship, and what can go wrong."""

import pytest
import torch

from models.catalog import Catalog
from models.checkpoint import open_checkpoint
from training.loop import TrainingError
from training.recipe import AddOnRecipe, load_recipe, recipe_names
from training.train_addon import train_addon

ADDONS = [name for name in recipe_names() if not name.endswith("-paper") and isinstance(load_recipe(name), AddOnRecipe)]


@pytest.mark.parametrize("name", ADDONS)
def test_every_recipe_trains_to_an_add_on_that_serves(name, tiny, beside, data, tmp_path, quiet):
    recipe = tiny(name, epochs=1)
    folder = beside(recipe)
    card = train_addon(recipe, out=tmp_path / "out", catalog=Catalog.open([folder]), data=data, progress=quiet)
    catalog = Catalog.open([folder, tmp_path / "out"])
    for purifier in card.purifiers:
        defense = catalog.defense(recipe.model, purifier)
        assert defense.purify(torch.rand(2, 3, 32, 32), seeds=[1, 2]).logits.shape == (2, 10)
        assert len(defense.addons) == 1
    assert card.training["recipe"]["name"] == name
    assert card.classifier_sha256 == open_checkpoint(folder).card.weights_sha256


@pytest.mark.parametrize("name", ADDONS)
def test_an_interrupted_training_resumes_with_identical_results(name, tiny, beside, data, tmp_path, quiet):
    recipe = tiny(name, epochs=2)
    catalog = Catalog.open([beside(recipe)])
    wishes = {"catalog": catalog, "data": data, "progress": quiet}
    straight = train_addon(recipe, out=tmp_path / "straight", **wishes)
    with pytest.MonkeyPatch.context() as patched:
        _stop_after_an_epoch(patched)
        with pytest.raises(KeyboardInterrupt):
            train_addon(recipe, out=tmp_path / "broken", **wishes)
    assert train_addon(recipe, out=tmp_path / "broken", **wishes).weights_sha256 == straight.weights_sha256


def _stop_after_an_epoch(patched):
    from training.loop import Loop

    save = Loop._save

    def once(self):
        save(self)
        raise KeyboardInterrupt

    patched.setattr(Loop, "_save", once)


def test_a_training_beside_another_classifier_is_not_continued(tiny, beside, data, tmp_path, quiet):
    recipe = tiny(ADDONS[0], epochs=1)
    first = Catalog.open([beside(recipe)])
    train_addon(recipe, out=tmp_path / "out", catalog=first, data=data, progress=quiet)
    (loaded,) = first.checkpoints()
    loaded.checkpoint.card = loaded.checkpoint.card.model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(TrainingError, match="--restart"):
        train_addon(recipe, out=tmp_path / "out", catalog=first, data=data, progress=quiet)


def test_a_missing_classifier_is_told_with_those_there_are(tiny, beside, data, tmp_path, quiet):
    recipe = tiny(ADDONS[0])
    catalog = Catalog.open([beside(recipe)])
    other = recipe.model_copy(update={"classifier": "resnet99"})
    message = rf"needs classifier cifar10/resnet99; there are cifar10/{recipe.classifier}. --zoo"
    with pytest.raises(TrainingError, match=message):
        train_addon(other, out=tmp_path / "out", catalog=catalog, data=data, progress=quiet)


def test_a_classifier_of_other_images_is_refused(tiny, beside, data, tmp_path, quiet):
    recipe = tiny(ADDONS[0])
    catalog = Catalog.open([beside(recipe)])
    small = recipe.model_copy(update={"input": recipe.input.model_copy(update={"height": 28})})
    with pytest.raises(TrainingError, match=r"the recipe says .*height=28"):
        train_addon(small, out=tmp_path / "out", catalog=catalog, data=data, progress=quiet)
