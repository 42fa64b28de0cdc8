import pytest

from models.classifiers import build_classifier
from models.networks import build_network
from training.recipe import AddOnRecipe, RecipeError, load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid_and_names_a_network(name):
    recipe = load_recipe(name)
    if isinstance(recipe, AddOnRecipe):
        build_network(recipe.network, **recipe.arguments)
    else:
        build_classifier(recipe.architecture, **recipe.arguments)
    assert recipe.purifiers


def test_each_short_recipe_has_its_full_length_twin_but_those_that_continue_another():
    names = set(recipe_names())
    continuing = {name for name in names if name.endswith("-fine")}
    paper = {name for name in names if name.endswith("-paper")}
    short = names - continuing - paper
    assert {f"{name}-paper" for name in short} <= paper
    # The others are larger networks: SHORT-NETWORK-paper.
    assert all(any(name.startswith(f"{each}-") for each in short) for name in paper)
    assert {name.removesuffix("-fine") for name in continuing} <= names


def test_an_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(RecipeError, match="soap-lc"):
        load_recipe("soap-xy")


def test_an_unknown_field_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('epocs = 3\nsummary = "x"\n')
    with pytest.raises(RecipeError, match="epocs"):
        load_recipe(str(path))


def test_overrides_replace_fields_and_are_validated():
    assert load_recipe("natural", {"epochs": 3}).epochs == 3
    with pytest.raises(RecipeError, match="epochs"):
        load_recipe("natural", {"epochs": 0})


def test_purifier_settings_do_not_shape_the_weights():
    recipe = load_recipe("soap-lc")
    assert recipe.shaping() == recipe.model_copy(update={"purifiers": {}}).shaping()
    assert recipe.shaping() != recipe.model_copy(update={"alpha": 2.0}).shaping()
