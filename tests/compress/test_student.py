import copy
from pathlib import Path

import pytest
import torch
from real_networks import resnet56
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model

from tlc.calibration.preprocess import Preprocess
from tlc.compress.arch import Architecture
from tlc.compress.model import Model
from tlc.compress.space import space_of
from tlc.compress.student import (
    StudentSpec,
    block_groups,
    check_student,
    choose_blocks,
    is_built_from_teacher,
    parse_student,
    removable_blocks,
    remove_blocks,
    student_from_teacher,
)
from tlc.runtime.errors import TlcError, UsageError


class Block(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width_in, width, 3, padding=1), nn.BatchNorm2d(width)
        self.skip = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)) + self.skip(x))


class Net(nn.Module):
    """Two groups: 4 blocks that can all go, and 3 of which the first cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1 = nn.Sequential(*[Block(8, 8) for _ in range(4)])
        self.layer2 = nn.ModuleList([Block(8, 16), Block(16, 16), Block(16, 16)])
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(F.relu(self.stem(x)))
        for block in self.layer2:
            x = block(x)
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class Indexed(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(F.relu(self.stem(x)))
        for index in range(3):
            x = self.layer2[index](x)
        y: Tensor = self.head(x.mean((2, 3)))
        return y


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def model_of(module: nn.Module, side: int = 8, classes: int = 5) -> Model:
    preprocess = Preprocess(size=(side, side), resize=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Model(module.eval(), Architecture(kind="file", name="net.py:build"), preprocess, classes)


@pytest.fixture
def teacher() -> Model:
    torch.manual_seed(0)
    return model_of(Net())


def test_blocks_with_a_path_around_their_weights_are_found(teacher: Model) -> None:
    names = [block.name for block in removable_blocks(teacher)]
    assert names == ["layer1.0", "layer1.1", "layer1.2", "layer1.3", "layer2.1", "layer2.2"]
    last = removable_blocks(teacher)[-1]
    assert (last.group, last.parameters, last.shape) == ("layer2", 16 * 16 * 9 + 16 + 32, (16, 8, 8))


def test_groups_count_the_blocks_that_must_stay(teacher: Model) -> None:
    assert [(g.name, len(g.members), len(g.removable)) for g in block_groups(teacher)] == [
        ("layer1", 4, 4),
        ("layer2", 3, 2),
    ]


def test_a_search_may_empty_a_group_whose_blocks_can_all_go(teacher: Model) -> None:
    depths = {one.name: one.values for one in space_of(teacher).choices if one.part == "depth"}

    assert depths == {"depth.layer1": (0, 1, 2, 3, 4), "depth.layer2": (1, 2, 3)}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 5),
        ("mobilenet_v2", 10),
        ("efficientnet_b0", 9),
        ("mobilenet_v3_small", 6),
        ("vgg11_bn", 0),
        ("squeezenet1_0", 0),
        ("densenet121", 0),
    ],
)
def test_known_families_have_as_many_blocks_as_their_definitions_say(name: str, count: int) -> None:
    torch.manual_seed(0)
    assert len(removable_blocks(model_of(get_model(name, weights=None), side=64, classes=1000))) == count


@pytest.mark.parametrize(("build", "count"), [("vit", 3), ("swin", 4), ("convnext", 4), ("post-norm", 2)])
def test_attention_and_inverted_blocks_are_found(build: str, count: int) -> None:
    from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
    from torchvision.models.convnext import CNBlockConfig

    torch.manual_seed(0)
    module: nn.Module
    if build == "vit":
        module = VisionTransformer(16, 4, 3, 4, 32, 64, num_classes=5)
    elif build == "swin":
        module = SwinTransformer([2, 2], 8, [2, 2], [2, 4], [2, 2], num_classes=5)
    elif build == "post-norm":
        # torch's own encoder asks its first layer for its settings, so that one has to stay.
        layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 3)
        module = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Flatten(2), _Swap(), layers, _Mean(), nn.Linear(16, 5))
    else:
        module = ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)], num_classes=5)
    assert len(removable_blocks(model_of(module, side=16))) == count


class _Swap(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def test_the_others_keep_names_and_weights_and_the_teacher_everything(teacher: Model) -> None:
    before = copy.deepcopy(teacher.module.state_dict())
    student = remove_blocks(teacher, ["layer1.1", "layer2.2"])
    weights = student.module.state_dict()
    assert set(before) - set(weights) == {key for key in before if key.startswith(("layer1.1.", "layer2.2."))}
    assert all(torch.equal(weights[key], before[key]) for key in weights)
    assert before.keys() == teacher.module.state_dict().keys()
    assert student.history == ("2 blocks left out: layer1.1, layer2.2",)


def test_leaving_out_a_block_is_skipping_it(teacher: Model) -> None:
    student = remove_blocks(teacher, ["layer1.1", "layer1.2"])
    net = teacher.module
    assert isinstance(net, Net)
    x = net.layer1[3](net.layer1[0](F.relu(net.stem(IMAGES))))
    for block in net.layer2:
        x = block(x)
    assert torch.equal(student.module(IMAGES), net.head(x.mean((2, 3))))


def test_a_network_that_counts_its_blocks_gets_an_identity_instead() -> None:
    torch.manual_seed(0)
    student = remove_blocks(model_of(Indexed()), ["layer2.1"])
    assert isinstance(student.module.get_submodule("layer2.1"), nn.Identity)
    assert student.module(IMAGES).shape == (4, 5)


def test_an_unknown_block_is_named(teacher: Model) -> None:
    with pytest.raises(TlcError, match=r"has no block 'layer7\.1'"):
        remove_blocks(teacher, ["layer7.1"])


def _count_score(worth: dict[str, float]) -> tuple[list[int], object]:
    """Return how often the score was asked, and a score that adds up the worth of the blocks that are there."""
    asked = [0]

    def score(module: nn.Module) -> float:
        asked[0] += 1
        names = {name for name, _ in module.named_modules()}
        return sum(value for name, value in worth.items() if name in names)

    return asked, score


WORTH = {"layer1.0": 5.0, "layer1.1": 1.0, "layer1.2": 4.0, "layer1.3": 2.0, "layer2.1": 3.0, "layer2.2": 6.0}


def test_the_blocks_that_hurt_least_go_first(teacher: Model) -> None:
    asked, score = _count_score(WORTH)
    removed, before, evaluations = choose_blocks(teacher, 0.5, score)  # type: ignore[arg-type]
    assert [(block.name, block.score) for block in removed] == [("layer1.1", 20), ("layer1.3", 18), ("layer2.1", 15)]
    assert before == 21
    assert evaluations == asked[0] == 1 + 6 + 5 + 4


def test_counts_are_met_per_group(teacher: Model) -> None:
    _, score = _count_score(WORTH)
    removed, _, _ = choose_blocks(teacher, (3, 1), score)  # type: ignore[arg-type]
    assert [block.name for block in removed] == ["layer1.1", "layer2.1", "layer2.2"]


def test_what_is_known_of_a_teacher_is_not_asked_for_again(teacher: Model) -> None:
    asked, score = _count_score(WORTH)
    known: dict[frozenset[str], float] = {}
    choose_blocks(teacher, 0.5, score, known=known)  # type: ignore[arg-type]
    before = asked[0]

    removed, _, _ = choose_blocks(teacher, (3, 1), score, known=known)  # type: ignore[arg-type]

    assert [block.name for block in removed] == ["layer1.1", "layer2.1", "layer2.2"]
    assert asked[0] - before == 1


@pytest.mark.parametrize("limit", [6, 8, 9])
def test_the_number_of_evaluations_is_bounded(teacher: Model, limit: int) -> None:
    asked, score = _count_score(WORTH)
    removed, _, _ = choose_blocks(teacher, 0.5, score, max_evaluations=limit)  # type: ignore[arg-type]
    assert asked[0] <= 1 + max(limit, 6)
    assert [block.name for block in removed] == ["layer1.1", "layer1.3", "layer2.1"]


def test_what_was_removed_changes_what_is_worth_keeping(teacher: Model) -> None:
    def score(module: nn.Module) -> float:
        names = {name for name, _ in module.named_modules()}
        # Either of two alike blocks can go, not both.
        return 10.0 * ("layer1.0" in names or "layer1.1" in names) + sum(WORTH[n] for n in WORTH if n in names) / 100

    removed, _, _ = choose_blocks(teacher, (2, 3), score)
    assert [block.name for block in removed] == ["layer1.1", "layer1.3"]


def test_a_student_of_depth_and_width_records_how_it_came_to_be(teacher: Model) -> None:
    _, score = _count_score(WORTH)
    student, record = student_from_teacher(
        teacher,
        "depth:3,2+width:0.5",
        score=score,  # type: ignore[arg-type]
        example=IMAGES,
        round_to=4,
    )
    assert student.module(IMAGES).shape == (4, 5)
    assert record.kept_per_group == {"layer1": 3, "layer2": 2}
    assert [block.name for block in record.removed] == ["layer1.1", "layer2.1"]
    assert record.parameters[1] < record.parameters[0] / 3
    assert record.macs[1] < record.macs[0] / 3
    assert len(student.history) == 2
    assert record.model_dump(mode="json")["spec"] == "depth:3,2+width:0.5"


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("depth:0.5", StudentSpec(depth=0.5)),
        ("depth:1", StudentSpec(depth=1.0)),
        ("depth:4", StudentSpec(depth=(4,))),
        ("depth:4,0,4", StudentSpec(depth=(4, 0, 4))),
        ("width:0.75", StudentSpec(width=0.75)),
        ("width:0.75+depth:4,4", StudentSpec(depth=(4, 4), width=0.75)),
        ("width:2", StudentSpec(width=2.0)),
        ("depth:2,2+width:2,0.75", StudentSpec(depth=(2, 2), width=(2.0, 0.75))),
    ],
)
def test_specs_are_understood(text: str, spec: StudentSpec) -> None:
    assert parse_student(text) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth:1.5", "depth:1.5 in 'depth:1.5' is out of range: the share to keep is above 0 and at most 1."),
        ("width:0", "width:0 in 'width:0' is out of range"),
        ("width:5", "width:5 in 'width:5' is out of range: the share to keep is above 0 and at most 4."),
        ("width:2,x", "width:x in 'width:2,x' is out of range"),
        ("depth:", "depth: in 'depth:' is out of range"),
        ("depth:0", "'depth:0' keeps no block."),
        ("depth:0.5+hight:2", "'hight:2' is not understood"),
        ("depth:0.5+depth:0.5", "'depth:0.5' is not understood"),
    ],
)
def test_wrong_specs_name_the_value_and_the_limit(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_student(text)
    assert message in caught.value.message


def test_architectures_are_not_built_from_the_teacher() -> None:
    assert not is_built_from_teacher("net.py:depth")
    with pytest.raises(UsageError):
        check_student(model_of(Net()), "nonsense")


def test_a_wrong_number_of_counts_shows_the_groups(teacher: Model) -> None:
    with pytest.raises(UsageError, match="gives 3 counts") as caught:
        check_student(teacher, "depth:2,2,2")
    assert "layer1 4 (4 removable); layer2 3 (2 removable)" in caught.value.message
    assert caught.value.hint == "Give one count for each group, as in depth:4,3."


@pytest.mark.parametrize("text", ["depth:2,0", "depth:5,2"])
def test_counts_outside_the_limits_show_the_limits(teacher: Model, text: str) -> None:
    with pytest.raises(UsageError, match=r"\(limits: (1 to 3|0 to 4)\)"):
        check_student(teacher, text)


def test_a_plain_stack_has_no_depth_to_remove() -> None:
    stack = nn.Sequential(*[nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(3)])
    model = model_of(nn.Sequential(stack, nn.Flatten(), nn.Linear(192, 5)))
    with pytest.raises(TlcError, match="no blocks that can be left out"):
        check_student(model, "depth:0.5")


@pytest.mark.assets
def test_a_trained_resnet56_loses_blocks_that_it_hardly_misses(assets: Path) -> None:
    net = resnet56(assets)
    model = model_of(net, side=32, classes=10)
    assert len(removable_blocks(model)) == 25
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = net(images).log_softmax(1)

    def score(module: nn.Module) -> float:
        with torch.no_grad():
            return -float(F.kl_div(module(images).log_softmax(1), wanted, log_target=True, reduction="batchmean"))

    student, record = student_from_teacher(model, "depth:4,4,4", score=score, example=images, max_evaluations=25)
    assert record.kept_per_group == {"layer1": 4, "layer2": 4, "layer3": 4}
    assert student.module(images).isfinite().all()
    assert record.macs[0] == 125_747_840
    assert record.macs[1] < record.macs[0] / 2
