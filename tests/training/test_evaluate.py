import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from rich.console import Console

from models.catalog import ZOO, Catalog
from models.classifiers import build_classifier, frozen
from models.votes import scores
from training import evaluate, parts
from training.attacks import AttackSettings, Survived, knowing
from training.attacks.asking import Asker
from training.attacks.blind import static
from training.counting import Passes
from training.data import load_data
from training.evaluate import Evaluation, defenses_of, fitted, variants_of, voting
from training.plan import EvaluationError, Plan, load_plan
from training.progress import Progress
from training.recipe import load_recipe
from training.results import Result
from training.train import train

DATA = Path(__file__).parents[1] / "data"
VARIANTS = Path(__file__).parents[2] / "benchmarks" / "variants"
FEW = {"n": 40, "adaptive_n": 8}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("zoo") / "fcn"
    changes = {"epochs": 15, "batch_size": 64, "calibration_images": 128}
    train(load_recipe("soap-dr-fcn", changes), out=out, data=DATA, progress=Progress(Console(quiet=True)))
    return out


@pytest.fixture
def defenses(trained):
    return defenses_of(Catalog.open([trained]), "mnist", "fcn-soap-dr")


SOME = ("none", "fgsm", "pgd", "two-view", "bpda", "unrolled")


def short(plan):
    kept = [attack for attack in plan.attacks if attack.name in SOME]
    attacks = tuple(attack.model_copy(update={"steps": min(attack.steps, 3)}) for attack in kept)
    return plan.model_copy(update={"attacks": attacks})


@pytest.fixture
def plan():
    return short(load_plan("paper-soap", "mnist", FEW))


def cell(cells, purifier, attack, oracle=False):
    (found,) = [c for c in cells if (c.purifier, c.attack.name, c.oracle) == (purifier, attack, oracle)]
    return found


def test_every_purifier_meets_every_attack_that_applies(defenses, plan, data, tmp_path, quiet):
    cells = Evaluation(defenses, plan, tmp_path / "r.json", data).run(quiet)
    assert {c.attack.name for c in cells if c.purifier == "none"} == {"none", "fgsm", "pgd"}
    assert {c.attack.name for c in cells if c.purifier == "soap-dr"} == set(SOME)
    assert cell(cells, "none", "none").accuracy > 0.2
    assert all(c.accuracy == pytest.approx(c.outcomes.count("1") / c.n, abs=1e-6) for c in cells)


def test_the_oracle_is_never_worse_than_the_choice(defenses, plan, data, tmp_path, quiet):
    cells = Evaluation(defenses, plan, tmp_path / "r.json", data).run(quiet)
    for attack in ("none", "fgsm", "pgd"):
        assert cell(cells, "soap-dr", attack, oracle=True).accuracy >= cell(cells, "soap-dr", attack).accuracy


def test_an_interrupted_evaluation_goes_on_where_it_stopped(defenses, plan, data, tmp_path, quiet):
    file = tmp_path / "r.json"
    whole = Evaluation(defenses, plan, file, data).run(quiet)
    found = json.loads(file.read_text())
    found["cells"] = found["cells"][:3]
    file.write_text(json.dumps(found))
    again = Evaluation(defenses, plan, file, data).run(quiet)
    assert [c.seconds for c in again[:3]] == [c.seconds for c in whole[:3]]
    assert [c.outcomes for c in again] == [c.outcomes for c in whole]


def test_an_attack_that_is_interrupted_goes_on_with_the_images_that_it_has_not_seen(
    defenses, plan, data, tmp_path, quiet, monkeypatch
):
    (bpda,) = [attack for attack in plan.attacks if attack.name == "bpda"]
    plan, runs = plan.model_copy(update={"attacks": (bpda,), "adaptive_n": 8}), []
    monkeypatch.setattr(parts, "PART", 3)
    whole = Evaluation(defenses, plan, tmp_path / "whole.json", data).run(quiet)

    def watched(defense, x, y, settings, first, owned):
        runs.append(first)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return knowing(defense, x, y, settings, first, owned)

    monkeypatch.setattr(evaluate, "knowing", watched)
    with pytest.raises(KeyboardInterrupt):
        Evaluation(defenses, plan, tmp_path / "r.json", data).run(quiet)
    assert [path.name for path in sorted((tmp_path / "r.parts").glob("*/*"))] == ["0.safetensors", "3.safetensors"]
    (again,) = Evaluation(defenses, plan, tmp_path / "r.json", data).run(quiet)
    assert runs == [0, 3, 6, 6]
    assert not (tmp_path / "r.parts").exists()
    told = {"seconds": 0.0, "purify_seconds": None}
    assert again.model_copy(update=told) == whole[0].model_copy(update=told)


def test_parts_of_another_attack_are_not_taken(tmp_path):
    x, y, asked = torch.rand(4, 1, 2, 2), torch.zeros(4), []

    def attack(x, y, first):
        asked.append(first)
        return Survived(torch.ones(len(x), dtype=torch.bool), x)

    for key in ({"steps": 1}, {"steps": 1}, {"steps": 2}):
        found, _ = parts.Parts(tmp_path, key).run(attack, x, y, Passes())
        assert torch.equal(found.image, x)
    assert asked == [0, 0]


def test_results_of_another_checkpoint_are_not_continued(defenses, plan, data, tmp_path, quiet):
    file = tmp_path / "r.json"
    Evaluation(defenses, plan, file, data).run(quiet)
    found = json.loads(file.read_text())
    file.write_text(json.dumps({**found, "weights_sha256": "1" * 64}))
    with pytest.raises(EvaluationError, match="another checkpoint"):
        Evaluation(defenses, plan, file, data).run(quiet)


def test_a_result_tells_a_precision_that_changes_answers(trained, defenses, plan, data, tmp_path, quiet):
    rough = defenses_of(Catalog.open([trained], precision="bf16"), "mnist", "fcn-soap-dr")
    headers = []
    for name, some in (("exact", defenses), ("rough", rough)):
        Evaluation(some, plan, tmp_path / name, data).run(quiet, purifiers=["none"], attacks=["none"])
        headers.append(json.loads((tmp_path / name).read_text()))
    assert ["precision" in header for header in headers] == [False, True]
    exact, told = (Result.model_validate(header) for header in headers)
    assert (exact.precision, told.precision) == ("fp32", "bf16")
    assert exact.defence("none") != told.defence("none")


def test_what_decides_by_votes_is_attacked_and_told_as_such(random_ones, data, tmp_path, quiet):
    plan = of({"name": "none", "mode": "none"}, {**PGD, "name": "bpda", "mode": "bpda", "eot": 2})
    alone = Evaluation(random_ones, plan, tmp_path / "alone.json", data).run(quiet)
    cells = Evaluation(voting(random_ones, 3), plan, tmp_path / "voted.json", data).run(quiet)
    headers = [json.loads((tmp_path / name).read_text()) for name in ("alone.json", "voted.json")]
    exact, told = (Result.model_validate(header) for header in headers)
    assert ["votes" in header for header in headers] == [False, True]
    assert told.votes == 3
    assert exact.defence("random") != told.defence("random")
    assert cells[0].forward == 3 * alone[0].forward
    # Three looks with two draws more each; a gradient's draws stay single.
    assert cells[1].forward - alone[1].forward == pytest.approx(3 * 2 * alone[0].forward)
    assert cells[1].redrawn.majority == {}


def test_only_what_is_random_can_vote(defenses, random_ones):
    assert [defense.name for defense in voting([*defenses, *random_ones], 3)] == ["random"]
    with pytest.raises(EvaluationError, match="--votes 3: none of these purifiers draws random numbers: none, soap-dr"):
        voting(defenses, 3)
    with pytest.raises(ValueError, match="at least 1"):
        random_ones[0].voting(0)


def test_votes_of_a_defence_are_its_draws_with_the_seeds_that_follow(random_ones, data):
    (defense,) = random_ones
    x = load_data("mnist", "test", data).floats(0, 40)
    seeds = [1000 * i for i in range(40)]
    together = defense.voting(3).purify(x, seeds)
    alone = [defense.purify(x, [seed + vote for seed in seeds]) for vote in range(3)]
    assert torch.equal(together.image, alone[0].image)
    assert torch.equal(together.logits, scores(torch.stack([one.logits.softmax(1) for one in alone], 1)))
    assert torch.equal(together.forward_passes, 3 * alone[0].forward_passes)
    assert torch.equal(together.backward_passes, 3 * alone[0].backward_passes)
    with pytest.raises(ValueError, match="a seed for each of 40 images; got none"):
        defense.voting(3).purify(x)


def test_no_two_looks_at_votes_share_a_draw(random_ones, data):
    (defense,) = random_ones
    x, asked = load_data("mnist", "test", data).floats(0, 2), []
    watched = replace(defense.voting(3), purifier=Watched(defense.purifier, asked))
    asker = Asker(watched, AttackSettings(name="none", mode="none"), 0, 2)
    for _ in range(4):
        asker(x, torch.arange(2))
    assert len(asked) == len(set(asked)) == 4 * 3 * 2


class Watched:
    """Keeps the seeds that it is given."""

    def __init__(self, inner, seen):
        self.inner, self.info, self.seen = inner, inner.info, seen

    def purify(self, x, seeds=None, wanted=None):
        self.seen += seeds
        return self.inner.purify(x, seeds, wanted)


def test_chains_are_measured_where_they_are_asked_for(trained, data, tmp_path, quiet):
    card = json.loads((trained / "card.json").read_text())
    twin = tmp_path / "twin"
    shutil.copytree(trained, twin)
    card["purifiers"]["again"] = card["purifiers"]["soap-dr"]
    (twin / "card.json").write_text(json.dumps(card))
    found = defenses_of(Catalog.open([twin]), "mnist", "fcn-soap-dr", ["soap-dr+again"])
    plan = short(load_plan("paper-soap", "mnist", FEW))
    cells = Evaluation(found, plan, tmp_path / "r.json", data).run(quiet, purifiers=["soap-dr+again"])
    assert {(c.attack.name, c.oracle) for c in cells} == {(name, False) for name in ("none", "fgsm", "pgd", "bpda")}


def test_images_can_be_made_on_another_classifier(defenses, plan, data, tmp_path, quiet):
    torch.manual_seed(1)
    network = frozen(build_classifier("fcn", aux="decoder"))
    other = replace(defenses[0], classifier=network)
    (pgd,) = [attack for attack in load_plan("paper-soap", "mnist").attacks if attack.name == "pgd"]
    here, made_there = (
        plan.model_copy(update={"attacks": (pgd.model_copy(update={"source": source}),)}) for source in (None, "other")
    )
    evaluation = Evaluation(defenses, made_there, tmp_path / "r.json", data, {"other": other})
    (found,) = evaluation.run(quiet, purifiers=["none"])
    x, y = evaluation.x[: plan.n], evaluation.y[: plan.n]
    right = defenses[0].classifier(static(other.classifier, x, y, pgd)).argmax(1) == y
    assert found.outcomes == "".join("1" if ok else "0" for ok in right.tolist())
    (own,) = Evaluation(defenses, here, tmp_path / "own.json", data).run(quiet, purifiers=["none"])
    assert found.outcomes != own.outcomes
    sources = json.loads((tmp_path / "r.json").read_text())["sources"]
    assert sources == {"other": other.card.weights_sha256}


def test_a_plan_goes_without_the_classifiers_that_a_zoo_has_not(trained):
    catalog, plan = Catalog.open([trained]), load_plan("standard", "mnist")
    found = fitted(catalog, "mnist", plan)
    assert (list(found.sources), found.missing) == (["fcn-soap-dr"], ("cnn-soap-dr",))
    left_out = {attack.name for attack in plan.attacks} - {attack.name for attack in found.plan.attacks}
    assert left_out == {"transfer-cnn-soap-dr"}


def test_variants_come_from_a_file(defenses, tmp_path):
    path = tmp_path / "v.toml"
    path.write_text(
        '[one-step]\nkind = "soap-dr"\n[one-step.settings]\nselection = "fixed"\n'
        "budgets = [0.3]\nstep_size = 0.3\nsteps = 1\n"
    )
    (variant,) = variants_of(defenses, path)
    assert variant.info.forward_passes == 2
    path.write_text('[bad]\nkind = "soap-dr"\n[bad.settings]\nstep = 1\n')
    with pytest.raises(EvaluationError, match="selection"):
        variants_of(defenses, path)


def test_cells_tell_what_purification_left_and_took(defenses, plan, data, tmp_path, quiet):
    cells = Evaluation(defenses, plan, tmp_path / "r.json", data).run(quiet, attacks=["pgd", "bpda"], oracle=False)
    purified = cell(cells, "soap-dr", "pgd")
    incoming = [float(value) for value in purified.objectives.split()]
    assert 0 < purified.objective_after < sum(incoming) / len(incoming)
    assert purified.purify_seconds > cell(cells, "none", "pgd").purify_seconds > 0
    assert cell(cells, "none", "pgd").objective_after is None
    assert cell(cells, "soap-dr", "bpda").purify_seconds is None


def test_time_with_the_oracles_candidates_is_not_the_purifiers(defenses, plan, data, tmp_path, quiet):
    cells = Evaluation(defenses, plan, tmp_path / "r.json", data).run(quiet, attacks=["fgsm"])
    assert cell(cells, "soap-dr", "fgsm").purify_seconds is None
    assert cell(cells, "none", "fgsm").purify_seconds is not None


def test_the_bare_classifier_reads_what_was_sent_to_the_purifier(defenses, plan, data, tmp_path, quiet):
    joint = AttackSettings(name="joint", mode="joint", epsilon=0.3, step_size=0.1, steps=3)
    evaluation = Evaluation(defenses, plan.model_copy(update={"attacks": (joint,)}), tmp_path / "r.json", data)
    found = cell(evaluation.run(quiet), "soap-dr", "joint")
    x, y = evaluation.x[: plan.adaptive_n], evaluation.y[: plan.adaptive_n]
    (purifier,) = [each for each in defenses if each.name == "soap-dr"]
    sent = knowing(purifier, x, y, joint).image
    right_sent, right_clean = (float((purifier.classifier(each).argmax(1) == y).float().mean()) for each in (sent, x))
    assert found.bare == right_sent < right_clean


def test_a_variant_of_an_add_on_has_its_network():
    zoo = [ZOO / "cifar10-resnet18-at", ZOO / "cifar10-aid-resnet18-at"]
    shipped = defenses_of(Catalog.open(zoo), "cifar10", "resnet18-at")
    found = {one.name: one for one in variants_of(shipped, VARIANTS / "aid-steps.toml")}
    (aid,) = [one for one in shipped if one.name == "aid"]
    assert (found["aid-5"].addon_sha256, found["none"].addon_sha256) == (aid.addon_sha256, ())
    torch.manual_seed(0)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(found["aid-10"].purify(x).image, aid.purify(x).image)


@pytest.mark.parametrize(
    ("model", "classifier", "file"),
    [
        ("cifar10", "resnet18-soap-lc", "soap-lc-budgets"),
        ("cifar10", "resnet18-soap-rp", "soap-rp-budgets"),
        ("mnist", "cnn-soap-dr", "soap-dr-budgets"),
        ("cifar10", "resnet18-at", "reverse-steps"),
    ],
)
def test_shipped_comparisons_can_be_built(model, classifier, file):
    defenses = defenses_of(Catalog.open(), model, classifier)
    assert len(variants_of(defenses, VARIANTS / f"{file}.toml")) > 5


def test_unknown_names_list_the_known_ones(trained, tmp_path, plan, defenses):
    with pytest.raises(EvaluationError, match="mnist/fcn-soap-dr"):
        defenses_of(Catalog.open([trained]), "mnist", "vgg")
    with pytest.raises(EvaluationError, match="paper-soap"):
        load_plan("nope", "mnist")


def test_too_few_test_images_are_counted(defenses, data, tmp_path):
    with pytest.raises(EvaluationError, match="256 test images"):
        Evaluation(defenses, load_plan("paper-soap", "mnist"), tmp_path / "r.json", data)


PGD = {"name": "pgd", "mode": "static", "epsilon": 0.1, "step_size": 0.05, "steps": 2}
RANDOM = """
[random]
kind = "soap-dr"
[random.settings]
selection = "fixed"
budgets = [0.1]
step_size = 0.05
steps = 2
random_start = 0.05
"""


def of(*attacks, n=8, **fields):
    start = {"name": "own", "data": "mnist", "budget": 0.1, "n": n, "adaptive_n": n, "redraws": 12, "attacks": attacks}
    return Plan.model_validate(start | fields)


@pytest.fixture
def random_ones(defenses, tmp_path):
    path = tmp_path / "random.toml"
    path.write_text(RANDOM)
    return variants_of(defenses, path)


def test_a_cell_tells_what_it_cost_an_image(defenses, data, tmp_path, quiet):
    bpda = {**PGD, "name": "bpda", "mode": "bpda"}
    cells = Evaluation(defenses, of({"name": "none", "mode": "none"}, PGD, bpda), tmp_path / "r.json", data).run(quiet)
    cost = {(c.purifier, c.attack.name): (c.forward, c.backward) for c in cells if not c.oracle}
    assert cost["none", "none"] == (1, 0)
    # The attack looks once before, at each of two steps and once after; then the defence answers.
    assert cost["none", "pgd"] == (1 + 2 + 1 + 1, 2)
    # Made for the first purifier, the images are there for the second.
    assert cost["soap-dr", "pgd"][1] == cost["soap-dr", "none"][1] > 0
    assert cost["soap-dr", "bpda"][1] > cost["soap-dr", "pgd"][1]


def test_a_cell_tells_whose_attack_it_is(defenses, data, tmp_path, quiet):
    square = {"name": "square", "mode": "square", "epsilon": 0.1, "steps": 3}
    plan = of(PGD, square, n=4, adaptive_n=4)
    cells = Evaluation(defenses, plan, tmp_path / "r.json", data).run(quiet, purifiers=["none"], oracle=False)
    assert [each.library for each in cells] == [None, f"pyautoattack {version('pyautoattack')}"]


def test_a_cell_keeps_the_purifiers_own_loss_of_each_image(defenses, data, tmp_path, quiet):
    evaluation = Evaluation(defenses, of({"name": "none", "mode": "none"}), tmp_path / "r.json", data)
    cells = evaluation.run(quiet, oracle=False)
    assert cell(cells, "none", "none").objectives is None
    kept = [float(value) for value in cell(cells, "soap-dr", "none").objectives.split()]
    (soap_dr,) = [defense for defense in defenses if defense.name == "soap-dr"]
    assert kept == pytest.approx(soap_dr.purify(evaluation.x).objective_before.tolist(), rel=1e-4)


@pytest.mark.parametrize("mode", ["static", "bpda"])
def test_what_was_sent_to_a_random_defence_is_tried_again(random_ones, data, tmp_path, quiet, mode):
    plan = of({**PGD, "mode": mode, "epsilon": 0.2}, n=40, redraws=6)
    (found,) = Evaluation(random_ones, plan, tmp_path / "r.json", data).run(quiet)
    again = found.redrawn
    assert again.draws == 6
    assert 0 < again.worst < again.mean < 1  # some images depend on the draw
    assert set(again.majority) == {1, 5}  # ten draws there are not
    assert again.worst <= again.majority[5]
    kept = [int(count) for count in again.outcomes.split()]
    assert len(kept) == again.n == 40
    assert sum(kept) / (40 * 6) == pytest.approx(again.mean, abs=1e-6)
    assert kept.count(6) / 40 == again.worst


class Torn:
    """Draws: twice sure of the label, twice nearly unsure of a smaller class where there is one, once of neither."""

    def __init__(self, inner, y):
        others = torch.where(y > 0, 0, 9), torch.where(y == 5, 6, 5)
        self.inner, self.info, self.asked = inner, replace(inner.info, random=True), 0
        self.answers = [scale * torch.eye(10)[of] for of, scale in ((others[0], 0.1), (y, 9.0)) for _ in range(2)]
        self.answers.append(0.1 * torch.eye(10)[others[1]])

    def purify(self, x, seeds=None, wanted=None):
        self.asked += 1
        return replace(self.inner.purify(x), logits=self.answers[self.asked % 5])


def test_a_majority_is_what_the_service_would_say(defenses, data, tmp_path, quiet):
    test = load_data("mnist", "test", data)
    (none,) = [defense for defense in defenses if defense.name == "none"]
    torn = replace(none, purifier=Torn(none.purifier, test.labels[:8]))
    plan = of({"name": "none", "mode": "none"}, redraws=5)
    (found,) = Evaluation([torn], plan, tmp_path / "r.json", data).run(quiet)
    assert (found.redrawn.mean, found.redrawn.majority[5]) == (0.4, 1.0)  # two against two, and the surer ones win


def test_what_is_not_random_is_not_tried_again(defenses, data, tmp_path, quiet):
    cells = Evaluation(defenses, of(PGD), tmp_path / "r.json", data).run(quiet)
    assert [c.redrawn for c in cells] == [None] * len(cells)


def test_everything_that_a_cell_tells_is_there_again_after_an_interruption(random_ones, data, tmp_path, quiet):
    file, plan = tmp_path / "r.json", of(PGD, {**PGD, "name": "bpda", "mode": "bpda", "eot": 2})
    first = Evaluation(random_ones, plan, file, data).run(quiet, attacks=["pgd"])
    again = Evaluation(random_ones, plan, file, data).run(quiet)
    assert again[:1] == first
    assert (again[0].redrawn, again[0].objectives) != (None, None)
    assert len(again) == 2
    assert Evaluation(random_ones, plan, file, data).run(quiet) == again


def test_an_attack_may_ask_for_fewer_images(defenses, data, tmp_path, quiet):
    fewer = {**PGD, "name": "fewer", "images": 5}
    bpda = {**fewer, "name": "bpda", "mode": "bpda"}
    more = {**bpda, "name": "more", "images": 50}
    plan = of(PGD, fewer, bpda, more, adaptive_n=6)
    cells = Evaluation(defenses, plan, tmp_path / "r.json", data).run(quiet, oracle=False)
    assert {c.attack.name: c.n for c in cells} == {"pgd": 8, "fewer": 5, "bpda": 5, "more": 6}
    assert cell(cells, "none", "fewer").outcomes == cell(cells, "none", "pgd").outcomes[:5]


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ({"mode": "foolbox", "attack": "Magic"}, "Foolbox has no Magic"),
        ({"mode": "foolbox", "attack": "LinfPGD", "arguments": {"stepz": 3}}, "stepz"),
        ({"mode": "autoattack", "attack": "magic"}, "AutoAttack has no 'magic'"),
        ({"mode": "autoattack", "attack": "magic", "whole": True}, "AutoAttack has no 'magic'"),
        ({**PGD, "targets": 10}, "of 10 classes 9 are wrong"),
        ({**PGD, "mode": "bpda", "targets": 10}, "of 10 classes 9 are wrong"),
    ],
)
def test_an_attack_that_cannot_be_made_is_an_error_of_the_evaluation(defenses, data, tmp_path, quiet, attack, message):
    plan = of({**attack, "name": "x", "epsilon": 0.1})
    with pytest.raises(EvaluationError, match=message):
        Evaluation(defenses, plan, tmp_path / "r.json", data).run(quiet)


def test_autoattack_sees_all_images_at_once_and_its_flags_are_kept(defenses, data, tmp_path, quiet, monkeypatch):
    seen = []

    def autoattack(logits, x, y, attack):
        seen.append(len(x))
        return x, ("a flag",)

    monkeypatch.setattr("training.evaluate.autoattack", autoattack)
    plan = of({"name": "a", "mode": "autoattack", "attack": "square", "epsilon": 0.1}, n=40)
    cells = Evaluation(defenses, plan, tmp_path / "r.json", data).run(quiet)
    assert seen == [40]
    assert cell(cells, "soap-dr", "a").flags == ("a flag",)
    assert json.loads((tmp_path / "r.json").read_text())["cells"][0]["flags"] == ["a flag"]
