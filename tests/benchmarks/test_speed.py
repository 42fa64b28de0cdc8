import json
from dataclasses import replace

import pytest
import torch

from benchmarks.measure import multiply_adds
from benchmarks.speed import aid, chunks, growth, picture, precision, published
from benchmarks.speed.__main__ import _counted, main
from benchmarks.speed.rows import rows
from models import compiled, fused, plan
from models.catalog import Catalog
from models.classifiers import build_classifier, frozen
from models.networks import build_network, frozen_network
from models.networks.aid import AidDiscriminator
from models.purifiers.aid import AdversarialProbability
from models.purifiers.soap import LabelConsistency
from training.report import costs
from unperturb.measure import bf16_instructions

QUICK = ["--rounds", "1", "--warmup", "0", "--look-s", "0.1", "--force"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("speed") / "speed.json"
    assert main([*QUICK, "--row", "none", "--row", "soap-dr min-aux", "--out", str(out)]) == 0
    return json.loads(out.read_text())


def test_every_way_is_timed_at_every_batch_and_gives_the_same_answers(found):
    row = found["rows"]["soap-dr min-aux"]
    assert set(row["sides"]) == {"published", "oracle", "ours"}
    assert all(set(side["ms"]) == {"1", "8", "64"} for side in row["sides"].values())
    assert all(side["ms"]["64"]["median_ms"] > 0 for side in row["sides"].values())
    assert row["agreement"]["oracle"]["label"] == row["agreement"]["published"]["label"] == 1
    # 55 gradients where ours takes 11.
    assert row["sides"]["published"]["multiply_adds"] > 4 * row["sides"]["ours"]["multiply_adds"]


@pytest.mark.parametrize("name", ["classifier", "discriminator"])
def test_fused_layers_count_as_those_that_they_stand_for(name, monkeypatch):
    if name == "classifier":
        network, x = frozen(build_classifier("resnet18-thin")), torch.rand(2, 3, 32, 32)
    else:
        arguments = {"taps": ["stem"], "channels": [16], "deeper": True, "width": 32}
        made, x = frozen_network(build_network("aid", **arguments)), torch.rand(16, 16, 8, 8)

        def network(activation):
            return made([activation])

    def count():
        image = x.clone().requires_grad_()
        return multiply_adds(lambda: torch.autograd.grad(network(image).sum(), image))

    count()  # weights are laid out at the first use
    with_fused = count()
    monkeypatch.setattr(fused, "AVAILABLE", False)
    assert with_fused == count() > 0


def test_each_batch_has_the_work_of_its_own_images():
    row = next(row for row in rows(Catalog.open()) if row.name == "soap-lc")
    row = replace(row, sides={"ours": row.sides["ours"]}, batches=(1, 8))
    work = _counted(row)
    # The first image is left alone, half of the others aren't.
    assert work["soap-lc", "ours", 1] < work["soap-lc", "ours", 8] / 3


def test_the_floor_is_the_work_at_the_rate_of_the_machine(found):
    row, rate = found["rows"]["none"], found["header"]["multiply_adds_per_s"]
    work = _counted(next(each for each in rows(Catalog.open()) if each.name == "none"))
    assert row["floor_ms"]["64"] == pytest.approx(1000 * work["none", "ours", 64] / rate)
    share = row["floor_ms"]["64"] / row["sides"]["ours"]["ms"]["64"]["median_ms"]
    assert row["share_of_floor"]["64"] == pytest.approx(share)
    assert 0 < share < 1.5


def test_a_busy_machine_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("unperturb.measure.busy_cores", lambda look_s: [42.0])
    assert main(["--look-s", "0", "--out", str(tmp_path / "x.json")]) == 2
    assert "42 % busy" in capsys.readouterr().err


def test_the_rows_name_every_purifier_of_the_issue():
    names = [row.name for row in rows(Catalog.open())]
    assert len(names) == len(set(names))
    assert {"none", "soap-lc", "soap-rp", "soap-lc min-aux", "soap-rp min-aux", "aid", "reverse", "nrp"} <= set(names)


def test_separate_calls_have_the_loss_of_one_call():
    torch.manual_seed(0)
    network = build_classifier("resnet18-thin").eval()
    x = torch.rand(3, 3, 32, 32)
    ours = LabelConsistency(network, 1.0, 0.0)(x).loss
    assert torch.allclose(published.SeparateViews(network, 1.0, 0.0)(x).loss, ours, rtol=1e-4)
    discriminator = AidDiscriminator(taps=("stem", "block4"), channels=(16, 32), deeper=True).eval()
    ours = AdversarialProbability(network, discriminator)(x).loss
    assert torch.allclose(published.SeparateTaps(network, discriminator)(x).loss, ours, rtol=1e-4)


@pytest.mark.parametrize(
    ("wide", "images", "most"), [(aid.WIDE[0], 16, 0.45), (aid.WIDE[1], 4, 0.36)], ids=lambda x: str(x)[:20]
)
def test_aid_spends_at_most_so_much_of_what_the_public_code_does(wide, images, most):
    architecture, arguments, taps, channels = wide
    classifier = frozen(build_classifier(architecture, **arguments))
    discriminator = AidDiscriminator(taps=taps, channels=channels, deeper=True).eval().requires_grad_(False)
    counted = aid.aid_multiply_adds(classifier, discriminator, images)
    assert counted <= most * aid.PUBLIC_AID[architecture]


def test_tables_and_picture_are_made_of_the_results(found, monkeypatch, tmp_path):
    (tmp_path / "speed.json").write_text(json.dumps(found | {"aid": []}))
    monkeypatch.setattr(costs, "RESULTS", tmp_path)
    row = found["rows"]["soap-dr min-aux"]
    assert f"{row['sides']['ours']['ms']['8']['median_ms']:.2f}" in costs.speed()
    assert "| soap-dr min-aux |" in costs.speed(short=True)
    assert costs.speed_goals() == ""  # none of the two has a goal
    picture.draw(found, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 5000


def test_what_was_not_measured_yet_makes_no_table(monkeypatch, tmp_path):
    monkeypatch.setattr(costs, "RESULTS", tmp_path)
    assert (
        costs.speed()
        == costs.speed_goals()
        == costs.growth()
        == costs.aid_cost()
        == costs.chunks()
        == costs.precision()
        == ""
    )


def test_growth_tells_the_powers_that_time_and_work_grow_with(monkeypatch, tmp_path):
    out = tmp_path / "growth.json"
    arguments = ["--axis", "steps", "--rounds", "1", "--look-s", "0.1", "--force", "--out", str(out)]
    assert growth.main(arguments) == 0
    axis = json.loads(out.read_text())["axes"]["steps"]
    assert [point["value"] for point in axis["points"]] == [1, 2, 5, 10]
    assert axis["work_exponent"] > 0.5  # more steps, more gradients
    monkeypatch.setattr(costs, "RESULTS", tmp_path)
    assert "| steps | 1 / 2 / 5 / 10 |" in costs.growth()
    growth.draw(json.loads(out.read_text()), tmp_path / "growth.png")
    assert (tmp_path / "growth.png").exists()


def test_chunks_of_every_size_are_timed_and_set_beside_the_one_in_use(monkeypatch, tmp_path):
    monkeypatch.setattr(chunks, "SHORT_S", 0)
    before = torch.get_num_threads()
    arguments = ["--purifier=none", "--rounds=1", "--look-s=0.1", "--force", f"--out={tmp_path / 'chunks.json'}"]
    assert chunks.main(arguments) == 0
    assert torch.get_num_threads() == before
    found = json.loads((tmp_path / "chunks.json").read_text())
    assert [row["threads"] for row in found["rows"]] == sorted({1, before})
    for size, ms in zip(("4", "8", "32"), (2.0, 1.0, 1.5), strict=True):
        found["rows"][0]["ms"][size]["median_ms"] = ms
    found["rows"][0]["ms"] = {size: found["rows"][0]["ms"][size] for size in ("4", "8", "32")}
    (tmp_path / "chunks.json").write_text(json.dumps(found | {"rows": found["rows"][:1]}))
    monkeypatch.setattr(costs, "RESULTS", tmp_path)
    assert costs.chunks().endswith("| `none` | 1 | 2.00 | 1.00 | 1.50 | 50 % |")


def test_every_way_to_compute_is_timed_and_set_side_by_side(monkeypatch, tmp_path):
    out = tmp_path / "precision.json"
    assert precision.main(["--purifier=none", "--rounds=1", "--look-s=0.1", "--force", f"--out={out}"]) == 0
    found = json.loads(out.read_text())
    (row,) = found["rows"]
    assert [list(row["ms"][each]) for each in ("fp32", "onednn", "bf16")] == [["1", "8", "64"]] * 3
    medians_of = {"fp32": (4.0, 2.0, 1.0), "onednn": (6.0, 4.0, 3.0), "bf16": (8.0, 2.0, 0.5)}
    for name, medians in medians_of.items():
        for batch, median in zip(("1", "8", "64"), medians, strict=True):
            row["ms"][name][batch]["median_ms"] = median
    found["header"]["hardware"]["bf16_instructions"] = ["avx512_bf16"]
    out.write_text(json.dumps(found))
    monkeypatch.setattr(costs, "RESULTS", tmp_path)
    table = costs.precision()
    assert "instructions for bfloat16: avx512_bf16" in table
    assert "| 6.00 / 4.00 / 3.00 | 4.00 / 2.00 / 1.00 | 8.00 / 2.00 / 0.50 |" in table
    assert table.endswith("| 1.5 / 2.0 / 3.0 | 2.0 / 1.0 / 0.5 |")


@pytest.mark.parametrize("purifier", ["none", "reverse"])  # reverse's head runs while its purifier is made
def test_the_way_without_our_convolutions_is_onednns(purifier, monkeypatch, tmp_path):
    packed = []
    real = plan._packed
    monkeypatch.setattr(plan, "_packed", lambda step: packed.append(real(step)) or packed[-1])
    monkeypatch.setattr(precision, "BATCHES", (2,))
    out = tmp_path / "precision.json"
    assert precision.main([f"--purifier={purifier}", "--rounds=1", "--look-s=0.1", "--force", f"--out={out}"]) == 0
    ours = [each for each in packed if isinstance(each, plan._WinogradConvolution | plan._DirectConvolution)]
    assert len(ours) == (15 if compiled.available() else 0)  # those of one ResNet-18, not of three


def test_the_processors_bf16_instructions_are_those_of_its_flags(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: some\nflags\t\t: fpu avx512_bf16 sse amx_bf16\n")
    assert bf16_instructions(info) == ["amx_bf16", "avx512_bf16"]
    assert bf16_instructions(tmp_path / "elsewhere") == []


def test_exponents():
    assert growth.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
