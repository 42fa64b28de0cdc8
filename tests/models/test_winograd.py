"""Winograd's convolutions are convolutions, with what follows them, and an image's don't depend on its batch or the threads."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import fused, winograd
from models.fused import fuse

pytestmark = pytest.mark.skipif(
    not winograd.available(),
    reason="models/winograd.cpp is not compiled here, or not for this processor: install a C++ compiler",
)


@pytest.fixture(params=[name for name in winograd._VARIANTS if winograd._loaded(name)])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of what this processor can run: one with AVX-512 has AVX2 too."""
    if torch.backends.cpu.get_cpu_capability() == "AVX2" and request.param == "AVX512":
        pytest.skip("this processor has no AVX-512")
    found = winograd._loaded(request.param)
    monkeypatch.setattr(winograd, "_loaded", lambda: found)
    return request.param


def drawn(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize(("height", "width"), [(32, 32), (7, 5), (1, 1), (4, 13), (9, 4)])
@pytest.mark.parametrize(("channels", "filters"), [(16, 16), (48, 32), (16, 80), (160, 64)])
@pytest.mark.parametrize("n", [1, 3])
def test_it_is_a_convolution(n: int, channels: int, filters: int, height: int, width: int) -> None:
    x, weight, bias = drawn(n, channels, height, width), drawn(filters, channels, 3, 3), drawn(filters)
    found = winograd.convolution(x, winograd.transformed(weight), bias)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected).abs().max() < 1e-5 * (9 * channels) ** 0.5 * 5


FINISHES: dict[str, tuple[dict[str, object], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "relu": ({"slope": 0.0}, lambda y, added, gate: y.relu()),
    "leaky": ({"slope": 0.2}, lambda y, added, gate: F.leaky_relu(y, 0.2)),
    "sum": ({"added": True}, lambda y, added, gate: y + added),
    "sum and relu": ({"added": True, "slope": 0.0}, lambda y, added, gate: (y + added).relu()),
    "gate": ({"gate": True, "slope": 0.0}, lambda y, added, gate: torch.where(gate > 0, y, 0 * y)),
    "all": (
        {"added": True, "gate": True, "slope": 0.2},
        lambda y, added, gate: torch.where(gate > 0, y + added, 0.2 * (y + added)),
    ),
}


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("name", FINISHES)
def test_what_follows_is_part_of_it(name: str) -> None:
    x, weight, added, gate = drawn(2, 16, 9, 9), drawn(32, 16, 3, 3), drawn(2, 32, 9, 9), drawn(2, 32, 9, 9) - 0.3
    wanted, follows = FINISHES[name]
    tensors = {each: {"added": added, "gate": gate}[each] for each in wanted if each != "slope"}
    slope = wanted.get("slope")
    found = winograd.convolution(x, winograd.transformed(weight), **tensors, slope=slope)  # type: ignore[arg-type]
    assert torch.allclose(found, follows(F.conv2d(x, weight, padding=1), added, gate), atol=1e-4)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize(("channels", "side"), [(16, 32), (64, 8), (128, 4)])
def test_an_image_has_the_same_bits_in_every_batch_and_with_any_threads(channels: int, side: int, threads: int) -> None:
    x, weights = drawn(40, channels, side, side), winograd.transformed(drawn(channels, channels, 3, 3))
    whole = winograd.convolution(x, weights, slope=0.0)
    for size in (1, 2, 5, 17):
        assert torch.equal(winograd.convolution(x[:size], weights, slope=0.0), whole[:size]), size
    torch.set_num_threads(1)
    assert torch.equal(winograd.convolution(x, weights, slope=0.0), whole)


def test_one_broken_image_leaves_the_others_alone() -> None:
    x, weights = drawn(3, 16, 8, 8), winograd.transformed(drawn(16, 16, 3, 3))
    expected = winograd.convolution(x, weights)
    x[1] = torch.nan
    found = winograd.convolution(x, weights)
    assert found[1].isnan().all()
    assert torch.equal(found[::2], expected[::2])


@pytest.mark.parametrize(
    ("x", "others"),
    [
        (drawn(2, 32, 8, 8), {}),
        (drawn(2, 16, 8, 8).double(), {}),
        (drawn(2, 16, 8, 8), {"added": drawn(2, 16, 8, 7)}),
        (drawn(2, 16, 8, 8), {"gate": drawn(1, 16, 8, 8), "slope": 0.0}),
    ],
)
def test_what_does_not_fit_is_refused_and_not_read(x: Tensor, others: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="don't fit each other"):
        winograd.convolution(x, winograd.transformed(drawn(16, 16, 3, 3)), **others)


def test_no_images_give_none() -> None:
    assert winograd.convolution(drawn(0, 16, 8, 8), winograd.transformed(drawn(16, 16, 3, 3))).shape == (0, 16, 8, 8)


def test_images_in_another_layout_are_laid_out() -> None:
    x, weights = drawn(2, 16, 8, 8), winograd.transformed(drawn(16, 16, 3, 3))
    assert torch.equal(winograd.convolution(x.contiguous(), weights), winograd.convolution(x, weights))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, True),
        ({"stride": 2}, False),
        ({"padding": 0}, False),
        ({"dilation": 2, "padding": 2}, False),
        ({"groups": 2}, False),
        ({"kernel_size": 5, "padding": 2}, False),
        ({"in_channels": 3}, False),
        ({"out_channels": 10}, False),
        ({"in_channels": 256, "out_channels": 256}, False),
        ({"dtype": torch.bfloat16}, False),
    ],
)
def test_it_takes_what_it_can(arguments: dict[str, object], expected: bool) -> None:
    shape = {"in_channels": 32, "out_channels": 32, "kernel_size": 3, "padding": 1} | arguments
    assert winograd.fits(nn.Conv2d(**shape)) is expected  # type: ignore[arg-type]


def test_networks_run_by_it_where_it_is_at_hand_and_by_onednn_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer() -> tuple[Tensor, type]:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            layer = nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)
        network = nn.Sequential(layer, nn.ReLU())
        fuse(network)
        x = drawn(2, 16, 8, 8)
        return network(x), type(fused._packed(network.steps()[0]))  # type: ignore[operator]

    one, by = answer()
    assert by is fused._WinogradConvolution
    monkeypatch.setattr(winograd, "_loaded", lambda: None)
    other, by = answer()
    assert by is fused._PackedConvolution
    assert not torch.equal(one, other)
    assert torch.allclose(one, other, atol=1e-4)
    assert winograd.told() == "oneDNN"


def test_a_processor_without_the_instructions_does_without() -> None:
    code = "from models import winograd; print(winograd.available(), winograd.told())"
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, env={"ATEN_CPU_CAPABILITY": "default"}, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "oneDNN"]
