from pathlib import Path

import pytest
from pydantic import ValidationError

from tlc.runtime.errors import UsageError
from tlc.runtime.target import Target, load_target, target_names

_GOOD = """
name = "gateway"
description = "two cores"
runtime = "onnxruntime"
opset = 18
channel_multiple = 16
threads = 2
precisions = ["fp32", "int8"]
contract = "ort-s8s8"
python = ""
weights_reduced_range = false
source = "measured"
"""


def _file(folder: Path, text: str) -> str:
    path = folder / "my.toml"
    path.write_text(text)
    return str(path)


def _message(name_or_file: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_target(name_or_file)
    assert caught.value.hint
    return caught.value.message


def test_every_built_in_target_loads_and_names_its_source() -> None:
    assert target_names()[:3] == ("cpu-x86", "cpu-arm", "openvino")
    for name in target_names():
        target = load_target(name)
        assert target.name == name
        assert target.source.startswith("https://")


def test_x86_takes_unsigned_activations_and_arm_signed_ones() -> None:
    assert load_target("cpu-x86").contract == "ort-u8s8"
    assert load_target("cpu-arm").contract == "ort-s8s8"


@pytest.mark.parametrize(
    ("flags", "reduced"),
    [
        ({"sse2", "avx2"}, True),
        ({"sse2", "avx2", "avx512f"}, True),
        ({"sse2", "avx2", "avx512_vnni"}, False),
        ({"sse2", "avx2", "avx_vnni"}, False),
        ({"asimd"}, False),
        (set(), False),
    ],
)
def test_weights_lose_a_bit_only_on_an_x86_cpu_without_vnni(flags: set[str], reduced: bool) -> None:
    assert load_target("cpu-x86", flags=frozenset(flags)).weights_reduced_range is reduced
    assert load_target("cpu-arm", flags=frozenset(flags)).weights_reduced_range is False


def test_a_target_file_of_the_user_is_read(tmp_path: Path) -> None:
    target = load_target(_file(tmp_path, _GOOD))
    assert (target.name, target.channel_multiple, target.threads, target.contract) == ("gateway", 16, 2, "ort-s8s8")


def test_the_example_of_the_docstring_loads(tmp_path: Path) -> None:
    doc = load_target.__doc__ or ""
    lines = [line.strip() for line in doc.splitlines() if " = " in line]
    assert load_target(_file(tmp_path, "\n".join(lines))).name == "gateway"


def test_an_unknown_name_lists_the_known_ones_and_the_file_form() -> None:
    with pytest.raises(UsageError) as caught:
        load_target("jetson")
    assert caught.value.message == f"unknown target 'jetson'; known: {', '.join(target_names())}"
    assert "--target FILE.toml" in caught.value.hint


def test_an_unknown_key_is_named_and_the_allowed_ones_are_listed(tmp_path: Path) -> None:
    message = _message(_file(tmp_path, _GOOD + "precission = 'int8'\n"))
    assert "unknown key precission; allowed: name, description, runtime, opset" in message
    assert str(tmp_path / "my.toml") in message


def test_missing_keys_are_named(tmp_path: Path) -> None:
    text = _GOOD.replace("opset = 18\n", "").replace("threads = 2\n", "")
    assert _message(_file(tmp_path, text)).endswith("missing keys opset, threads")


@pytest.mark.parametrize(
    ("line", "bad", "expected"),
    [
        ("opset = 18", "opset = 9", "opset = 9: Input should be greater than or equal to 13"),
        ("opset = 18", 'opset = "18"', "opset = '18': Input should be a valid integer"),
        ("threads = 2", "threads = 0", "threads = 0: Input should be greater than or equal to 1"),
        ('runtime = "onnxruntime"', 'runtime = "tvm"', "runtime = 'tvm': Input should be 'onnxruntime'"),
        (
            "weights_reduced_range = false",
            'weights_reduced_range = "x"',
            "weights_reduced_range = 'x': Input should be",
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(tmp_path: Path, line: str, bad: str, expected: str) -> None:
    assert line in _GOOD
    assert expected in _message(_file(tmp_path, _GOOD.replace(line, bad)))


def test_a_file_that_is_not_toml_or_not_there_is_named(tmp_path: Path) -> None:
    assert "is not TOML" in _message(_file(tmp_path, "opset = \n"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    assert "is not TOML" in _message(str(tmp_path / "binary.toml"))
    assert "gone.toml: No such file or directory" in _message(str(tmp_path / "gone.toml"))


def test_a_target_cannot_be_changed() -> None:
    target = load_target("cpu-x86")
    with pytest.raises(ValidationError, match="frozen"):
        target.threads = 4  # type: ignore[misc]
    assert Target.model_validate(target.model_dump()) == target
