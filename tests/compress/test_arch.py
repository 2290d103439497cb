from pathlib import Path

import pytest
import torch

from tlc.compress.arch import Architecture, build, parse_arch
from tlc.compress.inputs import PreprocessOptions, default_preprocess, parse_input, resolve_preprocess
from tlc.runtime.errors import TlcError, UsageError

BUILDER = """
from torch import nn

def net(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))

def sized(width):
    return nn.Linear(width, 2)

def number():
    return 3
"""


@pytest.fixture
def builder(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(BUILDER)
    return path


def test_an_unknown_name_is_answered_with_the_closest_ones() -> None:
    with pytest.raises(UsageError, match=r"torchvision has no image classifier named 'resnet19'") as caught:
        parse_arch("torchvision:resnet19")
    assert "resnet18" in caught.value.hint


def test_a_name_without_its_library_is_answered_with_the_whole_form() -> None:
    with pytest.raises(UsageError) as caught:
        parse_arch("resnet18")
    assert caught.value.hint == "Write --arch torchvision:resnet18."


def test_the_text_of_an_architecture_is_what_parses_to_it() -> None:
    arch = parse_arch("torchvision:vit_b_16?image_size=32")
    assert arch.options == {"image_size": 32}
    assert parse_arch(arch.text) == arch


def test_building_leaves_the_global_generator_alone_and_repeats() -> None:
    before = torch.random.get_rng_state()
    one, two = (build(parse_arch("torchvision:squeezenet1_1").with_classes(3)) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_file_is_identified_by_its_content_and_not_run_by_parsing(tmp_path: Path) -> None:
    path = tmp_path / "boom.py"
    path.write_text("raise RuntimeError('ran')\n")
    arch = parse_arch(f"{path}:net")
    assert len(arch.source_sha256) == 64
    with pytest.raises(TlcError, match="fails when imported: RuntimeError: ran"):
        build(arch)


def test_a_function_of_a_file_builds_with_the_number_of_classes(builder: Path) -> None:
    module = build(parse_arch(f"{builder}:net").with_classes(4))
    assert module(torch.zeros(1, 3, 2, 2)).shape == (1, 4)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nett", "has no function 'nett'"),
        ("sized", "needs arguments: width"),
        ("number", "returned int, not a torch.nn.Module"),
    ],
)
def test_what_a_file_cannot_build_is_said(builder: Path, function: str, message: str) -> None:
    with pytest.raises(TlcError, match=message):
        build(parse_arch(f"{builder}:{function}"))


def test_options_reach_the_function(builder: Path) -> None:
    module = build(parse_arch(f"{builder}:sized?width=5"))
    assert module(torch.zeros(1, 5)).shape == (1, 2)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match="there is no file"):
        parse_arch(f"{tmp_path}/none.py:net")


def test_a_changed_file_is_refused(builder: Path) -> None:
    arch = parse_arch(f"{builder}:net")
    builder.write_text(BUILDER + "\n# changed\n")
    with pytest.raises(TlcError, match="has changed: its sha256 is"):
        build(arch)


def test_torchvision_models_are_fed_as_their_weights_say() -> None:
    known = default_preprocess(Architecture(kind="torchvision", name="resnet18"))
    assert known is not None
    assert (known.size, known.resize, known.mean) == ((224, 224), 256, (0.485, 0.456, 0.406))


def test_another_input_size_keeps_the_share_of_the_crop() -> None:
    known = default_preprocess(Architecture(kind="torchvision", name="resnet18"))
    fed = resolve_preprocess(None, known, PreprocessOptions(input=(3, 112, 112)))
    assert (fed.size, fed.resize) == ((112, 112), 128)


def test_what_nobody_said_is_asked_for_by_name() -> None:
    with pytest.raises(TlcError) as size:
        resolve_preprocess(None, None, PreprocessOptions())
    assert "--input CxHxW" in size.value.hint
    with pytest.raises(TlcError) as mean:
        resolve_preprocess(None, None, PreprocessOptions(), observed_size=(32, 32))
    assert "--mean" in mean.value.hint
    assert "--std" in mean.value.hint


def test_an_input_is_three_numbers() -> None:
    assert parse_input("3x32x48") == (3, 32, 48)
    with pytest.raises(UsageError, match="is not CxHxW"):
        parse_input("32x32")
