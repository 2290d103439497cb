import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from real_networks import resnet56
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model
from torchvision.ops import SqueezeExcitation

from tlc.calibration.preprocess import Preprocess
from tlc.compress.arch import Architecture
from tlc.compress.checkpoint import load_saved, save_model
from tlc.compress.model import Model
from tlc.compress.student import check_student, remove_blocks, student_from_teacher
from tlc.compress.widen import widen_step, widened, widenings
from tlc.runtime.errors import TlcError, UsageError

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _pooled(head: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = head(x.mean((2, 3)))
    return y


class Residual(nn.Module):
    """A stream with a projection into the next, and a linear layer behind all pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.inner, self.back = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 1)
        self.skip, self.down = nn.Conv2d(16, 24, 1, 2), nn.Conv2d(16, 24, 3, 2, 1)
        self.head = nn.Linear(24 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.back(F.relu(self.inner(x)))
        y: Tensor = self.head(F.relu(self.skip(x) + self.down(x)).flatten(1))
        return y


class Dense(nn.Module):
    """Concatenations of concatenations, read by norms and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 24, 3, padding=1)
        self.norm, self.joined, self.prelu = nn.BatchNorm2d(40), nn.Conv2d(40, 16, 1), nn.PReLU(16)
        self.last, self.head = nn.BatchNorm2d(56), nn.Linear(56, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        y = self.prelu(self.joined(F.silu(self.norm(x))))
        return _pooled(self.head, self.last(torch.cat([x, y], 1)))


class Grouped(nn.Module):
    """Depthwise and grouped convolutions, a gate, a transposed convolution and a factor per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.gate = SqueezeExcitation(32, 8)
        self.grouped, self.norm = nn.Conv2d(32, 64, 3, groups=4), nn.InstanceNorm2d(64, affine=True)
        self.up, self.factor = nn.ConvTranspose2d(64, 16, 2, 2), nn.Parameter(torch.rand(16, 1, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(F.relu(self.depthwise(self.expand(x))))
        return _pooled(self.head, self.up(F.gelu(self.norm(self.grouped(x)))) * self.factor)


class Normed(nn.Module):
    """Norms over channels, which no uneven copy leaves alone, and a layer inside that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 1), nn.GroupNorm(4, 16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 5)
        self.last = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).flatten(2).transpose(1, 2)
        x = self.last(x + self.down(F.gelu(self.up(x))))
        y: Tensor = self.head(x.mean(1))
        return y


class Counting(nn.Module):
    """Its middle depends on how many channels there are, which no trace shows."""

    def __init__(self, inner: bool = True) -> None:
        super().__init__()
        self.stem, self.after = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1)
        self.inner = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 1)) if inner else nn.Identity()
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self.stem(x).softmax(1))
        return _pooled(self.head, self.after(x).softmax(1))


NETS: list[Callable[[], nn.Module]] = [Residual, Dense, Grouped, Normed, Counting]


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build().eval()


def model_of(module: nn.Module, side: int = 8, classes: int = 5) -> Model:
    preprocess = Preprocess(size=(side, side), resize=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Model(module, Architecture(kind="file", name="net.py:build"), preprocess, classes)


def difference(before: nn.Module, after: nn.Module, images: Tensor = IMAGES) -> float:
    with torch.no_grad():
        wanted, got = before(images), after(images)
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("build", NETS)
@pytest.mark.parametrize("factor", [2.0, 1.25])
def test_a_wider_network_gives_the_same_answers(build: Callable[[], nn.Module], factor: float) -> None:
    model = model_of(seeded(build))
    before = copy.deepcopy(model.module.state_dict())
    wider, widths = widen_step(model, lambda _coupling: factor, round_to=4)
    assert difference(model.module, wider.module) < 1e-5
    assert widths
    assert all(after >= factor * old - 4 and after > old for old, after in widths.values())
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())


def test_all_channels_within_a_network_are_widened() -> None:
    found = {}
    for build in (Residual, Dense, Grouped):
        found[build.__name__] = widen_step(model_of(seeded(build)), lambda _coupling: 2.0)[1]
    # Which of the layers that are added up names them is the tracer's choice.
    assert sorted(found["Residual"].values()) == [(16, 32), (24, 48), (32, 64)]
    assert sum(after for _, after in found["Dense"].values()) == 2 * (16 + 24 + 16)
    assert sum(after for _, after in found["Grouped"].values()) == 2 * (32 + 8 + 64 + 16)


def test_channels_that_something_counts_stay() -> None:
    _, widths = widen_step(model_of(seeded(Counting)), lambda _coupling: 2.0)
    # `stem` and `after` are what the softmax over channels is of.
    assert widths == {"inner.0": (32, 64), "inner.2": (16, 32)}


def test_norms_over_channels_take_whole_factors_only() -> None:
    normed = model_of(seeded(Normed))
    assert {before for before, _ in widen_step(normed, lambda _coupling: 1.5)[1].values()} == {32}
    assert sorted(widen_step(normed, lambda _coupling: 2.0)[1].values()) == [(16, 32), (32, 64)]


def test_copies_learn_different_things() -> None:
    module = seeded(Residual)
    chosen = widenings(module, IMAGES, lambda _coupling: 2.0)
    wider = widened(module, chosen).train()
    wider(IMAGES).square().sum().backward()
    layer = wider.get_submodule("inner")
    (source,) = [w.source for w in chosen if w.root == "inner"]
    first, second = [n for n, channel in enumerate(source) if channel == 0]
    assert isinstance(layer, nn.Conv2d)
    assert layer.weight.grad is not None
    # The copies compute the same, from weights that add up to the old ones, and are pulled apart by what reads them.
    old = module.get_submodule("inner").weight
    assert isinstance(old, Tensor)
    (before,) = [w.source for w in chosen if w.channels == 16]
    copies = [n for n, channel in enumerate(before) if channel == 0]
    assert torch.allclose(layer.weight[first][copies].sum(0), old[0, 0], atol=1e-6)
    gradients = layer.weight.grad[[first, second]].flatten(1)
    assert (gradients[0] - gradients[1]).norm() > 0.05 * gradients[0].norm()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    model = model_of(seeded(Residual))
    first, again, other = (widen_step(model, lambda _c: 1.5, seed=seed)[0].module for seed in (0, 0, 1))
    weights = [torch.cat([p.flatten() for p in module.parameters()]) for module in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_frozen_layer_stays_frozen() -> None:
    module = seeded(Residual)
    module.get_submodule("inner").weight.requires_grad_(False)
    wider = widened(module, widenings(module, IMAGES, lambda _coupling: 2.0))
    assert [name for name, p in wider.named_parameters() if not p.requires_grad] == ["inner.weight"]


@pytest.mark.parametrize(
    ("build", "factor", "message"),
    [
        (lambda: Counting(inner=False), 2.0, r"copying channels changed its answers in each of \d places"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), 2.0, "no channels were found that stay inside it"),
        (Residual, 1.05, "rounded to multiples of 8, and all 3 groups of channels round to what they are"),
    ],
)
def test_what_cannot_be_widened_is_refused_with_the_reason(
    build: Callable[[], nn.Module], factor: float, message: str
) -> None:
    with pytest.raises(TlcError, match=message):
        check_student(model_of(seeded(build)), f"width:{factor}")


def test_a_factor_that_norms_over_channels_refuse_is_named() -> None:
    module = nn.Sequential(nn.Conv2d(3, 16, 1), nn.GroupNorm(2, 16), nn.ReLU(), nn.Conv2d(16, 5, 8), nn.Flatten())
    with pytest.raises(TlcError, match="1 groups of channels are normalised together") as caught:
        check_student(model_of(module.eval()), "width:1.5")
    assert caught.value.hint == "Use a whole factor: --student width:2."
    check_student(model_of(module.eval()), "width:2")


class Staged(nn.Module):
    """A stem and three groups of blocks, as in a ResNet for small images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, widths = nn.Conv2d(3, 8, 3, padding=1), (8, 8, 16, 32)
        for n in (1, 2, 3):
            blocks = [StagedBlock(widths[n - 1], widths[n])] + [StagedBlock(widths[n], widths[n]) for _ in range(2)]
            self.add_module(f"layer{n}", nn.Sequential(*blocks))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for n in (1, 2, 3):
            x = self.get_submodule(f"layer{n}")(x)
        return _pooled(self.head, x)


class StagedBlock(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.skip = nn.Identity() if before == width else nn.Conv2d(before, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.skip(x))


def _widths(module: nn.Module) -> dict[str, int]:
    convs = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)}
    return {name: layer.out_channels for name, layer in convs.items()}


def test_a_wide_and_shallow_student_is_the_shallow_one_widened() -> None:
    teacher = model_of(seeded(Staged))

    def score(module: nn.Module) -> float:
        with torch.no_grad():
            return -float((module(IMAGES) - teacher.module(IMAGES)).square().mean())

    narrow, chosen = student_from_teacher(teacher, "depth:2,2,2", score=score, example=IMAGES)
    wide, record = student_from_teacher(teacher, "depth:2,2,2+width:2", score=score, example=IMAGES)
    assert record.removed == chosen.removed
    assert difference(narrow.module, wide.module) < 1e-5
    assert all(width == 2 * _widths(narrow.module)[name] for name, width in _widths(wide.module).items())
    assert record.macs[1] > 3 * chosen.macs[1]
    assert set(record.widened.values()) == {(8, 16), (16, 32), (32, 64)}


@pytest.mark.assets
def test_a_trained_resnet56_without_most_blocks_is_widened_in_every_layer(assets: Path) -> None:
    net = resnet56(assets)
    names = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(9) if block not in (0, 4)]
    narrow = remove_blocks(model_of(net, side=32, classes=10), names)
    wide, _ = widen_step(narrow, lambda _coupling: 1.5)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    assert difference(narrow.module, wide.module, images) < 1e-5
    assert all(width == 1.5 * _widths(narrow.module)[name] for name, width in _widths(wide.module).items())


def test_groups_have_widths_of_their_own() -> None:
    teacher = model_of(seeded(Staged))
    student, _ = student_from_teacher(teacher, "width:3,1,0.5", score=lambda _m: 0.0, example=IMAGES)
    before, after = _widths(teacher.module), _widths(student.module)
    assert {after[name] / before[name] for name in before if name.startswith(("stem", "layer1"))} == {3}
    assert {after[name] / before[name] for name in before if name.startswith("layer2")} == {1}
    assert {after[name] / before[name] for name in before if name.startswith("layer3")} == {0.5}
    widened_only, _ = student_from_teacher(teacher, "width:2,1.5,1", score=lambda _m: 0.0, example=IMAGES)
    assert difference(teacher.module, widened_only.module) < 1e-5


def test_a_wrong_number_of_factors_shows_the_groups() -> None:
    with pytest.raises(UsageError, match=r"width:2,1 gives 2 factors, .* has 3 groups of blocks: layer1, layer2,"):
        check_student(model_of(seeded(Staged)), "width:2,1")


def test_a_wider_network_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    preprocess = Preprocess(size=(32, 32), resize=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    arch = Architecture(kind="torchvision", name="mobilenet_v3_small", num_classes=5)
    model = Model(get_model("mobilenet_v3_small", num_classes=5).eval(), arch, preprocess, 5)
    wider, widths = widen_step(model, lambda _coupling: 1.5)
    save_model(wider, tmp_path / "wider")
    again = load_saved(tmp_path / "wider")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.module(images), wider.module(images))
    assert again.history[-1].startswith(f"{len(widths)} groups of channels")


# squeeze-excite and depthwise; grouped; concatenations; flattened; shuffled; inverted blocks behind LayerNorm.
@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        pytest.param("squeezenet1_1", marks=pytest.mark.slow),
        pytest.param("resnet18", marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", marks=pytest.mark.slow),
        pytest.param("regnet_y_400mf", marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", marks=pytest.mark.slow),
        pytest.param("mnasnet0_5", marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", marks=pytest.mark.slow),
        pytest.param("densenet121", marks=pytest.mark.slow),
        pytest.param("googlenet", marks=pytest.mark.slow),
        pytest.param("alexnet", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", marks=pytest.mark.slow),
        pytest.param("swin_t", marks=pytest.mark.slow),
    ],
)
def test_known_families_give_the_same_answers(name: str) -> None:
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    model = model_of(get_model(name, num_classes=5, **options).eval(), side=64)
    wider, widths = widen_step(model, lambda _coupling: 1.25)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert float((wider.module(images) - model.module(images)).abs().max()) <= 1e-4
    assert difference(model.module, wider.module, images) <= 1e-4
    assert len(widths) > 3
