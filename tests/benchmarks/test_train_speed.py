"""The measurement of training times real steps under each option, and its table says what was measured."""

import json

import pytest
import torch
from torch import nn

from benchmarks import train_speed
from benchmarks.train_speed import OPTIONS, kinds, main
from models.fused import Fusable
from training.recipe import load_recipe
from training.report import costs

QUIET = ["--rounds=1", "--seconds=0", "--look-s=0.1", "--recipe=soap-dr-fcn"]
SHORT = [*QUIET, "--force"]


@pytest.fixture
def refused(monkeypatch):
    """A machine on which torch.compile doesn't work."""

    def compile(*_, **__):
        def refuse(*_, **__):
            raise RuntimeError("No working C++ compiler found\nand so on")

        return refuse

    monkeypatch.setattr(torch, "compile", compile)


def test_every_option_is_timed_and_what_is_missing_says_why(refused, tmp_path):
    out = tmp_path / "speed.json"
    before = torch.get_num_threads()
    assert main([*SHORT, f"--out={out}"]) == 0
    found = json.loads(out.read_text())
    (row,) = found["rows"].values()
    assert (row["batch_size"], row["own"]) == (128, "fp32 channels_last")
    *timed, compiled = (row["options"][option.name] for option in OPTIONS)
    assert all(each["images_per_s"] == pytest.approx(1000 / each["ms"]["median_ms"]) for each in timed)
    assert compiled == {"unavailable": "RuntimeError: No working C++ compiler found"}
    assert found["header"]["hardware"]["torch_threads"] == 1
    assert torch.get_num_threads() == before


def test_an_error_that_is_not_the_compilers_is_not_hidden(monkeypatch, tmp_path):
    def broken(self, indices, share):
        raise RuntimeError("broken step")

    monkeypatch.setattr(train_speed.ClassifierTrainer, "step", broken)
    with pytest.raises(RuntimeError, match="broken step"):
        main([*SHORT, "--option=fp32 NCHW", f"--out={tmp_path / 'never.json'}"])


def test_compiled_are_the_networks_that_a_step_calls(monkeypatch, tmp_path):
    called = []

    def compile(function, **_):
        return lambda *args, **kwargs: called.append(function.__self__) or function(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", compile)
    out = tmp_path / "speed.json"
    main([*SHORT, "--option=bf16 channels_last compiled", f"--out={out}"])
    assert len(set(called)) == 3  # the features, the classifier's head and the decoder
    (row,) = json.loads(out.read_text())["rows"].values()
    assert row["options"]["bf16 channels_last compiled"]["compile_s"] >= 0


@pytest.mark.parametrize("name", ["natural", "reverse-resnet18"])
@pytest.mark.parametrize("option", OPTIONS[:2], ids=lambda option: option.name)
def test_the_layout_is_that_of_every_network_and_image(name, option):
    layouts = set()

    def look(module, inputs):
        run = module.modules() if isinstance(module, Fusable) else [module]  # a frozen network's layers run as one
        weights = [each.weight for each in run if isinstance(each, nn.Conv2d) and each.kernel_size != (1, 1)]
        if weights:
            layouts.update(each.is_contiguous() for each in (*weights, *inputs))

    recipe = load_recipe(name, {"batch_size": 2, "precision": option.precision})
    hook = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        train_speed._begun(recipe, option)
    finally:
        hook.remove()
    assert layouts == {not option.channels_last}


def test_recipes_whose_steps_are_the_same_are_measured_once():
    found = kinds()
    assert ("aid-resnet18" in found, "aid-resnet18-natural" in found) == (True, False)
    assert {"natural", "natural-vgg16", "soap-dr-cnn", "nrp-cifar10"} <= set(found)
    assert not [name for name in found if name.endswith(("-paper", "-fine"))]


def test_several_runs_on_one_machine_make_one_result(tmp_path):
    out = tmp_path / "speed.json"
    option = "--option=bf16 channels_last"
    assert main([*SHORT, option, "--add", f"--out={out}"]) == 0
    second = [*SHORT[:-2], "--recipe=soap-dr-cnn", "--force", "--rounds=2", option, f"--out={out}"]
    assert main([*second, "--add"]) == 0
    found = json.loads(out.read_text())
    assert list(found["rows"]) == ["soap-dr-cnn", "soap-dr-fcn"]
    assert [row["run"]["measured_rounds"] for row in found["rows"].values()] == [2, 1]
    assert main(second) == 0
    assert list(json.loads(out.read_text())["rows"]) == ["soap-dr-cnn"]


def test_rows_of_another_machine_do_not_stand_beside_new_ones(tmp_path, capsys):
    out = tmp_path / "speed.json"
    earlier = {"header": {"hardware": {"cpu": "Another CPU"}}, "rows": {}}
    out.write_text(json.dumps(earlier))
    assert main([*SHORT, "--add", f"--out={out}"]) == 2
    assert "has hardware {'cpu': 'Another CPU'}, this run {" in capsys.readouterr().err
    assert json.loads(out.read_text()) == earlier


def test_an_unknown_recipe_is_told_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["--recipe=soap-xy"])
    assert "shipped: aid-resnet18" in capsys.readouterr().err


def test_a_busy_machine_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(train_speed, "busy_cores", lambda look_s: [5.0, 60.0])
    assert main([*QUIET, "--option=fp32 NCHW", f"--out={tmp_path / 'never.json'}"]) == 2
    assert not (tmp_path / "never.json").exists()


def timed(median, fastest, slowest, **more):
    """Of an option, from images a second."""
    ms = {"median_ms": 1000 / median, "fastest_ms": 1000 / fastest, "slowest_ms": 1000 / slowest}
    return {"images_per_s": median, "ms": ms, **more}


def test_the_table_says_what_is_faster_than_the_recipe_by_more_than_the_spread(monkeypatch, tmp_path):
    header = {
        "hardware": {"torch_threads": 1, "cpu": "A CPU"},
        "versions": {"torch": "9.9"},
    }
    run = {"measured_rounds": 5, "busy_percent_before": 2.4}
    own, close, clear = timed(100, 110, 90), timed(120, 130, 105), timed(150, 160, 140, compile_s=41.7)
    rows = {
        "one": {
            "run": run,
            "batch_size": 64,
            "own": "a",
            "options": {"a": own, "b": close, "c": {"unavailable": "No compiler"}},
        },
        "two": {"run": run, "batch_size": 128, "own": "a", "options": {"a": own, "b": close, "c": clear}},
    }
    (tmp_path / "train_speed.json").write_text(json.dumps({"header": header, "rows": rows}))
    monkeypatch.setattr(costs, "RESULTS", tmp_path)
    text = costs.train_speed()
    assert (
        "1 thread, A CPU, PyTorch 9.9, median of 5 interleaved rounds; before it the machine was at most 2 % busy"
        in text
    )
    assert "| `one` | 64 | 100 (90 to 110) \\* | 120 (105 to 130) | unavailable |  | \\* |" in text
    assert "| `two` | 128 | 100 (90 to 110) \\* | 120 (105 to 130) | 150 (140 to 160) | 42 | c, 1.50x |" in text
    assert text.endswith("No c for `one`: No compiler")


def test_without_results_the_table_says_what_to_run(monkeypatch, tmp_path):
    monkeypatch.setattr(costs, "RESULTS", tmp_path)
    assert costs.train_speed() == ""
