import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from tlc.compress.inputs import PreprocessOptions
from tlc.compress.load import load_model
from tlc.runtime.errors import TlcError

SQUEEZENET = "torchvision:squeezenet1_1"
PLAIN = PreprocessOptions(input=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = torchvision.models.squeezenet1_1(num_classes=5).eval()
    return module


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


def outputs(module: nn.Module, size: int = 64) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = module(torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size))
    return result


def test_classes_are_read_from_the_weights(tmp_path: Path, squeezenet: nn.Module) -> None:
    torch.save(squeezenet.state_dict(), tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", arch=SQUEEZENET)
    assert model.num_classes == 5
    assert model.preprocess.size == (224, 224)
    assert torch.equal(outputs(model.module), outputs(squeezenet))


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "params", "weights", "ema"])
def test_nested_weights_with_a_prefix_and_an_optimizer_load(tmp_path: Path, squeezenet: nn.Module, key: str) -> None:
    weights = {f"module.{name}": value for name, value in squeezenet.state_dict().items()}
    optimizer = torch.optim.SGD(squeezenet.parameters(), lr=0.1, momentum=0.9).state_dict()
    torch.save({"epoch": 3, key: weights, "optimizer": optimizer, "classes": list("abcde")}, tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", arch=SQUEEZENET)
    assert torch.equal(outputs(model.module), outputs(squeezenet))
    assert model.classes == tuple("abcde")
    assert "removed the prefix 'module.'" in model.history[0]


def test_a_legacy_pickle_loads(tmp_path: Path, squeezenet: nn.Module) -> None:
    torch.save(squeezenet.state_dict(), tmp_path / "m.th", _use_new_zipfile_serialization=False)
    model = load_model(tmp_path / "m.th", arch=SQUEEZENET)
    assert torch.equal(outputs(model.module), outputs(squeezenet))
    assert "legacy" in model.history[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_used_as_float32_and_said_so(
    tmp_path: Path, squeezenet: nn.Module, dtype: torch.dtype
) -> None:
    torch.save({key: value.to(dtype) for key, value in squeezenet.state_dict().items()}, tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", arch=SQUEEZENET)
    assert {value.dtype for value in model.module.parameters()} == {torch.float32}
    assert f"stored as {str(dtype).removeprefix('torch.')}, used as float32" in model.history[0]


def test_safetensors_load(tmp_path: Path, squeezenet: nn.Module) -> None:
    import safetensors.torch

    safetensors.torch.save_file(squeezenet.state_dict(), tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors", arch=SQUEEZENET).num_classes == 5


def test_weights_of_exported_and_scripted_archives_load_without_running_them(
    tmp_path: Path, squeezenet: nn.Module
) -> None:
    torch.export.save(torch.export.export(squeezenet, (torch.zeros(1, 3, 64, 64),)), tmp_path / "m.pt2")
    torch.jit.trace(squeezenet, torch.zeros(1, 3, 64, 64)).save(tmp_path / "m.pt")  # type: ignore[no-untyped-call]
    for name, kind in (("m.pt2", "torch.export archive"), ("m.pt", "TorchScript archive")):
        model = load_model(tmp_path / name, arch=SQUEEZENET)
        assert torch.equal(outputs(model.module), outputs(squeezenet))
        assert kind in model.history[0]


def test_weights_alone_are_answered_with_the_architecture_they_fit(tmp_path: Path, squeezenet: nn.Module) -> None:
    torch.save(squeezenet.state_dict(), tmp_path / "m.pt")
    with pytest.raises(TlcError, match="the keys fit torchvision:squeezenet1_1") as caught:
        load_model(tmp_path / "m.pt")
    assert "pass --arch torchvision:squeezenet1_1" in caught.value.hint


def test_weights_that_do_not_fit_show_what_differs_both_ways(tmp_path: Path, squeezenet: nn.Module) -> None:
    torch.save(squeezenet.state_dict(), tmp_path / "m.pt")
    with pytest.raises(TlcError) as caught:
        load_model(tmp_path / "m.pt", arch="torchvision:alexnet")
    message = caught.value.message
    assert "does not fit --arch torchvision:alexnet" in message
    assert "tensors are missing: " in message
    assert "tensors are unknown to it: " in message
    assert "torchvision:squeezenet1_1" in caught.value.hint


def test_a_whole_torchvision_module_is_recognised(tmp_path: Path, squeezenet: nn.Module) -> None:
    torch.save(squeezenet, tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt")
    assert model.arch.text == SQUEEZENET
    assert torch.equal(outputs(model.module), outputs(squeezenet))


def test_a_whole_sequential_is_rebuilt_from_its_layers(tmp_path: Path) -> None:
    torch.save({"model": nn.DataParallel(small()), "epoch": 1}, tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", preprocess=PLAIN)
    assert model.arch.text == "pickle"
    assert model.num_classes == 5
    assert torch.equal(outputs(model.module, 8), outputs(small(), 8))


def test_a_whole_timm_module_loads(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    module = timm.create_model("mobilenetv3_small_050", num_classes=4).eval()
    torch.save(module, tmp_path / "m.pt")
    options = PreprocessOptions(input=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
    model = load_model(tmp_path / "m.pt", preprocess=options)
    assert torch.equal(outputs(model.module), outputs(module))


def test_a_hugging_face_folder_and_a_whole_transformers_module_load(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, num_labels=3
    )
    config.id2label, config.label2id = {0: "a", 1: "b", 2: "c"}, {"a": 0, "b": 1, "c": 2}
    module = transformers.ViTForImageClassification(config).eval()
    module.save_pretrained(tmp_path / "vit")
    recorded = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(recorded))
    with torch.inference_mode():
        wanted = module(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)).logits
    model = load_model(tmp_path / "vit")
    assert model.classes == ("a", "b", "c")
    assert model.preprocess.resize == (32, 32)
    assert torch.allclose(outputs(model.module, 32), wanted, atol=1e-6)
    torch.save(module, tmp_path / "m.pt")
    options = PreprocessOptions(input=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert torch.allclose(outputs(load_model(tmp_path / "m.pt", preprocess=options).module, 32), wanted, atol=1e-6)


def test_images_of_another_size_than_the_input_are_not_cut_without_being_told(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "m.pt")
    with pytest.raises(TlcError, match="the images are 16x16, the model's input is 8x8") as caught:
        load_model(tmp_path / "m.pt", input_shape=(3, 16, 16), preprocess=PLAIN)
    assert "--resize 8x8" in caught.value.hint
    told = PLAIN.model_copy(update={"resize": (8, 8)})
    assert load_model(tmp_path / "m.pt", input_shape=(3, 16, 16), preprocess=told).preprocess.resize == (8, 8)


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_by_name_and_nothing_of_it_runs(tmp_path: Path, zipped: bool) -> None:
    torch.save({"state_dict": _Evil(tmp_path / "ran")}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(TlcError, match=r"its pickle names `(posix|nt)\.mkdir`, which tlc does not load") as caught:
        load_model(tmp_path / "m.pt", arch=SQUEEZENET)
    assert "nothing of it was run" in caught.value.message
    assert not (tmp_path / "ran").exists()


def test_a_plain_pickle_is_refused_by_name_too(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(pickle.dumps(_Evil(tmp_path / "ran")))
    with pytest.raises(TlcError, match="mkdir"):
        load_model(tmp_path / "m.pt", arch=SQUEEZENET)
    assert not (tmp_path / "ran").exists()


def _pickle_of(body: bytes, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", body)
        archive.writestr("m/version", "3\n")
        archive.writestr("m/byteorder", "little")
    return path


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.hub", "load"),
        ("torch.nn.modules.module", "register_module_forward_hook"),
        ("torch.fx.graph_module", "GraphModule"),
        ("torch.utils.collect_env", "run"),
        ("torchvision.models", "resnet18"),
        ("torchvision.datasets.utils", "download_url"),
        ("timm.models", "create_model"),
    ],
)
def test_names_inside_the_four_libraries_are_refused_unless_they_are_layers(
    tmp_path: Path, module: str, name: str
) -> None:
    body = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"."
    with pytest.raises(TlcError, match=f"its pickle names `{module}.{name}`"):
        load_model(_pickle_of(body, tmp_path / "m.pt"))


def test_a_layer_class_called_with_arguments_by_the_pickle_is_not_called(tmp_path: Path) -> None:
    # REDUCE of Linear(3, 4): the class on the list is a record while unpickling.
    body = b"\x80\x02ctorch.nn.modules.linear\nLinear\nK\x03K\x04\x86R."
    with pytest.raises(TlcError, match="holds no module state"):
        load_model(_pickle_of(body, tmp_path / "m.pt"))


def test_nan_weights_are_named(tmp_path: Path, squeezenet: nn.Module) -> None:
    state = {key: value.clone() for key, value in squeezenet.state_dict().items()}
    state["classifier.1.bias"][2] = float("nan")
    state["features.0.weight"][0] = float("inf")
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(TlcError, match=r"2 of 52 tensors hold NaN or infinite values: .*classifier\.1\.bias"):
        load_model(tmp_path / "m.pt", arch=SQUEEZENET)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "an HTML or XML page"),
        (b"\x89HDF\r\n\x1a\n0000", "an HDF5 file"),
        (b"hello", "is text, not a PyTorch model"),
        (bytes(range(200, 250)), "of an unknown format"),
    ],
)
def test_what_is_no_torch_file_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(TlcError, match=message):
        load_model(tmp_path / "m.pt", arch=SQUEEZENET)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_truncated_file_is_said(tmp_path: Path, squeezenet: nn.Module, legacy: bool) -> None:
    buffer = io.BytesIO()
    torch.save(squeezenet.state_dict(), buffer, _use_new_zipfile_serialization=not legacy)
    (tmp_path / "m.pt").write_bytes(buffer.getvalue()[:100_000])
    with pytest.raises(TlcError, match=r"cannot be read \(100,000 bytes\)"):
        load_model(tmp_path / "m.pt", arch=SQUEEZENET)


def test_a_missing_file_and_an_empty_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match="there is no file"):
        load_model(tmp_path / "none.pt", arch=SQUEEZENET)
    with pytest.raises(TlcError, match="a folder without a model in it"):
        load_model(tmp_path)


@pytest.mark.assets
def test_a_text_model_is_refused_truthfully(assets: Path) -> None:
    with pytest.raises(TlcError, match="BertForSequenceClassification, a text model"):
        load_model(assets / "movie-sentiment" / "model")


def test_a_config_that_fetches_code_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "auto_map": {"AutoModel": "x.Y"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TlcError, match="sets auto_map, which makes transformers fetch code"):
        load_model(tmp_path)


def test_googlenet_drops_its_auxiliary_heads(tmp_path: Path) -> None:
    module = torchvision.models.googlenet(num_classes=3, init_weights=False, aux_logits=True, transform_input=True)
    torch.save(module.eval().state_dict(), tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", arch="torchvision:googlenet")
    assert not any(name.startswith("aux") for name, _value in model.module.named_parameters())
    assert torch.equal(outputs(model.module), outputs(module))
    assert "transform_input=true" in model.history[0]


def test_data_with_another_number_of_classes_is_refused(tmp_path: Path, squeezenet: nn.Module) -> None:
    torch.save(squeezenet.state_dict(), tmp_path / "m.pt")
    with pytest.raises(TlcError, match="has 5 outputs, not 7"):
        load_model(tmp_path / "m.pt", arch=SQUEEZENET, num_classes=7)


@pytest.mark.assets
def test_the_published_resnet56_loads_with_the_file_that_builds_it(assets: Path) -> None:
    folder = assets / "cifar10"
    options = PreprocessOptions(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    arch = f"{folder / 'cifar_resnet.py'}:resnet56"
    model = load_model(folder / "resnet56-cifar10.pt", arch=arch, input_shape=(3, 32, 32), preprocess=options)
    assert (model.num_classes, model.preprocess.size, model.preprocess.resize) == (10, (32, 32), None)


@pytest.mark.assets
def test_a_published_network_with_other_shortcuts_is_refused_by_what_is_missing(assets: Path) -> None:
    # akamaster's shortcuts pad with zeros and have no weights; those of cifar_resnet.py are convolutions.
    path = assets / "checkpoint-formats" / "akamaster_resnet20-12fca82f.th"
    with pytest.raises(TlcError, match=r"2 of 118 tensors are missing: layer2\.0\.shortcut\.weight 32x16x1x1"):
        load_model(path, arch=f"{assets / 'cifar10' / 'cifar_resnet.py'}:resnet20")
