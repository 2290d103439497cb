import copy
from collections.abc import Callable

import pytest
import torch
import torch_pruning as tp
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model
from torchvision.ops import SqueezeExcitation

from tlc.calibration.preprocess import Preprocess
from tlc.compress.arch import Architecture
from tlc.compress.cost import macs, parameters
from tlc.compress.coupling import Cut, Graph, couplings, with_random_weights
from tlc.compress.model import Model
from tlc.compress.prune import PruneSettings, check_prunable, prune_step, reestimate_batchnorm, rounded_width
from tlc.runtime.errors import TlcError


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.inner, self.back = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.back(F.relu(self.inner(x)))
        y: Tensor = self.head(F.adaptive_avg_pool2d(x, 4).flatten(1))
        return y


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 24, 3, padding=1)
        self.norm, self.joined = nn.BatchNorm2d(40), nn.Conv2d(40, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        y: Tensor = self.head(self.joined(x).mean((2, 3)))
        return y


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.gate = SqueezeExcitation(32, 8)
        self.grouped, self.norm = nn.Conv2d(32, 64, 3, groups=4), nn.GroupNorm(8, 64)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(F.relu(self.depthwise(self.expand(x))))
        y: Tensor = self.head(F.gelu(self.norm(self.grouped(x))).mean((2, 3)))
        return y


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, -1))
        return y


class Transformer(nn.Module):
    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.patches, self.position = nn.Conv2d(3, 32, 4, 4), nn.Parameter(torch.randn(1, 4, 32))
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True) if fused else Attention(32, 4)
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        z = self.first(x)
        x = x + (self.attention(z, z, z)[0] if isinstance(self.attention, nn.MultiheadAttention) else self.attention(z))
        x = x + self.down(F.gelu(self.up(self.second(x))))
        y: Tensor = self.head(x.mean(1))
        return y


class Shuffle(nn.Module):
    """Channels 0, 8, 1, 9, ...: elementwise to a tracer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.after = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1)
        self.inner, self.head = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 1)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        y: Tensor = self.head(self.after(self.inner(x)).mean((2, 3)))
        return y


NETS: list[Callable[[], nn.Module]] = [Residual, Concat, Grouped, Transformer, Shuffle, lambda: Transformer(fused=True)]
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
HALF = PruneSettings(ratio=0.5, round_to=4)


def model_of(module: nn.Module) -> Model:
    preprocess = Preprocess(size=(8, 8), resize=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Model(module.eval(), Architecture(kind="file", name="net.py:build"), preprocess, 5)


def seeded(build: Callable[[], nn.Module]) -> Model:
    torch.manual_seed(0)
    return model_of(build())


@pytest.mark.parametrize("build", NETS)
def test_a_pruned_network_answers_in_the_same_form_with_fewer_parameters(build: Callable[[], nn.Module]) -> None:
    model = seeded(build)
    pruned = prune_step(model, HALF)
    assert pruned.module(IMAGES).shape == model.module(IMAGES).shape
    assert pruned.module(IMAGES).isfinite().all()
    assert parameters(pruned.module) < parameters(model.module)
    assert pruned.history[-1].startswith("pruned 1/1")
    assert pruned.module.training is False


@pytest.mark.parametrize("build", NETS)
def test_the_original_stays_bit_for_bit_and_the_result_repeats(build: Callable[[], nn.Module]) -> None:
    model = seeded(build)
    before = copy.deepcopy(model.module.state_dict())
    first, second = prune_step(model, HALF).module.state_dict(), prune_step(model, HALF).module.state_dict()
    assert all(torch.equal(before[key], value) for key, value in model.module.state_dict().items())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("build", [Residual, Concat])
def test_costs_agree_with_the_counter_of_torch_pruning(build: Callable[[], nn.Module]) -> None:
    module = prune_step(seeded(build), HALF).module
    for layer in list(module.modules()):
        if isinstance(layer, nn.BatchNorm2d):
            layer.forward = nn.Identity().forward  # type: ignore[method-assign]
    counted, count = tp.utils.count_ops_and_params(module, IMAGES[:1])
    assert parameters(module) == count
    # Its counter adds one operation per bias, pooling and norm output; products dominate.
    assert counted == pytest.approx(macs(module, IMAGES), rel=0.15)


def test_channels_that_nobody_uses_go_first_and_change_nothing() -> None:
    model = seeded(Residual)
    net = model.module
    assert isinstance(net, Residual)
    useless = [1, 4, 5, 13]
    with torch.no_grad():
        for layer in (net.stem, net.back, net.norm):
            layer.weight[useless] = 0
            layer.bias[useless] = 0  # type: ignore[index]
        net.inner.weight[:, useless] = 0
        net.head.weight.view(5, 16, 16)[:, useless] = 0
        net.inner.weight[::4] = 0
        net.inner.bias[::4] = 0  # type: ignore[index]
    pruned = prune_step(model, PruneSettings(ratio=0.25, round_to=4)).module
    assert isinstance(pruned, Residual)
    assert (pruned.stem.out_channels, pruned.inner.out_channels, pruned.head.in_features) == (12, 24, 192)
    assert torch.allclose(pruned(IMAGES), net(IMAGES), atol=1e-5)


def test_a_coupling_that_the_tracer_gets_wrong_is_left_out() -> None:
    net = seeded(Shuffle).module
    assert {"stem", "after"} & {coupling.root for coupling in couplings(net, IMAGES)} == {"after"}
    assert "inner.0" in {coupling.root for coupling in couplings(net, IMAGES)}


def test_outputs_are_never_among_the_couplings() -> None:
    for build in NETS:
        assert all("head" not in coupling.producers for coupling in couplings(seeded(build).module, IMAGES))


def test_removing_equals_silencing_on_a_real_network() -> None:
    net = with_random_weights(get_model("mobilenet_v3_small", weights=None).eval())
    example = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    cuts = [Cut(c.root, (0, 2, 5)) for c in couplings(net, example)]
    silent, removed = copy.deepcopy(net), copy.deepcopy(net)
    Graph(silent, example).silence(cuts)
    Graph(removed, example).remove(cuts)
    expected, difference = silent(example), (silent(example) - removed(example)).abs().max()
    assert len(cuts) > 15
    assert difference < 1e-4 * expected.abs().max()
    assert (expected - net(example)).abs().max() > 0.1 * expected.abs().max()


def test_widths_are_rounded_and_small_layers_keep_something() -> None:
    assert [rounded_width(45, 64, multiple) for multiple in (1, 8, 16, 32)] == [45, 48, 48, 32]
    assert rounded_width(3, 64, 8) == 8
    assert rounded_width(11, 16, 16) == 8
    assert rounded_width(60, 60, 8) == 60


def test_global_scope_takes_what_matters_least_but_empties_no_layer() -> None:
    model = seeded(Concat)
    with torch.no_grad():
        model.module.right.weight.mul_(1e-4)  # type: ignore[operator, union-attr]
    settings = PruneSettings(ratio=0.4, scope="global", round_to=1, max_ratio=0.75)
    pruned = prune_step(model, settings).module
    assert isinstance(pruned, Concat)
    widths = [pruned.left.out_channels, pruned.right.out_channels, pruned.joined.out_channels]
    assert sum(widths) == round(0.6 * 56)
    assert min(widths) >= 4


@pytest.mark.parametrize("importance", ["magnitude", "bn_scale", "taylor", "hessian"])
def test_every_importance_ranks(importance: str) -> None:
    settings = PruneSettings.model_validate({"ratio": 0.5, "importance": importance, "round_to": 4})
    pruned = prune_step(seeded(Residual), settings, batches=[(IMAGES, LABELS)])
    assert parameters(pruned.module) < parameters(seeded(Residual).module)
    assert all(p.grad is None for p in pruned.module.parameters())


def test_taylor_spares_the_channels_that_carry_the_loss() -> None:
    model = seeded(Residual)
    net = model.module
    assert isinstance(net, Residual)
    with torch.no_grad():
        # Large weights that reach nobody: magnitude likes them, the gradient does not.
        net.inner.weight[:16] = 5.0
        net.back.weight[:, :16] = 0
    settings = PruneSettings(ratio=0.5, round_to=1, exclude=("stem",), importance="taylor")
    pruned = prune_step(model, settings, batches=[(IMAGES, LABELS)]).module
    assert isinstance(pruned, Residual)
    assert torch.equal(pruned.inner.weight, net.inner.weight[16:])


def test_hessian_is_the_mean_of_squared_gradients_per_sample() -> None:
    from tlc.compress.importance import _accumulate

    linear = nn.Linear(192, 5)
    net = nn.Sequential(nn.Flatten(), linear)
    _accumulate(net, [(IMAGES[:2], LABELS[:2]), (IMAGES[2:], LABELS[2:])], squared=True)
    squares = []
    for image, label in zip(IMAGES, LABELS, strict=True):
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(image[None]), label[None]), [linear.weight])
        squares.append(gradient.square())
    assert linear.weight.grad is not None
    assert torch.allclose(linear.weight.grad, torch.stack(squares).mean(0), rtol=1e-4)


def test_gradient_importance_without_samples_says_what_to_do() -> None:
    with pytest.raises(TlcError, match="need labelled samples") as caught:
        prune_step(seeded(Residual), PruneSettings(ratio=0.5, importance="taylor"))
    assert caught.value.hint == "Use importance = magnitude."


@pytest.mark.parametrize("target", ["macs_ratio", "params_ratio"])
def test_a_cost_target_is_met_and_not_overdone(target: str) -> None:
    model = seeded(Residual)
    pruned = prune_step(model, PruneSettings.model_validate({target: 0.5, "round_to": 1})).module
    cost = macs if target == "macs_ratio" else lambda module, _: parameters(module)
    assert 0.42 < cost(pruned, IMAGES) / cost(model.module, IMAGES) <= 0.5


def test_an_unreachable_cost_target_says_what_is_possible() -> None:
    with pytest.raises(TlcError, match=r"Removing 99% of the MACs is out of reach: with at most 20% .* can be removed"):
        prune_step(seeded(Residual), PruneSettings(macs_ratio=0.99, max_ratio=0.2))


def test_steps_end_at_the_widths_of_one_step_when_the_original_is_known() -> None:
    original = seeded(Residual)
    model = original
    settings = PruneSettings(ratio=0.5, steps=3, round_to=8)
    for step in (1, 2, 3):
        model = prune_step(model, settings, step=step, original=original)
    at_once = prune_step(original, PruneSettings(ratio=0.5, round_to=8))
    shapes = [tuple(p.shape) for p in model.module.parameters()]
    assert shapes == [tuple(p.shape) for p in at_once.module.parameters()]
    assert [line.split(":")[0] for line in model.history] == ["pruned 1/3", "pruned 2/3", "pruned 3/3"]


def test_steps_without_the_original_share_the_work() -> None:
    model = seeded(Residual)
    for step in (1, 2):
        model = prune_step(model, PruneSettings(ratio=0.5, steps=2, round_to=1), step=step)
    assert isinstance(model.module, Residual)
    assert (model.module.stem.out_channels, model.module.inner.out_channels) == (8, 16)


def test_excluded_layers_keep_their_width() -> None:
    pruned = prune_step(seeded(Residual), PruneSettings(ratio=0.5, round_to=4, exclude=("inn*",))).module
    assert isinstance(pruned, Residual)
    assert (pruned.stem.out_channels, pruned.inner.out_channels) == (8, 32)


def test_a_pattern_without_a_layer_lists_the_layers() -> None:
    with pytest.raises(TlcError, match=r"exclude = 'layer9\.\*' matches no layer") as caught:
        check_prunable(seeded(Residual), PruneSettings(exclude=("layer9.*",)))
    assert "stem, norm, inner, back, head" in caught.value.hint


def test_a_network_without_inner_channels_is_refused() -> None:
    with pytest.raises(TlcError, match="no channels that can be pruned: none was proven") as caught:
        check_prunable(model_of(nn.Sequential(nn.Flatten(), nn.Linear(192, 5))))
    assert "--prune 0" in caught.value.hint


def test_a_network_that_does_not_run_on_its_input_is_refused() -> None:
    with pytest.raises(TlcError, match=r"does not run on an input of \(1, 3, 8, 8\)"):
        check_prunable(model_of(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(4, 5))))


def test_heads_are_removed_whole_and_the_rest_computes_as_before() -> None:
    model = seeded(Transformer)
    net = model.module
    assert isinstance(net, Transformer)
    assert isinstance(net.attention, Attention)
    with torch.no_grad():
        for head in (1, 2):
            rows = slice(8 * head, 8 * head + 8)
            net.attention.proj.weight[:, rows] = 0
            net.attention.qkv.weight.view(3, 32, 32)[:, rows] *= 0.01
    pruned = prune_step(model, PruneSettings(ratio=0.5, heads=True, exclude=("up", "patches"))).module
    assert isinstance(pruned, Transformer)
    assert isinstance(pruned.attention, Attention)
    assert (pruned.attention.num_heads, pruned.attention.qkv.out_features, pruned.attention.proj.in_features) == (
        2,
        48,
        16,
    )
    assert torch.allclose(pruned(IMAGES), net(IMAGES), atol=1e-5)


def test_heads_that_cannot_go_are_refused_before_work() -> None:
    with pytest.raises(TlcError, match=r"no attention whose heads can be removed.*nn\.MultiheadAttention"):
        check_prunable(seeded(lambda: Transformer(fused=True)), PruneSettings(heads=True))


def test_frozen_parameters_stay_frozen() -> None:
    model = seeded(Residual)
    model.module.get_submodule("stem").requires_grad_(False)
    pruned = prune_step(model, HALF).module
    flags = {name: p.requires_grad for name, p in pruned.named_parameters()}
    assert flags == {name: p.requires_grad for name, p in model.module.named_parameters()}
    assert not flags["stem.weight"]


def test_no_attribute_appears_that_the_layers_did_not_have() -> None:
    for build in (Residual, Transformer):
        model = seeded(build)
        pruned = dict(prune_step(model, HALF).module.named_modules())
        for name, layer in model.module.named_modules():
            assert vars(pruned[name]).keys() == vars(layer).keys()


def test_auxiliary_classifiers_do_not_break_later_training() -> None:
    torch.manual_seed(0)
    net = get_model("googlenet", weights=None, num_classes=5, init_weights=False)
    preprocess = Preprocess(size=(64, 64), resize=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    model = Model(net.eval(), Architecture(kind="torchvision", name="googlenet"), preprocess, 5)
    pruned = prune_step(model, PruneSettings(ratio=0.3)).module.train()
    assert pruned(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_the_library_stays_silent(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    prune_step(seeded(Transformer), HALF)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_batchnorm_statistics_are_averages_over_the_batches() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5)).eval()
    reestimate_batchnorm(net, [IMAGES[:3], IMAGES[3:]])
    features = net[0](IMAGES)
    assert torch.allclose(net[1].running_mean, features.mean((0, 2, 3)), atol=1e-6)  # type: ignore[arg-type]
    halves = torch.stack([half.var((0, 2, 3)) for half in features.split(3)]).mean(0)
    assert torch.allclose(net[1].running_var, halves, rtol=1e-4)  # type: ignore[arg-type]
    assert net[1].momentum == 0.3
    assert not any(layer.training for layer in net.modules())


def test_only_one_target_can_be_set() -> None:
    with pytest.raises(ValidationError, match="ratio and macs_ratio are both set; keep one"):
        PruneSettings(ratio=0.3, macs_ratio=0.5)


@pytest.mark.parametrize("wrong", [{"ratio": 1.0}, {"ratio": -0.1}, {"steps": 0}, {"max_ratio": 1}, {"unknown": 1}])
def test_settings_outside_their_limits_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        PruneSettings.model_validate(wrong)
