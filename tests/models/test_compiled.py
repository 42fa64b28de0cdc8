"""Our convolutions are convolutions, with what follows them, and an image's don't depend on its batch or the threads."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from models import compiled, direct, plan, winograd
from models.direct import Geometry
from models.fused import fuse

pytestmark = pytest.mark.skipif(
    not compiled.available(),
    reason="models/*.cpp are not compiled here, or not for this processor: install a C++ compiler",
)


@pytest.fixture(params=[name for name in compiled.VARIANTS if compiled.loaded(name)])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of what this processor can run: one with AVX-512 has AVX2 too."""
    if torch.backends.cpu.get_cpu_capability() == "AVX2" and request.param == "AVX512":
        pytest.skip("this processor has no AVX-512")
    found = compiled.loaded(request.param)
    monkeypatch.setattr(compiled, "loaded", lambda: found)
    return request.param


def drawn(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def close(found: Tensor, expected: Tensor, products: int) -> bool:
    """Whether float32 can't do better than that, with some slack."""
    return bool((found - expected).abs().max() < 5e-5 * products**0.5)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize(("height", "width"), [(32, 32), (7, 5), (1, 1), (4, 13), (9, 4)])
@pytest.mark.parametrize(("channels", "filters"), [(16, 16), (48, 32), (16, 80), (160, 64)])
@pytest.mark.parametrize("n", [1, 3])
def test_winograds_is_a_convolution(n: int, channels: int, filters: int, height: int, width: int) -> None:
    x, weight, bias = drawn(n, channels, height, width), drawn(filters, channels, 3, 3), drawn(filters)
    found = winograd.convolution(x, winograd.transformed(weight), bias)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert close(found, F.conv2d(x.double(), weight.double(), bias.double(), padding=1), 9 * channels)


# Among them kernels smaller than the stride: some outputs of the transposed one read nothing at all.
GEOMETRIES = [
    Geometry(*each) for each in ((3, 1, 1), (3, 2, 1), (1, 2, 0), (4, 2, 1), (5, 3, 2), (7, 2, 3), (3, 4, 1), (2, 2, 0))
]


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize(("height", "width"), [(32, 32), (7, 11), (9, 5)])
@pytest.mark.parametrize(("channels", "filters"), [(16, 16), (3, 16), (16, 3), (48, 80), (1, 32), (32, 4)])
@pytest.mark.parametrize("shape", GEOMETRIES, ids=str)
def test_the_direct_one_and_its_transpose_are_convolutions(
    shape: Geometry, channels: int, filters: int, height: int, width: int
) -> None:
    weight, bias = drawn(filters, channels, shape.kernel, shape.kernel), drawn(filters)
    x = drawn(3, channels, height, width)
    wide = [each.double() for each in (x, weight, bias)]
    expected = F.conv2d(*wide, stride=shape.stride, padding=shape.padding)
    found = direct.convolution(x, direct.laid_out(weight), filters, shape, bias)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert close(found, expected, weight[0].numel())

    gradient = drawn(*expected.shape)
    expected = conv2d_input(x.shape, wide[1], gradient.double(), stride=shape.stride, padding=shape.padding)
    found = direct.transposed(gradient, direct.laid_out_transposed(weight, shape), x.shape, shape)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert close(found, expected, weight[:, 0].numel())


FINISHES: dict[str, tuple[dict[str, Any], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
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


SHAPE = Geometry(3, 1, 1)


def _winograd(x: Tensor, weight: Tensor, **follows: Any) -> Tensor:
    return winograd.convolution(x, winograd.transformed(weight), **follows)


def _direct(x: Tensor, weight: Tensor, **follows: Any) -> Tensor:
    return direct.convolution(x, direct.laid_out(weight), len(weight), SHAPE, **follows)


def _transposed(x: Tensor, weight: Tensor, **follows: Any) -> Tensor:
    """The convolution as the transpose of the one with the weights turned round."""
    weights = direct.laid_out_transposed(weight.flip(2, 3).transpose(0, 1), SHAPE)
    return direct.transposed(x, weights, torch.Size((len(x), len(weight), *x.shape[2:])), SHAPE, **follows)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize(
    ("call", "filters", "name"),
    [
        (call, filters, name)
        for call, filters in ((_winograd, 32), (_direct, 32), (_direct, 3), (_transposed, 32), (_transposed, 3))
        for name in FINISHES
        if not (call is _direct and "gate" in FINISHES[name][0])  # only gradients are gated
    ],
)
def test_what_follows_is_part_of_it(call: Callable[..., Tensor], filters: int, name: str) -> None:
    wanted, follows = FINISHES[name]
    size = (2, filters, 9, 9)
    x, weight, added, gate = drawn(2, 16, 9, 9), drawn(filters, 16, 3, 3), drawn(*size), drawn(*size) - 0.3
    given = wanted | {key: value for key, value in {"added": added, "gate": gate}.items() if key in wanted}
    assert torch.allclose(call(x, weight, **given), follows(F.conv2d(x, weight, padding=1), added, gate), atol=1e-4)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("call", [_winograd, _direct, _transposed])
@pytest.mark.parametrize(("channels", "side"), [(16, 32), (64, 8), (128, 4)])
def test_an_image_has_the_same_bits_in_every_batch_and_with_any_threads(
    call: Callable[..., Tensor], channels: int, side: int, threads: int
) -> None:
    x, weight = drawn(40, channels, side, side), drawn(channels, channels, 3, 3)
    whole = call(x, weight, slope=0.0)
    for size in (1, 2, 5, 17):
        assert torch.equal(call(x[:size], weight, slope=0.0), whole[:size]), size
    torch.set_num_threads(1)
    assert torch.equal(call(x, weight, slope=0.0), whole)


@pytest.mark.parametrize("call", [_winograd, _direct, _transposed])
def test_one_broken_image_leaves_the_others_alone(call: Callable[..., Tensor]) -> None:
    x, weight = drawn(3, 16, 8, 8), drawn(16, 16, 3, 3)
    expected = call(x, weight)
    x[1] = torch.nan
    found = call(x, weight)
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
@pytest.mark.parametrize("call", [_winograd, _transposed])
def test_what_does_not_fit_is_refused_and_not_read(
    call: Callable[..., Tensor], x: Tensor, others: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match="don't fit each other"):
        call(x, drawn(16, 16, 3, 3), **others)


@pytest.mark.parametrize("size", [(2, 16, 9, 8), (2, 16, 8, 9), (3, 16, 8, 8), (2, 32, 8, 8)])
def test_a_transpose_to_another_size_is_refused(size: tuple[int, ...]) -> None:
    weights = direct.laid_out_transposed(drawn(16, 16, 3, 3), SHAPE)
    with pytest.raises(ValueError, match="don't fit each other"):
        direct.transposed(drawn(2, 16, 8, 8), weights, torch.Size(size), SHAPE)


def test_a_kernel_that_is_too_large_is_refused() -> None:
    weights = direct.laid_out(drawn(16, 16, 9, 9))
    with pytest.raises(ValueError, match="don't fit each other"):
        direct.convolution(drawn(1, 16, 9, 9), weights, 16, Geometry(9, 1, 4))


@pytest.mark.parametrize("call", [_winograd, _direct, _transposed])
def test_no_images_give_none(call: Callable[..., Tensor]) -> None:
    assert call(drawn(0, 16, 8, 8), drawn(16, 16, 3, 3)).shape == (0, 16, 8, 8)


@pytest.mark.parametrize("call", [_winograd, _direct, _transposed])
def test_images_in_another_layout_are_laid_out(call: Callable[..., Tensor]) -> None:
    x, weight = drawn(2, 16, 8, 8), drawn(16, 16, 3, 3)
    assert torch.equal(call(x.contiguous(), weight), call(x, weight))


@pytest.mark.parametrize(
    ("arguments", "by_winograd", "directly"),
    [
        ({}, True, True),
        ({"stride": 2}, False, True),
        ({"padding": 0}, False, True),
        ({"kernel_size": 1, "padding": 0}, False, True),
        ({"in_channels": 3}, False, True),
        ({"out_channels": 1}, False, True),
        ({"in_channels": 3, "out_channels": 3}, False, False),
        ({"out_channels": 10}, False, False),
        ({"dilation": 2, "padding": 2}, False, False),
        ({"groups": 2}, False, False),
        ({"padding_mode": "reflect"}, False, False),
        ({"padding": "same"}, False, False),
        ({"stride": (1, 2)}, False, False),
        ({"kernel_size": (1, 3), "padding": (0, 1)}, False, False),
        ({"kernel_size": 5, "padding": 2}, False, True),
        ({"kernel_size": 9, "padding": 4}, False, False),
        ({"in_channels": 256, "out_channels": 256}, True, False),
        ({"in_channels": 512, "out_channels": 528}, False, False),
        ({"dtype": torch.bfloat16}, False, False),
    ],
)
def test_they_take_what_they_can(arguments: dict[str, Any], by_winograd: bool, directly: bool) -> None:
    layer = nn.Conv2d(**{"in_channels": 32, "out_channels": 32, "kernel_size": 3, "padding": 1} | arguments)
    assert (winograd.fits(layer), direct.fits(layer)) == (by_winograd, directly)


@pytest.mark.parametrize(("stride", "kind"), [(1, plan._WinogradConvolution), (2, plan._DirectConvolution)])
def test_networks_run_by_ours_where_they_are_at_hand_and_by_onednn_elsewhere(
    stride: int, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer() -> tuple[Tensor, type]:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            layer = nn.Conv2d(16, 16, 3, stride, padding=1).requires_grad_(False)
        network = nn.Sequential(layer, nn.ReLU())
        fuse(network)
        x = drawn(2, 16, 8, 8)
        return network(x), type(plan._packed(network.steps()[0]))  # type: ignore[operator]

    one, by = answer()
    assert by is kind
    monkeypatch.setattr(compiled, "loaded", lambda: None)
    other, by = answer()
    assert by is plan._PackedConvolution
    assert stride > 1 or not torch.equal(one, other)  # direct sums may have the same bits
    assert torch.allclose(one, other, atol=1e-4)
    assert compiled.told() == "oneDNN"


def test_a_processor_without_the_instructions_does_without() -> None:
    code = "from models import compiled; print(compiled.available(), compiled.told())"
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, env={"ATEN_CPU_CAPABILITY": "default"}, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "oneDNN"]


@pytest.mark.parametrize("size", [(5, 32), (2, 3, 32), (32,), (0, 32)])
def test_a_linear_layer_is_one_with_its_activation_and_gradient(size: tuple[int, ...]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    plain, x = network.requires_grad_(False), drawn(*size).requires_grad_()
    expected = plain(x)
    (wanted,) = torch.autograd.grad(expected.sum(), x)
    fuse(network)
    kinds = {type(plan._packed(step)) for step in network.steps()}  # type: ignore[operator]
    assert kinds == {plan._DirectLinear}
    found = network(x)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)
    assert gradient.shape == x.shape
    assert torch.allclose(gradient, wanted, atol=1e-5)


def test_a_row_has_the_same_bits_among_any_others() -> None:
    layer = nn.Linear(64, 48).requires_grad_(False)
    packed, x = plan._DirectLinear(layer, 0.0), drawn(37, 64)
    whole = packed.forward(x, None)
    for size in (1, 2, 9, 16):
        assert torch.equal(packed.forward(x[:size], None), whole[:size]), size
