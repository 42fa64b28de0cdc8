"""The command line as a user meets it, on the shipped checkpoints and samples."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from training.outcomes import worst_of
from training.results import load_results
from training.tables import RESULTS
from unperturb import __version__, cli

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"
DATA = ROOT / "tests" / "data"


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def failing(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["unperturb", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, capsys.readouterr().err


def test_no_command_shows_the_help():
    assert "serve" in run().output
    assert "classify" in run("--help").output


def test_the_version_is_the_packages():
    assert run("--version").output.strip() == f"unperturb {__version__}"


def test_every_command_explains_itself():
    for command in (
        "serve",
        "train",
        "evaluate",
        "report",
        "classify",
        "purify",
        "models",
        "bench",
        "convert",
        "key",
        "settings",
    ):
        assert run(command, "--help").exit_code == 0


def test_models_lists_every_offer_with_its_cost():
    rows = json.loads(run("models", "--json").output)
    lc = next(row for row in rows if row["purifier"] == "soap-lc")
    assert lc["default"]
    assert lc["forward_passes"] > lc["backward_passes"] > 0
    assert "soap-lc" in run("models").output


def test_models_tells_what_the_tables_show_of_every_offer():
    found = {(each.model, each.classifier, each.purifier): each for each in worst_of(load_results(RESULTS))}
    for row in json.loads(run("models", "--json").output):
        shown = found.get((row["model"], row["classifier"], row["purifier"]))
        expected = (shown.clean, shown.adaptive, shown.worst) if shown else (None, None, None)
        assert tuple(row[key] for key in ("clean", "adaptive", "worst")) == pytest.approx(expected, abs=1e-6), row


def test_classify_names_the_class_of_a_clean_sample():
    file = next(SAMPLES.glob("cifar10-clean-*.png"))
    (found,) = json.loads(run("classify", file, "--json").output)
    assert found["predictions"][0]["label"] == file.stem.split("-")[2]


def test_another_precision_is_another_answer():
    file = next(SAMPLES.glob("cifar10-clean-*.png"))
    exact, rough = (
        json.loads(run("classify", file, "--json", "--purifier", "none", *more).output)[0]["predictions"][0]
        for more in ((), ("--precision", "bf16"))
    )
    assert rough["label"] == exact["label"]
    assert rough["probability"] != exact["probability"]


@pytest.mark.parametrize(("model", "purifier"), [("cifar10", "aid"), ("mnist", "soap-dr")])
def test_without_a_purifier_the_one_of_the_service_is_meant(model, purifier):
    file = next(SAMPLES.glob(f"{model}-clean-*.png"))
    assert f"{model} / " in (told := run("classify", file, "--model", model).output)
    assert f" / {purifier}" in told


def test_a_broken_file_does_not_stop_the_others(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    file = next(SAMPLES.glob("cifar10-clean-*.png"))
    result = run("classify", tmp_path / "broken.png", tmp_path / "gone.png", file, "--json")
    broken, gone, good = json.loads(result.output)
    assert result.exit_code == 1
    assert "PNG" in broken["error"]
    assert "gone.png" in gone["error"]
    assert good["predictions"]


def test_purify_writes_a_png_of_the_input_size(tmp_path):
    file = next(SAMPLES.glob("cifar10-helps-*.png"))
    result = run("purify", file, "--out", tmp_path / "p.png")
    assert result.exit_code == 0
    with Image.open(tmp_path / "p.png") as purified:
        assert purified.size == (32, 32)
    assert (tmp_path / "p.png").read_bytes() != file.read_bytes()


def test_train_without_a_recipe_lists_them():
    assert "soap-lc" in run("train").output
    assert {recipe["name"] for recipe in json.loads(run("train", "--json").output)} >= {"soap-dr-fcn", "natural"}


def test_train_then_evaluate_then_classify(tmp_path):
    out = tmp_path / "fcn"
    recipe = tmp_path / "small.toml"
    shipped = (ROOT / "training" / "recipes" / "soap-dr-fcn.toml").read_text()
    recipe.write_text("calibration_images = 128\n" + shipped)
    trained = run("train", recipe, "--out", out, "--data", DATA, "--epochs", 1, "--threads", 1)
    assert trained.exit_code == 0, trained.output
    evaluated = run(
        *("evaluate", "fcn-soap-dr", "--model", "mnist", "--zoo", out, "--data", DATA, "--n", 16, "--threads", 1),
        *("--attack", "none", "--out", tmp_path / "r.json", "--card", "--json"),
    )
    assert {cell["n"] for cell in json.loads(evaluated.stdout)} == {16}
    card = json.loads((out / "card.json").read_text())
    assert {each["attack"] for each in card["measured"]} == {"none"}
    image = next(SAMPLES.glob("mnist-clean-*.png"))
    found = run("classify", image, "--model", "mnist", "--purifier", "soap-dr", "--zoo", out, "--json")
    assert json.loads(found.output)[0]["epsilon"] >= 0


def test_an_add_on_is_trained_beside_a_shipped_classifier_and_measured_as_the_command_says(tmp_path):
    out = tmp_path / "aid"
    recipe = tmp_path / "small.toml"
    shipped = (ROOT / "training" / "recipes" / "aid-resnet18.toml").read_text()
    recipe.write_text("calibration_images = 128\n" + shipped.replace("steps = 5", "steps = 1"))
    trained = run("train", recipe, "--out", out, "--data", DATA, "--epochs", 1, "--threads", 1)
    assert trained.exit_code == 0, trained.output
    hint = re.search(r"measure it: unperturb (.*)", trained.output)[1].split()
    measured = run(*hint, "--data", DATA, "--n", 4, "--attack", "none", "--out", tmp_path / "r.json", "--json")
    assert {cell["purifier"] for cell in json.loads(measured.stdout)} == {"aid", "none"}
    image = next(SAMPLES.glob("cifar10-clean-*.png"))
    zoo = [part for part in hint if part.startswith("/")]
    options = [option for folder in zoo for option in ("--zoo", folder)]
    found = run("classify", image, "--purifier", "aid", *options, "--json")
    assert 0 < json.loads(found.output)[0]["objective_before"] < 1


def test_an_evaluation_that_can_not_be_believed_fails_and_keeps_its_results(monkeypatch, tmp_path):
    from training.checks import Flaw

    monkeypatch.setattr("training.checks.of_results", lambda cells: [Flaw("unbounded", "none", "as seen")])
    options = ("--model", "mnist", "--data", DATA, "--n", 8, "--attack", "none", "--out", tmp_path / "r.json", "--json")
    result = run("evaluate", "fcn-soap-dr", *options)
    assert result.exit_code == 1
    assert "none: unbounded: as seen" in result.stderr
    assert json.loads(result.stdout)
    assert (tmp_path / "r.json").exists()


def test_an_add_on_has_no_checkpoint_to_begin_with(monkeypatch, capsys, tmp_path):
    code, message = failing(monkeypatch, capsys, "train", "aid-resnet18", "--from", tmp_path, "--data", DATA)
    assert (code, message.strip()) == (
        2,
        "unperturb: --from is for classifiers; recipe 'aid-resnet18' trains an add-on",
    )


def test_convert_places_foreign_weights(tmp_path):
    import torch

    from models.classifiers import build_classifier

    torch.save({"state_dict": build_classifier("fcn", aux="decoder").state_dict()}, tmp_path / "theirs.pth")
    recipe = tmp_path / "small.toml"
    shipped = (ROOT / "training" / "recipes" / "soap-dr-fcn.toml").read_text()
    recipe.write_text("calibration_images = 128\n" + shipped)
    result = run("convert", tmp_path / "theirs.pth", "--recipe", recipe, "--out", tmp_path / "ours", "--data", DATA)
    assert result.exit_code == 0, result.output
    assert "placed" in result.output
    assert (tmp_path / "ours" / "weights.safetensors").exists()


def test_convert_makes_an_add_on_of_foreign_weights_of_a_purifier(tmp_path):
    import torch

    from models.catalog import Catalog
    from models.networks import build_network

    theirs = build_network("nrp-resg", width=4, blocks=1)
    torch.save(theirs.state_dict(), tmp_path / "NRP_resG.pth")
    recipe = tmp_path / "small.toml"
    shipped = (ROOT / "training" / "recipes" / "nrp-cifar10-resg-paper.toml").read_text()
    recipe.write_text("calibration_images = 128\narguments = { width = 4, blocks = 1 }\n" + shipped)
    result = run("convert", tmp_path / "NRP_resG.pth", "--recipe", recipe, "--out", tmp_path / "ours", "--data", DATA)
    assert result.exit_code == 0, result.output
    classifier = ROOT / "models" / "zoo" / "cifar10-vgg16-natural"
    ours = Catalog.open([classifier, tmp_path / "ours"]).defense("cifar10", "nrp")
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(ours.purify(x).image, theirs(x).clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classify", "x.png", "--purifier", "soap"), "known: "),
        (("classify", "x.png", "--model", "imagenet"), "known: cifar10, mnist"),
        (("models", "--zoo", "nowhere"), "no checkpoint here"),
        (("bench", "--purifier", "soap"), "known: "),
        (("bench", "--model", "imagenet"), "known: cifar10, mnist"),
        (("bench", "--model", "mnist", "--purifier", "aid"), "it has: none, soap-dr"),
        (("bench", "--device", "gpu"), "--device gpu: "),
        (("classify", "x.png", "--device", "gpu"), "`--device cpu` always works"),
        (("train", "soap-xy"), "shipped: "),
        (("train", "natural", "--data", "nowhere"), "UNPERTURB_DATA"),
        (("evaluate", "resnet18-at", "--epsilon", "rubbish"), "--epsilon: 'rubbish' is no length"),
        (("evaluate", "vgg"), "known: cifar10/"),
        (("evaluate", "resnet18-at", "--precision", "bf16", "--card"), "a card tells of one answer in fp32"),
        (("evaluate", "resnet18-at", "--votes", "5", "--card"), "a card tells of one answer in fp32"),
        (("evaluate", "resnet18-at", "--card", "--out", "nowhere/r.json"), "choose an --out beside them"),
    ],
)
def test_what_the_user_can_mend_is_one_clear_line(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, error = failing(monkeypatch, capsys, *arguments)
    assert code == 2
    assert error.startswith("unperturb: ")
    assert message in error
    assert "Traceback" not in error


def test_serving_does_not_import_the_training_package():
    code = (
        "import sys, unperturb.cli, service.server; sys.exit(any(m.split('.')[0] == 'training' for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_command_that_ends_well_does_not_import_the_training_package():
    code = (
        "import sys; from unperturb import cli; sys.argv = ['unperturb', 'key', 'somebody']\n"
        "try: cli.main()\n"
        "finally: assert 'service.keys' in sys.modules and 'training.loop' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_key_gives_a_key_and_the_line_that_knows_it():
    from starlette.datastructures import Headers

    from service import keys
    from service.settings import Settings

    lines = run("key", "alice", "--rate", "2.5").output.splitlines()
    secret, line = lines[1].strip(), lines[3].strip()
    found = keys.load(Settings(api_keys=line)).client(Headers({"x-api-key": secret}))
    assert (found.key.name, found.key.rate) == ("alice", 2.5)


def test_wrong_key_name_and_wrong_keys_end_in_one_sentence(monkeypatch, capsys):
    assert failing(monkeypatch, capsys, "key", "a b") == (
        2,
        "unperturb: the name must be 1 to 64 letters, digits, dots, dashes or underscores\n",
    )
    monkeypatch.setenv("UNPERTURB_API_KEYS", "alice:secret")
    code, error = failing(monkeypatch, capsys, "serve", "--port", "0", "--device", "cpu")
    assert code == 2
    assert "api_keys, entry 1: the second part must be a SHA-256" in error
    assert "secret" not in error


def test_budget_and_steps_can_be_chosen():
    (found,) = json.loads(
        run("classify", next(SAMPLES.glob("cifar10-helps-*.png")), "--epsilon", 0.01, "--json").output
    )
    assert 0 < found["linf"] <= 0.0101


def test_an_option_that_the_purifier_has_not_ends_in_one_line(monkeypatch, capsys):
    file = next(SAMPLES.glob("cifar10-clean-*.png"))
    code, error = failing(monkeypatch, capsys, "classify", file, "--purifier", "none", "--steps", 3)
    assert (code, error) == (2, "unperturb: purifier 'none' has no option steps; its options: none\n")


def test_settings_are_listed():
    rows = json.loads(run("settings", "--json").output)
    assert {"variable": "UNPERTURB_PORT", "default": "8000"}.items() <= rows[1].items()
    assert "UNPERTURB_PORT" in run("settings", "--markdown").output


def test_a_report_is_a_page_beside_its_results(tmp_path, monkeypatch):
    (tmp_path / "runs" / "results").mkdir(parents=True)
    file = ROOT / "docs" / "results" / "cifar10-resnet18-natural-paper-soap.json"
    (tmp_path / "runs" / "results" / file.name).write_text(file.read_text())
    monkeypatch.chdir(tmp_path)
    assert run("report").output.strip() == str(Path("runs/results/README.md"))
    assert "| cifar10 | resnet18-natural | `none` |" in Path("runs/results/README.md").read_text()
    assert run("report", "runs/results", "--out", "other").exit_code == 0
    assert Path("other/README.md").read_text() == Path("runs/results/README.md").read_text()


def test_a_report_of_nothing_says_what_to_run(tmp_path, monkeypatch, capsys):
    status, said = failing(monkeypatch, capsys, "report", tmp_path)
    assert status == 2
    assert f"{tmp_path} holds no results; `unperturb evaluate" in said


@pytest.mark.parametrize(("chosen", "found"), [(None, "20000"), ("7", "7")])
def test_helpers_of_pytorch_leave_the_cores_soon_unless_somebody_chose(chosen, found, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if chosen:
        monkeypatch.setenv("GOMP_SPINCOUNT", chosen)
    program = "import sys, os, unperturb; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.split() == [found, "False"]  # after PyTorch it would come too late
