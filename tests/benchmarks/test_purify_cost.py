import json

from benchmarks.purify_cost import main


def test_the_served_path_is_measured_beside_the_published_one_on_what_ships(tmp_path):
    out = tmp_path / "cost.json"
    # The exit status goes by times, which say nothing in so short a run.
    assert main(["--images", "4", "--rounds", "1", "--warmup", "0", "--out", str(out)]) in (0, 1)
    rows = json.loads(out.read_text())["rows"]
    assert {row["weights"] for row in rows.values()} == {
        "models/zoo/cifar10-resnet18-soap-lc",
        "models/zoo/cifar10-resnet18-soap-rp",
        "models/zoo/mnist-cnn-soap-dr",
    }
    compared = [row for row in rows.values() if "agreement" in row]
    assert len(compared) == 4
    assert all(row["agreement"]["same_label"] == 1 for row in compared)
    assert all(row["ours"]["median_ms"] > 0 < row["plain"]["median_ms"] for row in compared)
