"""The page of a folder of results."""

import re

import pytest

from models.catalog import Catalog
from tests.training.test_outcomes import cell
from training import paper
from training.attacks.aware import judging
from training.evaluate import Redrawn
from training.plan import EvaluationError
from training.report import aid, details, nrp, overall, pix2pix, reverse, soap
from training.report.page import report, write_report
from training.results import load_results, planned, read_results


def row(text, *begin):
    """The cells of the one row that begins with these."""
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines()]
    (found,) = [each for each in rows if each[: len(begin)] == list(begin)]
    return found[len(begin) :]


def test_a_page_of_your_own_defence(results, tmp_path):
    mine = cell("mine", "none", "1110"), cell("mine", "bpda", "1000", steps=7, step_size=1 / 255)
    results("a.json", *mine, model="owls", classifier="net", plan="quick", data="owls test images from 0 on")
    page = write_report(tmp_path, tmp_path / "out").read_text()
    assert row(page, "owls", "net", "`mine`")[:8] == ["75.0", "", "", "25.0", "", "25.0", "5 to 70", "4"]
    assert row(page, "`mine`", "bpda: 7 steps of 1/255, epsilon 8/255") == [
        "adaptive",
        "quick",
        "4",
        "25.0",
        "5 to 70",
        "",
        "1",
    ]
    assert "papers' tables" not in page
    assert "random numbers" not in page.replace(overall.LEGEND, "")


@pytest.mark.parametrize(("name", "said"), [("nowhere", "is no folder"), ("", "holds no results")])
def test_without_results_it_says_what_to_run(tmp_path, name, said):
    (tmp_path / "other.json").write_text('{"not": "a result"}')
    with pytest.raises(EvaluationError, match=f"{said}; `unperturb evaluate CLASSIFIER --plan standard`"):
        write_report(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{", '{"cells": []}'])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(EvaluationError, match=r"broken.json is no result of `unperturb evaluate`"):
        load_results(tmp_path)


def test_comparisons_of_settings_are_no_defences(results, tmp_path):
    results("variants-x.json", cell("p", "none", "1"), cell("p", "bpda", "1"))
    with pytest.raises(EvaluationError, match="holds no results"):
        load_results(tmp_path)


def test_what_was_drawn_is_linked(results, tmp_path):
    results("a.json", cell("p", "none", "1"))
    page = write_report(tmp_path, tmp_path, lambda folder, out: [("curve.png", f"{folder == out}")]).read_text()
    assert page.endswith("## Pictures\n\n![True](curve.png)\n")


def test_results_that_cant_be_believed_say_so(results):
    blind, aware = cell("p", "static", "0" * 99 + "1"), cell("p", "bpda", "1" * 100)
    page = report(read_results([results("a.json", blind, aware, plan="quick")]))
    assert "quick: p: weaker-than-blind: attacks that know the defence leave 100.0% of 100 images right" in page


def test_a_budget_of_ones_own_is_told_where_there_are_two(results):
    cells = cell("p", "none", "1"), cell("p", "bpda", "1", epsilon=4 / 255)
    found = [results("a.json", *cells, data="d"), results("b.json", *cells, data="d", budget=0.5)]
    shown = overall.overall(read_results(found))
    assert row(shown, "cifar10", "c, 0.5, d", "`p`")
    assert row(shown, "cifar10", "c, 0.03137, d", "`p`")


def test_in_l2_the_worst_is_of_the_images_that_every_attack_saw(results):
    def sent(name, mode, outcomes):
        return cell("p", mode, outcomes, name=name, norm="l2", epsilon=0.5, steps=3, step_size=0.1)

    shown = overall.in_l2(
        read_results(
            [
                results("a.json", cell("p", "none", "1110"), sent("pgd", "static", "1100"), plan="l2"),
                results("b.json", sent("bpda", "bpda", "011"), plan="l2"),
                results("c.json", sent("pgd", "static", "0000"), plan="paper-reverse"),
            ]
        )
    )
    assert row(shown, "c", "`p`") == [
        *("0.5", "75.0", "50.0", "", "66.7", "", "", "", "", "", ""),
        *("33.3", "6 to 79", "3"),
    ]


def test_a_random_defence_shows_its_draws(results):
    redrawn = Redrawn(n=2, draws=20, mean=0.75, worst=0.5, majority={1: 0.7, 5: 0.8})
    sent = cell("p", "bpda", "0001").model_copy(update={"redrawn": redrawn})
    shown = details.random_defences(read_results([results("a.json", sent, cell("q", "bpda", "1"), plan="quick")]))
    assert row(shown, "c", "`p`", "bpda", "quick", "4") == ["25.0", "20", "2", "75.0", "50.0", "70.0", "80.0", ""]
    assert "`q`" not in shown


def seen(mode, losses, **settings):
    """A cell of `p` whose purifier had these losses on what came in."""
    return cell("p", mode, "1" * len(losses.split()), **settings).model_copy(update={"objectives": losses})


def test_suspicion_is_told_by_attack_and_purifier(results):
    sent = seen("static", "2 4", name="carried", steps=5, step_size=1 / 255, source="c")
    file = results("a.json", seen("none", "1 3"), sent, cell("q", "bpda", "1"))
    found = read_results([file])
    assert details.suspicion(found, "cifar10").splitlines() == [
        "| attack | kind | c `p` |",
        "|---|---|---|",
        "| carried: 5 steps of 1/255, epsilon 8/255, made on c | transfer | 75 / 50 |",
    ]
    assert details.suspicion(found, "mnist") == ""


def test_suspicion_of_a_plan_that_kept_no_clean_losses_goes_by_anothers(results):
    l2 = seen("foolbox", "2 4", name="cw", attack="L2X", epsilon=2.0)
    hiding = seen("joint", "0 0", name="joint=2", steps=5, step_size=1 / 255, weight=2.0)
    files = [
        results("paper.json", cell("p", "none", "11"), l2, hiding, plan="paper-soap"),
        results("standard.json", seen("none", "1 3"), plan="standard"),
    ]
    shown = details.suspicion(read_results(files))
    assert row(shown, "cw: Foolbox L2X, epsilon 2") == ["blind, outside the budget", "75 / 50"]
    hidden = "joint=2: 5 steps of 1/255, epsilon 8/255, the purifier's loss times -2"
    assert row(shown, hidden) == ["adaptive", "0 / 0"]


def test_suspicion_compares_the_same_images_alone(results):
    files = [
        results("a.json", seen("bpda", "2 4"), data="d test images from 0 on"),
        results("b.json", seen("none", "1 3"), data="d test images from 500 on"),
    ]
    assert not details.suspicion(read_results(files))


def test_attacks_of_one_name_are_told_apart_by_their_settings(results):
    long, short = (seen("bpda", losses, steps=n, step_size=1 / 255) for n, losses in ((100, "4 4"), (5, "2 4")))
    files = [
        results("a.json", short, plan="paper-soap"),
        results("b.json", seen("none", "1 3"), long, plan="standard"),
    ]
    shown = details.suspicion(read_results(files))
    assert row(shown, "bpda: 100 steps of 1/255, epsilon 8/255") == ["adaptive", "100 / 100"]
    assert row(shown, "bpda: 5 steps of 1/255, epsilon 8/255") == ["adaptive", "75 / 50"]


def test_sweeps_tell_nothing_of_suspicion(results):
    clean, sent = seen("none", "1 3"), seen("bpda", "1 3")
    assert details.suspicion(read_results([results("a.json", clean, sent, plan="quick")]))
    assert not details.suspicion(read_results([results("a.json", clean, sent, plan="budgets")]))


def test_a_plan_in_two_files_is_one_table_with_the_longer_of_two_cells(results):
    files = [
        results("a.json", cell("p", "none", "1100"), cell("p", "static", "10", name="pgd"), plan="paper-soap"),
        results("b.json", cell("p", "none", "00"), cell("p", "bpda", "10"), plan="paper-soap"),
    ]
    assert row(soap.white_box(read_results(files), "cifar10"), "c", "`p`") == ["50.0", "50.0", "50.0"]


def test_the_papers_figure_stands_beside_ours(results):
    clean, sent = (
        cell("soap-dr", "none", "1110"),
        cell("soap-dr", "substitute", "10", attack="fcn", name="substitute-fcn"),
    )
    file = results("a.json", clean, sent, model="mnist", classifier="fcn-soap-dr", plan="paper-soap", budget=0.3)
    shown = soap.black_box(read_results([file]))
    assert row(shown, "fcn-soap-dr", "`soap-dr`") == ["75.0 (97.6)", "50.0 (90.3)"]
    assert "by a CNN" not in shown


def test_a_papers_figure_stands_alone_where_nothing_was_measured(results):
    clean = cell("soap-dr", "none", "1110").model_copy(update={"oracle": True})
    sent = cell("soap-dr", "substitute", "10", attack="fcn", name="substitute-fcn")
    file = results("a.json", clean, sent, model="mnist", classifier="fcn-soap-dr", plan="paper-soap", budget=0.3)
    shown = soap.black_box(read_results([file]))
    assert row(shown, "fcn-soap-dr", "`soap-dr`, oracle") == ["75.0 (98.9)", "(94.3)"]
    assert "Left out of the paper's Table 4: No Def" in shown


@pytest.mark.parametrize(("model", "told"), [("cifar10", " (51.4)"), ("cifar100", " (27.6)"), ("svhn", "")])
def test_the_papers_figure_is_of_the_same_data_set(results, model, told):
    sent = cell("soap-lc", "static", "10", name="pgd")
    file = results("a.json", sent, model=model, classifier="resnet18-soap-lc", plan="paper-soap")
    shown = soap.white_box(read_results([file]), model)
    assert row(shown, "resnet18-soap-lc", "`soap-lc`") == [f"50.0{told}"]


def test_joint_attacks_are_told_by_their_weight_on_the_same_images(results):
    joint = [cell("reverse", "joint", "10", name=f"joint={weight}", weight=weight) for weight in (4, 0.5)]
    blind = cell("reverse", "static", "0111", name="pgd-50")
    file = results("a.json", blind, *joint, cell("none", "static", "1"), classifier="resnet18-at", plan="paper-reverse")
    shown = soap.joint(read_results([file]), "paper-reverse")
    assert shown.startswith("| classifier | purifier | 0 | 0.5 | 4 | n |")
    assert row(shown, "resnet18-at", "`reverse`") == ["50.0", "50.0", "50.0", "2"]
    assert row(shown, "the paper's", "`reverse`") == ["(54.6)", "(55.6)", "(60.8)", ""]
    assert "`none`" not in shown


def test_joint_attacks_are_told_before_purification_too(results):
    sent = cell("p", "joint", "10", name="joint=2", weight=2).model_copy(update={"bare": 1.0})
    blind = cell("none", "static", "0011", name="pgd"), cell("p", "static", "0111", name="pgd")
    shown = soap.joint(read_results([results("a.json", *blind, sent, plan="paper-soap")]), "paper-soap")
    assert row(shown, "c", "before `p`") == ["0.0", "100.0", "2"]
    assert row(shown, "c", "`p`") == ["50.0", "50.0", "2"]


def five(purifier, *outcomes):
    modes = ("none", "static", "foolbox", "foolbox", "static")
    return [cell(purifier, mode, each, name=name) for mode, each, name in zip(modes, outcomes, aid.FIVE, strict=True)]


def test_aids_worst_is_an_attack_ours_an_image(results):
    file = results(
        "a.json", *five("aid", "1111", "0111", "1011", "1101", "1110"), classifier="resnet18-at", plan="paper-aid"
    )
    found = read_results([file])
    assert row(aid.worst(found), "`aid`") == ["75.0 (52.6)"]
    assert (
        "on SVHN, without / with its purifier, by the network's training: natural training 0.01 / 29.1,"
        in aid.worst(found)
    )
    assert row(aid.exhaustive(found), "resnet18-at", "`aid`")[-1] == "0.0"


def test_without_one_of_the_five_there_is_no_worst(results):
    file = results("a.json", *five("aid", *["11"] * 5)[:4], classifier="resnet18-at", plan="paper-aid")
    found = read_results([file])
    assert aid.worst(found) == ""
    assert row(aid.exhaustive(found), "resnet18-at", "`aid`")[-2:] == ["(53.1)", ""]


def test_what_the_paper_measured_on_other_data_is_told_apart(results):
    cells = [cell("aid", "static", "10", name=name) for name in ("pgd-eps-8", "pgd-iter-200")]
    shown = aid.sensitivity(read_results([results("a.json", *cells, plan="paper-aid")]))
    assert shown.startswith("| classifier | purifier | 8/255 | 200 steps |")
    assert row(shown, "c", "`aid`") == ["50.0", "50.0"]
    assert "on SVHN" in shown.splitlines()[-3]


def test_aids_black_box_table_is_of_the_classifiers_that_it_protects(results):
    square = [cell(purifier, "square", "10") for purifier in ("none", "aid", "nrp")]
    files = [results("a.json", *square, plan="standard"), results("b.json", square[0], classifier="d", plan="standard")]
    shown = aid.black_box(read_results(files))
    assert row(shown, "c", "`aid`") == row(shown, "c", "`none`") == ["50.0"]
    assert "`nrp`" not in shown
    assert "| d |" not in shown


def test_a_transferred_attack_takes_what_was_right(results):
    sent = cell("nrp", "static", "0100", name="mim@v", source="v")
    shown = nrp.transferred(read_results([results("a.json", cell("nrp", "none", "1110"), sent, plan="paper-nrp")]))
    assert row(shown, "v", "c", "`nrp`") == ["66.7"]
    assert row(shown, "the paper's Inc-v3", "IncRes-v2_ens", "NRP") == ["(4.5)"]


def test_the_papers_adversarially_trained_networks_have_rows_of_their_own(results):
    cells = cell("none", "none", "10"), cell("none", "static", "10", name="pgd-vgg19-8", source="vgg19-natural")
    shown = pix2pix.gradients(read_results([results("a.json", *cells, plan="paper-pix2pix")]))
    assert row(shown, "the paper's ResNet-18", "none, PGD AT") == ["(60.2)", "(56.3)"]


def test_distorted_features_are_told_by_where_they_were_made(results):
    fields = {"source": "vgg16-natural", "tap": "t", "random_start": True}
    sent = cell("none", "features", "10", name="features-vgg16-1-16", **fields)
    file = results("a.json", sent, classifier="vgg19-natural", plan="paper-pix2pix")
    shown = pix2pix.features(read_results([file]))
    assert row(shown, "VGG-16", "1", "16/255") == ["50.0 (31.2)"]
    assert "31/22" in shown
    assert "VGG-19 |" not in shown


def test_reverse_gains_what_it_adds(results):
    cells = [cell("none", "static", "1000", name="pgd-50"), cell("reverse", "static", "1100", name="pgd-50")]
    aware = cell("reverse", "bpda", "10")
    file = results("a.json", *cells, aware, classifier="resnet18-at", plan="paper-reverse")
    shown = reverse.gains(read_results([file]))
    assert row(shown, "resnet18-at", "PGD-50") == ["25.0 (52.4)", "50.0 (54.6)", "+25.0 (+2.2)"]
    assert row(shown, "resnet18-at", "BPDA, first 2") == ["", "50.0", ""]


def test_a_plan_of_another_model_is_not_shown(results):
    found = read_results([results("a.json", cell("p", "none", "1"), plan="paper-soap")])
    assert planned(found, "paper-soap", "mnist") == []
    assert soap.white_box(found, "mnist") == ""


@pytest.mark.parametrize("claimed", [row for row in paper.PIX2PIX if row[1] == "pix2pix"])
def test_pix2pix_claims_something_of_every_network_that_its_paper_purifies(claimed):
    assert paper.claim("cifar10", *claimed).percent in paper.PIX2PIX[claimed].values()


def test_the_legend_names_who_has_no_suspicion():
    offers = [offer for offer in Catalog.open().offers() if offer.entry.kind != "none"]
    without = {offer.entry.kind for offer in offers if judging(offer.build().purifier) is None}
    told = re.search(r"(\w+) and (\w+) compute no loss", details.SUSPICION)
    assert {name.lower() for name in told.groups()} == without
