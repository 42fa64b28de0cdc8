import json

import pytest

from benchmarks.offer_cost import PUBLIC_AID, WIDE, aid_multiply_adds, main
from models.classifiers import build_classifier, frozen
from models.networks.aid import AidDiscriminator


@pytest.mark.parametrize(
    ("wide", "images", "most"), [(WIDE[0], 16, 0.45), (WIDE[1], 4, 0.36)], ids=lambda x: str(x)[:20]
)
def test_aid_spends_at_most_so_much_of_what_the_public_code_does(wide, images, most):
    architecture, arguments, taps, channels = wide
    classifier = frozen(build_classifier(architecture, **arguments))
    discriminator = AidDiscriminator(taps=taps, channels=channels, deeper=True).eval().requires_grad_(False)
    assert aid_multiply_adds(classifier, discriminator, images) <= most * PUBLIC_AID[architecture]


def test_every_purifier_of_a_model_is_timed_and_counted(tmp_path):
    out = tmp_path / "cost.json"
    assert main(["--model", "mnist", "--rounds", "1", "--warmup", "0", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {"none", "soap-dr"} <= set(rows)
    assert all(set(row["ms"]) == {"1", "8", "64"} for row in rows.values())
    passes = sum(rows["soap-dr"]["passes"].values())
    # Every backward pass to the input costs about what a forward pass does; the decoder comes on top.
    assert rows["soap-dr"]["multiply_adds"] > 0.8 * passes * rows["none"]["multiply_adds"]
