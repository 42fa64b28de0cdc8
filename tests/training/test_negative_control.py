"""The negative control: a defence that plain AutoAttack believes and that is worth nothing. The evaluation must say so.

Four kinds of images of 16x16 are told apart by patterns of single pixels too faint to see, so the classifier falls to any attack
by gradients, and chance hardly finds one. SOAP's descent purifies them; the result is rounded to 8 bits, as in a file, which
leaves no gradient. Plain AutoAttack finds nothing but the images that it started from.
"""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from models.catalog import Catalog
from models.checkpoint import read_card, save_checkpoint
from models.classifiers import Classifier
from models.classifiers.base import ARCHITECTURES
from models.purifiers.base import PURIFIERS, build_purifier
from training.attacks import AttackSettings
from training.attacks.library import autoattack
from training.data import load_data
from training.outcomes import worst_of
from training.results import read_results
from unperturb import cli

EPSILON = 0.06
LABELS = ("a", "b", "c", "d")
DESCENT = {"selection": "fixed", "budgets": [0.02], "step_size": 0.02, "steps": 1}


class Rounded:
    """SOAP's descent, then 8 bits; tells attackers that they can differentiate it."""

    def __init__(self, material):
        self.soap = build_purifier("soap-dr", material)
        self.info = replace(self.soap.info, kind="rounded", options=())

    def purify(self, x, seeds=None, wanted=None):
        found = self.soap.purify(x)
        image = ((x + (found.image - x).detach()) * 255).round() / 255
        return replace(found, image=image, logits=self.logits(image))

    def restored(self, x, seeds=None):
        return self.purify(x).image

    def logits(self, x):
        return self.soap.logits(x)


def network(**_):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU())
    decoder = nn.Sequential(nn.Linear(32, 768), nn.Sigmoid(), nn.Unflatten(1, (3, 16, 16)))
    return Classifier(encoder, nn.Linear(32, 4), mean=[0.5] * 3, std=[0.1] * 3, aux_head=decoder)


def drawn(count):
    """(count, 3, 16, 16) in whole 255ths, and their labels."""
    patterns = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
    y = torch.arange(count) % 4
    noise = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
    return (0.5 + 0.04 * patterns[y] + 0.05 * noise).clamp(0, 1).mul(255).round() / 255, y


def trained():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made, (x, y) = network(), drawn(256)
        optimizer = torch.optim.Adam(made.parameters(), 1e-3)
        for _ in range(40):
            z = made.features(x)
            loss = F.cross_entropy(made.classifier_head(z), y) + 10 * F.mse_loss(made.aux_head(z), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A zoo with the toy, and its data: four images of each kind."""
    folder = tmp_path_factory.mktemp("control")
    kinds = {"none": ("none", {}), "soap": ("soap-dr", DESCENT), "rounded": ("rounded", DESCENT)}
    kinds["random"] = ("soap-dr", {**DESCENT, "random_start": 0.01})
    fields = {
        **{
            "model": "toy",
            "classifier": "toy",
            "architecture": "toy",
            "arguments": {},
            "labels": LABELS,
            "training": {},
        },
        "input": {"channels": 3, "height": 16, "width": 16},
        "purifiers": {name: {"kind": kind, "settings": settings} for name, (kind, settings) in kinds.items()},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES.builders, "toy", network)
        patch.setitem(PURIFIERS.builders, "rounded", Rounded)
        save_checkpoint(folder / "zoo", trained(), fields)
        for i, (image, label) in enumerate(zip(*drawn(16), strict=True)):
            place = folder / "data" / "toy" / "test" / LABELS[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(place / f"{i}.png")
        yield folder


def evaluated(folder, out, attacks, *purifiers):
    """What the command says of a plan of these attacks: the exit status, the defences' worst cases, the flaws."""
    result = asked(folder, out, attacks, *(f"--purifier={name}" for name in purifiers))
    flaws = {tuple(line.strip().split(": ")[:2]) for line in result.stderr.splitlines() if line.startswith("  ")}
    return result.exit_code, {worst.purifier: worst for worst in worst_of(read_results([out / "r.json"]))}, flaws


def asked(folder, out, attacks, *options):
    """The command, run on a plan of these attacks."""
    shared = f'epsilon = "budget"\nstep_size = "budget / 4"\nsteps = {STEPS}\n'
    told = "".join(f'[[attacks]]\nname = "{name}"\n{text}' + shared for name, text in attacks.items())
    (out / "plan.toml").write_text(
        'n = 16\nadaptive_n = 16\nredraws = 2\n[[attacks]]\nname = "none"\nmode = "none"\n' + told
    )
    given = {
        "model": "toy",
        "zoo": folder / "zoo",
        "data": folder / "data",
        "plan": out / "plan.toml",
        "epsilon": EPSILON,
    }
    told = [f"--{name}={value}" for name, value in {**given, "out": out / "r.json", "threads": 1}.items()]
    return CliRunner().invoke(cli.app, ["evaluate", "toy", *told, *options])


STEPS = 10  # of Square too: its queries
STATIC = 'mode = "static"\n'
WHOLE = 'mode = "autoattack"\nattack = "standard"\nwhole = true\n'
THROUGH, PAST, AVERAGED = 'mode = "end-to-end"\n', 'mode = "bpda"\n', 'mode = "bpda"\neot = 3\n'


def test_plain_autoattack_breaks_the_classifier_and_believes_the_purifier(folder):
    defense = Catalog.open([folder / "zoo"]).defense("toy", "rounded")
    data = load_data("toy", "test", folder / "data")
    x, y = data.floats(), data.labels
    settings = AttackSettings(name="a", mode="autoattack", attack="standard", epsilon=EPSILON, steps=STEPS)
    bare, _ = autoattack(defense.classifier, x, y, settings)
    assert not (defense.classifier(bare).argmax(1) == y).any()
    purified, flags = autoattack(lambda image: defense.purify(image).logits, x, y, settings)
    assert (defense.purify(purified).logits.argmax(1) == y).all()
    told = " ".join(flags)
    assert "dynamic defense" in told
    assert "16 points with zero gradient" in told


def test_the_evaluation_leaves_nothing_of_it_and_names_the_flags(folder, tmp_path):
    attacks = {"pgd": STATIC, "autoattack": WHOLE, "end-to-end": THROUGH, "bpda": PAST, "square": 'mode = "square"\n'}
    code, worst, flaws = evaluated(folder, tmp_path, attacks, "rounded")
    right = {
        cell["attack"]["name"]: cell["accuracy"] for cell in json.loads((tmp_path / "r.json").read_text())["cells"]
    }
    assert {name for name, share in right.items() if share == 1} == {"none", "autoattack", "end-to-end", "square"}
    assert worst["rounded"].worst == 0
    assert code == 1
    assert flaws == {("rounded", "zero-gradient"), ("rounded", "autoattack-flag")}


def test_without_an_attack_past_it_images_made_on_the_classifier_give_it_away(folder, tmp_path):
    code, _, flaws = evaluated(folder, tmp_path, {"pgd": STATIC, "end-to-end": THROUGH}, "rounded")
    assert code == 1
    assert ("rounded", "weaker-than-blind") in flaws


def test_the_same_descent_without_the_rounding_has_no_flaw(folder, tmp_path):
    attacks = {"pgd": STATIC, "autoattack": WHOLE, "bpda": PAST}
    code, worst, flaws = evaluated(folder, tmp_path, attacks, "soap", "none")
    assert (code, flaws) == (0, set())
    assert {name: found.worst for name, found in worst.items()} == {"soap": 0, "none": 0}


def test_what_is_random_must_be_attacked_in_the_mean_of_its_draws(folder, tmp_path):
    assert evaluated(folder, tmp_path, {"bpda": PAST}, "random")[::2] == (1, {("random", "randomness-without-eot")})
    (tmp_path / "again").mkdir()
    averaged = {"bpda": PAST, "bpda-eot": AVERAGED}
    assert evaluated(folder, tmp_path / "again", averaged, "random")[::2] == (0, set())


def test_a_card_tells_nothing_that_cannot_be_believed(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    card = tmp_path / "copy" / "zoo" / "card.json"
    before = card.read_text()
    refused = asked(tmp_path / "copy", tmp_path, {"end-to-end": THROUGH}, "--purifier=rounded", "--card")
    assert (refused.exit_code, card.read_text()) == (1, before)
    assert refused.stderr.endswith("\nso the card of toy was left as it is\n")
    (tmp_path / "again").mkdir()
    taken = asked(tmp_path / "copy", tmp_path / "again", {"bpda": PAST}, "--purifier=soap", "--card")
    assert (taken.exit_code, "left as it is" in taken.stderr) == (0, False)
    assert {each.purifier for each in read_card(card.parent).measured} == {"soap"}
