"""What is fused answers as PyTorch's layers do, with the same gradients, and can be copied like any network."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models import compiled, fused, plan
from models.classifiers.resnet import Block
from models.fused import Fusable, fuse
from models.networks import build_network, frozen_network
from models.networks.nrp import ResidualBlock
from models.plan import Step
from models.pooling import Pooling


class LeakyResidual(Fusable):
    """What came through an activation with a slope is read by one layer, by several, as what is added, and as both."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))

    def plain(self, x: Tensor) -> Tensor:
        first = F.leaky_relu(self.layers[0](x), 0.3)
        second = F.leaky_relu(self.layers[1](first) + first, 0.2)
        third = F.leaky_relu(self.layers[2](first) + second, 0.1)
        return F.leaky_relu(self.layers[3](third) + first, 0.4)

    def steps(self) -> list[Step]:
        sources, slopes, added = (0, 1, 1, 3), (0.3, 0.2, 0.1, 0.4), (None, 1, 2, 1)
        return [Step(*each) for each in zip(self.layers, sources, slopes, added, strict=True)]


NETWORKS = {
    "identity block": (lambda: Block(4, 4, 1), (4, 9, 9)),
    "projection block": (lambda: Block(4, 8, 2), (4, 10, 10)),
    "odd projection block": (lambda: Block(4, 8, 2), (4, 9, 9)),
    "identity block of sixteen": (lambda: Block(16, 16, 1), (16, 9, 9)),
    "blocks in a row": (lambda: nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1)), (16, 10, 10)),
    "residual block of sixteen": (lambda: ResidualBlock(16), (16, 7, 5)),
    "leaky convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(32, 16, 3, padding=1), nn.LeakyReLU(0.1)
        ),
        (16, 12, 12),
    ),
    "leaky residual": (lambda: LeakyResidual(4), (4, 6, 6)),
    "leaky residual of sixteen": (lambda: LeakyResidual(16), (16, 6, 6)),
    "residual block": (lambda: ResidualBlock(6), (6, 7, 5)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 4, stride=2), nn.LeakyReLU(0.2)
        ),
        (3, 12, 12),
    ),
    "rows": (
        lambda: nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)),
        (48,),
    ),
    "pooled": (
        lambda: nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.LeakyReLU(0.1), Pooling(), nn.Linear(32, 10)),
        (3, 7, 9),
    ),
    "linear layers": (lambda: nn.Sequential(nn.Linear(1200, 30), nn.ReLU(), nn.Linear(30, 4)), (1200,)),
}
SIZES = (1, 2, 16, 32, 64)  # of batches
every_network = pytest.mark.parametrize("name", NETWORKS)


def made(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """Plain, fused, and images (9, ...)."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        build, shape = NETWORKS[name]
        plain = nn.Sequential(build()).eval().requires_grad_(False)
        fused.fold_batch_norm(plain)
        copy = deepcopy(plain)
        assert fuse(copy)
        return plain, copy, torch.randn(9, *shape)


def answer_and_gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = network(x)
    return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]


@every_network
def test_answers_and_gradients_are_those_of_plain_layers(name: str) -> None:
    plain, copy, x = made(name)
    for one, other in zip(answer_and_gradient(copy, x), answer_and_gradient(plain, x), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    expected, _ = answer_and_gradient(copy, x)
    with torch.no_grad():
        assert torch.equal(copy(x), expected)


own_code = pytest.mark.skipif(not compiled.available(), reason="our own convolutions aren't compiled here")
OWN = [
    "identity block of sixteen",
    "blocks in a row",
    "residual block of sixteen",
    "leaky convolutions",
    "leaky residual of sixteen",
]


@own_code
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", [*OWN, "rows"])
def test_in_one_call_the_bits_are_those_of_one_by_one(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, copy, x = made(name)
    x = x.repeat(5, *[1] * (x.dim() - 1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in (1, 2, 3, 7, 45):
            found = answer_and_gradient(copy, x[:size])
            with torch.no_grad():
                answered = copy(x[:size])
            with monkeypatch.context() as patch:
                patch.setattr(plan.Plan, "suiting", lambda self, _: self._one_by_one)
                expected = answer_and_gradient(copy, x[:size])
            assert all(
                torch.equal(one, other) for one, other in zip((*found, answered), (*expected, expected[0]), strict=True)
            ), size
    finally:
        torch.set_num_threads(before)


@own_code
@pytest.mark.parametrize("name", [*OWN, "rows"])
def test_what_is_all_our_own_runs_in_one_call_and_keeps_bits_alone(name: str) -> None:
    _, copy, x = made(name)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        x.requires_grad_()
        copy(x)
    came, signs = kept
    assert came.data_ptr() == x.data_ptr()  # no copy
    assert (signs.dtype, signs.numel() > 0) == (torch.uint8, True)


class _Watch(TorchDispatchMode):
    """Notes what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@own_code
def test_who_watches_operations_sees_each_of_them() -> None:
    _, copy, x = made("blocks in a row")
    with _Watch() as watch, torch.no_grad():
        copy(x)
    convolutions = [name for name in watch.seen if name.startswith("unperturb.convolution")]
    assert len(convolutions) == sum(isinstance(layer, nn.Conv2d) for layer in copy.modules()) == 7


def test_one_broken_image_leaves_the_others_alone() -> None:
    _, copy, x = made("blocks in a row")
    expected = copy(x)
    x[4] = torch.nan
    found = copy(x)
    assert found[4].isnan().all()
    assert torch.equal(found[[0, 1, 2, 3, 5, 6, 7, 8]], expected[[0, 1, 2, 3, 5, 6, 7, 8]])


@own_code
def test_an_image_larger_than_a_thread_keeps_memory_for() -> None:
    plain, copy, _ = made("identity block of sixteen")
    x = torch.randn(1, 16, 600, 700)
    assert torch.allclose(copy(x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.fixture
def one_thread():
    """Where several share a strided convolution's gradient, how they do depends on the number of images."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@every_network
@pytest.mark.usefixtures("one_thread")
def test_an_image_alone_has_the_bits_that_it_has_in_company(name: str) -> None:
    _, copy, x = made(name)
    expected = answer_and_gradient(copy, x)
    by_onednn = name == "linear layers" or (name in ("rows", "pooled") and not compiled.available())
    for size in (2, 5) if by_onednn else (1, 2, 5):
        found = answer_and_gradient(copy, x[:size])
        assert all(torch.equal(one, other[:size]) for one, other in zip(found, expected, strict=True)), size


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("channels", "side", "stride"), [(64, 8, 1), (128, 16, 1), (64, 16, 2)])
def test_weights_lie_as_onednn_wants_them_for_each_size(channels: int, side: int, stride: int, threads: int) -> None:
    # Else it lays them out anew in every call, for twenty times as long as the convolution takes.
    layer = nn.Conv2d(channels, channels, 3, stride, padding=1).requires_grad_(False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        packed = plan._PackedConvolution(layer, None)
        laid_out = set()
        for size in SIZES:
            x = torch.randn(size, channels, side, side)
            wanted = plan._MKLDNN._reorder_convolution_weight(layer.weight, *packed._shape, list(x.shape))
            assert layout(packed._forwards.of(x)) == layout(wanted), size
            laid_out.add(id(packed._forwards.of(x)))
        assert len(laid_out) < len(SIZES)  # what lies alike is kept once
    finally:
        torch.set_num_threads(before)


def layout(weights: Tensor) -> list[int]:
    found: list[int] = plan._MKLDNN._get_mkldnn_serialized_md(weights).tolist()
    return found


@every_network
def test_the_gradient_of_a_gradient_is_that_of_plain_layers(name: str) -> None:
    plain, copy, x = made(name)

    def twice(network: nn.Module) -> Tensor:
        leaf = x.detach().requires_grad_()
        (first,) = torch.autograd.grad(network(leaf).square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    expected = twice(plain)
    assert torch.allclose(twice(copy), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@every_network
def test_a_copy_and_a_pickle_answer_the_same_after_the_first_use(name: str) -> None:
    _, copy, x = made(name)
    expected = answer_and_gradient(copy, x)
    for other in (deepcopy(copy), pickle.loads(pickle.dumps(copy))):
        assert all(torch.equal(*each) for each in zip(answer_and_gradient(other, x), expected, strict=True))


def test_threads_that_use_a_network_first_get_equal_answers() -> None:
    _, copy, x = made("projection block")
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        found = list(pool.map(lambda _: answer_and_gradient(copy, x), range(8)))
    assert all(torch.equal(one, found[0][i]) for each in found for i, one in enumerate(each))


def test_what_does_not_run_fused_runs_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, copy, x = made("projection block")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(copy(x), plain(x))
    assert torch.equal(copy.double()(x.double()), plain.double()(x.double()))
    monkeypatch.setattr(fused, "AVAILABLE", False)
    _, copy, x = made("convolutions")
    monkeypatch.setattr(Fusable, "steps", lambda _: pytest.fail("fused"))
    copy(x)


def test_a_layer_that_is_read_keeps_its_own_output() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()).requires_grad_(False)
    nn.init.constant_(network[0].bias, -9.0)
    fuse(network, apart=[network[0]])
    assert network[0](torch.zeros(1, 1, 2, 2)).max() == -9
    assert network(torch.zeros(1, 1, 2, 2)).min() == 0


def test_layers_that_somebody_hooked_are_called() -> None:
    network = nn.Sequential(Block(4, 4, 1), Block(4, 4, 1)).eval().requires_grad_(False)
    fused.fold_batch_norm(network)
    fuse(network)
    x, seen = torch.randn(2, 4, 8, 8), []
    expected = network(x)
    network[1].register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(network(x), expected)
    assert seen == [1]


def test_a_part_of_a_sequence_runs_in_chains() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Block(4, 4, 1), nn.Flatten(), nn.Linear(144, 2), nn.ReLU())
    network.eval().requires_grad_(False)
    fused.fold_batch_norm(network)
    fuse(network)
    x = torch.randn(2, 3, 8, 8)
    whole = fused.in_chains(network)
    assert [type(part).__name__ for part in whole] == ["_Chain", "Sequential", "_Chain"]  # type: ignore[attr-defined]
    assert torch.equal(whole(x), network(x))
    assert torch.equal(fused.in_chains(network, 3)(fused.in_chains(network, 0, 3)(x)), network(x))
    assert fused.in_chains(network[0]) is network[0]


def test_what_is_left_out_is_told() -> None:
    assert fuse(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)))
    assert not fuse(nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)))
    assert not fuse(nn.Sequential(nn.ConvTranspose2d(2, 2, 2)))


def test_every_layer_of_a_discriminator_is_fused_and_its_norms_are_gone() -> None:
    network = frozen_network(build_network("aid", taps=["a"], channels=[4], deeper=True, width=8))
    assert network.fused
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in network.modules())
