"""Accuracy in two precisions, side by side."""

from tests.training.test_outcomes import cell
from training.report.precision import precisions
from training.results import read_results


def test_each_purifier_is_told_in_both_precisions_and_how_many_images_changed(results, tmp_path):
    exact = [cell("mine", "none", "1110"), cell("mine", "static", "1000", name="pgd"), cell("other", "none", "1111")]
    rough = [cell("mine", "none", "1101"), cell("mine", "static", "1000", name="pgd")]
    results("a.json", *exact, model="owls", classifier="net")
    results("b.json", *rough, model="owls", classifier="net", precision="bf16")
    shown = precisions(read_results([tmp_path / "a.json", tmp_path / "b.json"]))
    assert shown.splitlines()[2:] == ["| net | `mine` | 4 | 75.0 / 75.0 | 50.0 | 25.0 / 25.0 | 0.0 |"]


def test_without_its_fp32_a_result_is_not_shown(results, tmp_path):
    results("b.json", cell("mine", "none", "1101"), model="owls", classifier="net", precision="bf16")
    assert precisions(read_results([tmp_path / "b.json"])) == ""
