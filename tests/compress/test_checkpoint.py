import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from tlc.calibration.preprocess import Preprocess
from tlc.compress.arch import Architecture, build, parse_arch
from tlc.compress.checkpoint import JSON_NAME, WEIGHTS_NAME, load_saved, read_weights, save_model
from tlc.compress.cost import parameters
from tlc.compress.inputs import PreprocessOptions
from tlc.compress.load import load_model
from tlc.compress.model import Model
from tlc.runtime.errors import TlcError

READ_BACK = """
import sys, torch
from pathlib import Path
from tlc.compress.checkpoint import load_saved
for folder in map(Path, sys.argv[1:]):
    sample = torch.load(folder / "sample.pt", weights_only=True)
    model = load_saved(folder / "saved", arch=sample["arch"])
    with torch.inference_mode():
        outputs = model.module(sample["input"])
    if not torch.equal(outputs, sample["outputs"]):
        sys.exit(f"{folder.name}: outputs differ by {(outputs - sample['outputs']).abs().max()}")
print("equal:", len(sys.argv) - 1)
"""

BLOCKS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.activation = lambda x: torch.relu(x)
    def forward(self, x):
        return x + self.activation(self.conv(x))

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.layer = nn.Sequential(*(Block(8) for _ in range(4)))
        self.head = nn.Linear(8, num_classes)
    def forward(self, x):
        return self.head(self.layer(self.stem(x)).mean((2, 3)))

def net(num_classes=3):
    return Net(num_classes)
"""


def model_of(module: nn.Module, arch: Architecture, size: int = 64) -> Model:
    fed = Preprocess(size=(size, size), resize=None, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Model(module.eval(), arch, fed, 5, tuple("abcde"), ("made",))


def torchvision_model(name: str, size: int = 64, **options: int) -> Model:
    arch = Architecture(kind="torchvision", name=name, num_classes=5, options=dict(options))
    return model_of(build(arch, seed=1), arch, size)


def saved_with_sample(model: Model, folder: Path, arch: str | None = None) -> None:
    save_model(model, folder / "saved")
    sample = torch.randn(2, *model.preprocess.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.save({"input": sample, "outputs": model.module(sample), "arch": arch}, folder / "sample.pt")


def pruned(model: Model) -> Model:
    """Return the model with 30 % of its channels removed by torch-pruning alone."""
    tp = pytest.importorskip("torch_pruning")
    module: Any = copy.deepcopy(model.module)
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear) and layer.out_features == 5]
    example = torch.zeros(1, *model.preprocess.input_shape)
    heads = {m: m.num_heads for m in module.modules() if isinstance(m, nn.MultiheadAttention)}
    pruner = tp.pruner.BasePruner(
        module, example, tp.importance.MagnitudeImportance(), pruning_ratio=0.3, round_to=4, ignored_layers=last,
        num_heads=heads,
    )  # fmt: skip
    pruner.step()
    return model.after("pruned", module)


def without_blocks(model: Model) -> Model:
    module: Any = copy.deepcopy(model.module)
    del module.layer1[1]
    module.layer3[1] = nn.Identity()
    return model.after("shortened", module)


def without_its_first_block(model: Model) -> Model:
    module: Any = copy.deepcopy(model.module)
    del module.layer1._modules["0"]
    return model.after("shortened", module)


def shortened_transformer() -> Model:
    model = torchvision_model("vit_b_16", 32, image_size=32)
    module: Any = copy.deepcopy(model.module)
    for index in range(2, 12):
        del module.encoder.layers._modules[f"encoder_layer_{index}"]
    return model.after("shortened", module)


def pickled_sequential(folder: Path) -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding="same"),
        nn.GroupNorm(2, 16),
        nn.GELU(),
        nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16), nn.Hardswish(inplace=True)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(16, 5, bias=False),
    )
    torch.save(module.eval(), folder / "m.pt")
    options = PreprocessOptions(input=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    return load_model(folder / "m.pt", preprocess=options)


def test_outputs_are_bit_equal_in_a_new_process(tmp_path: Path) -> None:
    path = tmp_path / "nets.py"
    path.write_text(BLOCKS)
    resnet, transformer, sequential = (
        torchvision_model("resnet18"),
        shortened_transformer(),
        pickled_sequential(tmp_path),
    )
    smaller = {
        "pruned": (pruned(resnet), resnet),
        "blocks_removed": (without_blocks(resnet), resnet),
        "keys_with_gaps": (without_its_first_block(resnet), resnet),
        "removed_then_pruned": (pruned(without_blocks(resnet)), resnet),
        "mobilenet_pruned": (pruned(mobilenet := torchvision_model("mobilenet_v3_small")), mobilenet),
        "transformer_pruned": (pruned(transformer), transformer),
        "sequential_pruned": (pruned(sequential), sequential),
    }
    for made, before in smaller.values():
        assert parameters(made.module) < parameters(before.module)
    models = {name: made for name, (made, _before) in smaller.items()}
    for name, model in {"whole": resnet, "sequential": sequential, **models}.items():
        (tmp_path / name).mkdir()
        saved_with_sample(model, tmp_path / name)
    (tmp_path / "file").mkdir()
    saved_with_sample(shortened_file_model(path), tmp_path / "file", f"{path}:net")
    folders = sorted(str(folder) for folder in tmp_path.iterdir() if folder.is_dir())
    command = [sys.executable, "-c", READ_BACK, *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal: 10"


def shortened_file_model(path: Path) -> Model:
    """Return a network of `path` with two of four blocks, one at another place, where its lambda must follow."""
    arch = parse_arch(f"{path}:net").with_classes(5)
    module: Any = build(arch, seed=1)
    blocks = list(module.layer)
    module.layer = nn.Sequential(blocks[0], blocks[3])
    return model_of(module, arch, 16)


def test_a_network_of_a_file_needs_that_file_again(tmp_path: Path) -> None:
    path = tmp_path / "nets.py"
    path.write_text(BLOCKS)
    save_model(shortened_file_model(path), tmp_path / "saved")
    with pytest.raises(TlcError, match="which tlc runs only if you name it"):
        load_saved(tmp_path / "saved")
    path.write_text(BLOCKS + "\n")
    with pytest.raises(TlcError, match="has changed since the model in"):
        load_saved(tmp_path / "saved", arch=f"{path}:net")


def test_weights_lie_where_the_last_bit_does_not_depend_on_the_file(tmp_path: Path) -> None:
    wanted = {name: torch.randn(size) for name, size in (("a", 5), ("b", 7), ("c", 3))}
    save_file(wanted, tmp_path / "m.safetensors")

    found = read_weights(tmp_path / "m.safetensors")

    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert [tensor.data_ptr() % 64 for tensor in found.values()] == [0, 0, 0]


def test_blocks_with_code_can_move_to_another_place(tmp_path: Path) -> None:
    path = tmp_path / "nets.py"
    path.write_text(BLOCKS)
    arch = parse_arch(f"{path}:net").with_classes(5)
    module: Any = build(arch, seed=1)
    module.layer.add_module("extra", copy.deepcopy(module.layer[0]))
    save_model(model_of(module, arch, 16), tmp_path / "saved")
    again: Any = load_saved(tmp_path / "saved", arch=f"{path}:net")
    sample = torch.randn(1, 3, 16, 16)
    assert torch.equal(again.module(sample), module(sample))


def test_everything_that_is_not_the_network_comes_back_too(tmp_path: Path) -> None:
    model = torchvision_model("squeezenet1_1")
    save_model(model, tmp_path / "saved")
    again: Any = load_saved(tmp_path / "saved")
    assert (again.arch, again.preprocess, again.num_classes) == (model.arch, model.preprocess, model.num_classes)
    assert (again.classes, again.history) == (model.classes, model.history)
    assert not again.module.training


def test_the_same_model_gives_the_same_bytes_and_no_pickle(tmp_path: Path) -> None:
    model = torchvision_model("squeezenet1_1")
    save_model(model, tmp_path / "one")
    save_model(load_saved(tmp_path / "one"), tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [JSON_NAME, WEIGHTS_NAME]
    for name in (JSON_NAME, WEIGHTS_NAME):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(12, 4), first, second, nn.Linear(4, 5)), tmp_path / "m.pt")
    options = PreprocessOptions(input=(3, 2, 2), mean=(0.5,) * 3, std=(0.5,) * 3)
    save_model(load_model(tmp_path / "m.pt", preprocess=options), tmp_path / "saved")
    again: Any = load_saved(tmp_path / "saved").module
    assert again[3].weight is again[2].weight


def test_channels_last_weights_keep_their_order(tmp_path: Path) -> None:
    model = torchvision_model("resnet18")
    module: Any = copy.deepcopy(model.module).to(memory_format=torch.channels_last)
    save_model(model.after("trained", module), tmp_path / "saved")
    again: Any = load_saved(tmp_path / "saved").module
    assert again.conv1.weight.stride() == module.conv1.weight.stride()


def test_what_cannot_be_written_down_is_refused_before_writing(tmp_path: Path) -> None:
    class Local(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = torchvision_model("resnet18")
    module: Any = copy.deepcopy(model.module)
    module.relu = Local()
    with pytest.raises(TlcError, match=r"relu is a .*Local, which is no layer of torch, torchvision or timm"):
        save_model(model.after("changed", module), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_function_as_an_attribute_is_refused_by_its_place(tmp_path: Path) -> None:
    model = torchvision_model("resnet18")
    module: Any = copy.deepcopy(model.module)
    module.layer1[0].extra = print
    with pytest.raises(TlcError, match=r"layer1\.0\.extra cannot be written down without a pickle"):
        save_model(model.after("changed", module), tmp_path / "saved")


def test_a_hostile_model_json_names_no_class_of_its_own(tmp_path: Path) -> None:
    save_model(torchvision_model("resnet18"), tmp_path / "saved")
    path = tmp_path / "saved" / JSON_NAME
    content = json.loads(path.read_text())
    node = {"class": "subprocess.Popen", "attributes": {}, "parameters": {}, "buffers": {}, "modules": {}}
    content["edit"] = {"modules": [["conv1", {"new": node}]]}
    path.write_text(json.dumps(content))
    with pytest.raises(TlcError, match=r"subprocess\.Popen, which is no layer"):
        load_saved(tmp_path / "saved")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (JSON_NAME, b"{", "is not a model of this version of tlc"),
        (JSON_NAME, b'{"format": "tlc-model/9"}', "is not a model of this version of tlc: "),
        (WEIGHTS_NAME, b"\x08\x00", "is not a whole safetensors file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    save_model(torchvision_model("squeezenet1_1"), tmp_path / "saved")
    (tmp_path / "saved" / name).write_bytes(content)
    with pytest.raises(TlcError, match=message):
        load_saved(tmp_path / "saved")


FAMILIES = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "vgg11_bn", "densenet121", "googlenet",
    "inception_v3",
    "efficientnet_b0", "convnext_tiny", "shufflenet_v2_x1_0", "vit_b_16", "swin_t",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_loads_and_comes_back(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": True} if name in ("googlenet", "inception_v3") else {}
    module = torchvision.models.get_model(name, num_classes=10, **options).eval()
    torch.save(module.state_dict(), tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", arch=f"torchvision:{name}")
    assert model.num_classes == 10
    save_model(model, tmp_path / "saved")
    sample = torch.randn(1, *model.preprocess.input_shape)
    with torch.inference_mode():
        assert torch.equal(load_saved(tmp_path / "saved").module(sample), model.module(sample))
