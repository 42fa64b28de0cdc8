import json

import pytest
import torch

from models.catalog import Catalog
from models.checkpoint import Checkpoint
from training.loop import TrainingError
from training.recipe import Recipe, load_recipe, recipe_names
from training.train import learning_rate, train

SHORT = [name for name in recipe_names() if not name.endswith("-paper")]
CLASSIFIERS = [name for name in SHORT if isinstance(load_recipe(name), Recipe)]


class Interrupted(Exception):
    pass


def weights(folder):
    return Checkpoint.open(folder).classifier().state_dict()


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_recipe_trains_to_a_checkpoint_that_serves(name, tiny, data, tmp_path, quiet):
    card = train(tiny(name, epochs=1), out=tmp_path, data=data, progress=quiet)
    catalog = Catalog.open([tmp_path])
    for offer in catalog.offers():
        assert catalog.load(offer).purify(torch.rand(2, *_shape(card))).logits.shape == (2, 10)
    assert card.training["recipe"]["name"] == name


def _shape(card):
    return card.input.channels, card.input.height, card.input.width


def test_an_interrupted_training_resumes_with_identical_results(tiny, data, tmp_path, quiet, monkeypatch):
    recipe = tiny("soap-dr-fcn", epochs=3)
    train(recipe, out=tmp_path / "straight", data=data, progress=quiet)
    _interrupt_in_epoch_two(recipe, tmp_path / "broken", data, quiet, monkeypatch)
    assert not (tmp_path / "broken" / "card.json").exists()
    train(recipe, out=tmp_path / "broken", data=data, progress=quiet)
    assert equal(weights(tmp_path / "straight"), weights(tmp_path / "broken"))


def _interrupt_in_epoch_two(recipe, out, data, quiet, monkeypatch):
    from training.train import ClassifierTrainer

    step, calls = ClassifierTrainer.step, []

    def failing(self, *args):
        calls.append(1)
        if len(calls) == 6:  # 4 steps an epoch
            raise Interrupted
        return step(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(ClassifierTrainer, "step", failing)
        with pytest.raises(Interrupted):
            train(recipe, out=out, data=data, progress=quiet)


def test_the_seed_decides_everything(tiny, data, tmp_path, quiet):
    recipe = tiny("soap-lc", epochs=1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(7)  # the caller's generator must not matter
        train(recipe.model_copy(update={"seed": seed}), out=tmp_path / name, data=data, progress=quiet)
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not equal(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize("program", ["/usr/bin/unperturb", "/lib/unperturb/__main__.py", "/lib/pytest/__main__.py"])
def test_the_card_holds_the_command_that_made_it(tiny, data, tmp_path, quiet, monkeypatch, program):
    monkeypatch.setattr("sys.argv", [program, "train", "soap-dr-fcn", "--out", "my runs"])
    card = train(tiny("soap-dr-fcn", epochs=1), out=tmp_path, data=data, progress=quiet)
    expected = None if "pytest" in program else "unperturb train soap-dr-fcn --out 'my runs'"
    assert card.training["command"] == expected


def test_training_leaves_the_callers_generator_alone(tiny, data, tmp_path, quiet):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tiny("soap-dr-fcn", epochs=1), out=tmp_path, data=data, progress=quiet)
    assert torch.equal(torch.rand(3), expected)


def test_a_folder_of_another_training_is_not_continued(tiny, data, tmp_path, quiet):
    train(tiny("soap-dr-fcn", epochs=1), out=tmp_path, data=data, progress=quiet)
    with pytest.raises(TrainingError, match="--restart"):
        train(tiny("soap-dr-fcn", epochs=1, alpha=1.0), out=tmp_path, data=data, progress=quiet)
    train(tiny("soap-dr-fcn", epochs=1, alpha=1.0), out=tmp_path, data=data, progress=quiet, restart=True)


def test_the_log_holds_a_line_an_epoch_and_the_loss_falls(tiny, data, tmp_path, quiet):
    train(tiny("soap-dr-fcn", epochs=6), out=tmp_path, data=data, progress=quiet)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_the_log_of_an_adversarial_training_shows_robust_accuracy(tiny, data, tmp_path, quiet):
    train(tiny("fgsm-at", epochs=1), out=tmp_path, data=data, progress=quiet)
    assert 0 <= json.loads((tmp_path / "log.jsonl").read_text())["pgd10_accuracy"] <= 1


def test_a_data_set_of_another_shape_is_refused(tiny, data, tmp_path, quiet):
    with pytest.raises(TrainingError, match="28, 28, 1"):
        train(tiny("natural", data="mnist"), out=tmp_path, data=data, progress=quiet)


def test_a_diverging_loss_stops_the_training(tiny, data, tmp_path, quiet):
    with pytest.raises(TrainingError, match="finite"):
        train(tiny("soap-dr-fcn", learning_rate=1e9, epochs=3), out=tmp_path, data=data, progress=quiet)


def test_calibration_is_the_percentiles_of_clean_training_images(tiny, data, tmp_path, quiet):
    card = train(tiny("soap-dr-fcn", epochs=1), out=tmp_path, data=data, progress=quiet)
    percentiles = card.calibration["soap-dr"]
    assert len(percentiles) == 101
    defense = Catalog.open([tmp_path]).defense("mnist", "soap-dr")
    assert defense.suspicion(percentiles[30]) == pytest.approx(30, abs=0.01)


def test_schedules(tiny):
    step = tiny("natural-paper")
    assert [learning_rate(step, share) for share in (0, 0.49, 0.5, 0.8)] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    cycle = tiny("natural")
    assert learning_rate(cycle, 0) == 0
    assert learning_rate(cycle, 0.2) == pytest.approx(0.3)
    assert learning_rate(cycle, 0.6) == pytest.approx(0.15)


def test_a_training_can_start_from_a_checkpoint_and_says_so_in_its_card(tiny, data, tmp_path, quiet):
    first = train(tiny("soap-dr-fcn", epochs=1), out=tmp_path / "first", data=data, progress=quiet)
    still = tiny("soap-dr-fcn", epochs=1, learning_rate=1e-12)
    second = train(still, out=tmp_path / "second", data=data, start=tmp_path / "first", progress=quiet)
    a, b = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)
    assert second.training["started_from"] == {"weights_sha256": first.weights_sha256, "training": first.training}
    with pytest.raises(TrainingError, match="another start"):  # the same folder, now without the start
        train(still, out=tmp_path / "second", data=data, progress=quiet)


def test_a_start_with_another_network_is_refused(tiny, data, tmp_path, quiet):
    train(tiny("soap-dr-fcn", epochs=1), out=tmp_path / "first", data=data, progress=quiet)
    with pytest.raises(TrainingError, match=r"holds fcn .*; recipe 'soap-dr-cnn' trains cnn"):
        train(tiny("soap-dr-cnn"), out=tmp_path / "second", data=data, start=tmp_path / "first", progress=quiet)
