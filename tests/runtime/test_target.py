import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from tlc.runtime.errors import UsageError
from tlc.runtime.target import Target, TensorRT, load_target, target_names, target_toml

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


_ENGINE = """
name = "robot"
description = "Orin NX with 8 GB on JetPack 5.1"
runtime = "tensorrt"
opset = 16
precisions = ["fp16", "int8"]
contract = "tensorrt"
weights_reduced_range = false
channel_multiple = 32
threads = 1
python = "3.8"
source = "tlc doctor"
[tensorrt]
version = "8.5"
max_opset = 17
sm = ["8.7"]
workspace_bytes = 1073741824
dla_cores = 1
"""


def test_a_target_file_with_a_tensorrt_table_is_read(tmp_path: Path) -> None:
    target = load_target(_file(tmp_path, _ENGINE))
    assert target.tensorrt == TensorRT(version="8.5", max_opset=17, sm=["8.7"], workspace_bytes=2**30, dla_cores=1)
    assert Target.model_validate_json(target.model_dump_json()) == target


@pytest.mark.parametrize(
    ("name", "release", "sm", "dla_cores"),
    [
        ("jetson-nano", (8, 2), ["5.3", "6.2"], 0),
        ("jetson-xavier", (8, 5), ["7.2"], 2),
        ("jetson-orin", (10, 3), ["8.7"], 2),
        ("jetson-orin-nano", (10, 3), ["8.7"], 0),
        ("jetson-thor", (10, 13), ["11.0"], 0),
    ],
)
def test_every_jetson_has_the_release_gpu_and_dla_of_its_jetpack(
    name: str, release: tuple[int, int], sm: list[str], dla_cores: int
) -> None:
    target = load_target(name)
    assert target.runtime == target.contract == "tensorrt"
    assert target.tensorrt is not None
    assert (target.tensorrt.release, target.tensorrt.sm, target.tensorrt.dla_cores) == (release, sm, dla_cores)
    assert target.opset <= target.tensorrt.max_opset


def test_the_nano_has_no_int8_and_every_later_jetson_has() -> None:
    with_int8 = {name for name in target_names() if "int8" in load_target(name).precisions}
    assert set(target_names()) - with_int8 == {"jetson-nano"}


@pytest.mark.parametrize(
    ("version", "typed"),
    [("8.6", False), ("10.3", False), ("10.11", False), ("10.12", True), ("10.13", True), ("11.0", True)],
)
def test_precisions_are_typed_from_10_12_on(version: str, typed: bool) -> None:
    tensorrt = TensorRT(version=version, max_opset=20, sm=["8.7"], workspace_bytes=2**30, dla_cores=0)
    assert tensorrt.strongly_typed is typed


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('version = "8.5"', 'version = "8.5.2"', "tensorrt.version = '8.5.2': String should match pattern"),
        ('version = "8.5"', "version = 8.5", "tensorrt.version = 8.5: Input should be a valid string"),
        ("max_opset = 17", "max_opset = 8", "tensorrt.max_opset = 8: Input should be greater than or equal to 9"),
        ('sm = ["8.7"]', "sm = []", "tensorrt.sm = []: List should have at least 1 item"),
        ('sm = ["8.7"]', 'sm = ["87"]', "tensorrt.sm.0 = '87': String should match pattern"),
        ("dla_cores = 1", "dla_cores = 3", "tensorrt.dla_cores = 3: Input should be less than or equal to 2"),
        ("dla_cores = 1", "dla = 1", "tensorrt.dla_cores = {"),
        ("workspace_bytes = 1073741824", "workspace_bytes = 1024", "tensorrt.workspace_bytes = 1024: Input should be"),
        ('["fp16", "int8"]', '["int4"]', "precisions.0 = 'int4': Input should be 'fp32', 'fp16' or 'int8'"),
        ("opset = 16", "opset = 18", "opset = 18 is above tensorrt.max_opset = 17"),
        ('runtime = "tensorrt"', 'runtime = "openvino"', "runtime = 'openvino', provider = 'cpu' with a "),
        ('contract = "tensorrt"', 'contract = "ort-s8s8"', "contract = 'ort-s8s8' with tensorrt, which takes tensorrt"),
        ('python = "3.8"', 'python = "3.8"\nprovider = "cuda"', "provider = 'cuda' with runtime = 'tensorrt'"),
    ],
)  # fmt: skip
def test_what_is_wrong_about_tensorrt_is_named(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in _ENGINE
    assert expected in _message(_file(tmp_path, _ENGINE.replace(old, new)))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('provider = "tensorrt"', "runtime = 'onnxruntime', provider = 'tensorrt' without a tensorrt table"),
        ('provider = "openvino"', "contract = 'ort-s8s8' with openvino, which takes openvino"),
        ('provider = "coreml"', "provider = 'coreml': Input should be 'cpu', 'cuda', 'tensorrt' or 'openvino'"),
    ],
)
def test_a_provider_has_to_fit_the_rest(tmp_path: Path, line: str, expected: str) -> None:
    assert expected in _message(_file(tmp_path, _GOOD + line))


def test_onnx_runtime_with_a_gpu_is_a_target(tmp_path: Path) -> None:
    assert load_target(_file(tmp_path, _GOOD + 'provider = "cuda"')).provider == "cuda"
    text = _ENGINE.replace('runtime = "tensorrt"', 'runtime = "onnxruntime"\nprovider = "tensorrt"')
    assert load_target(_file(tmp_path, text)).provider == "tensorrt"


@pytest.mark.parametrize("name", target_names())
def test_a_built_in_target_as_a_file_is_the_same_target(tmp_path: Path, name: str) -> None:
    assert load_target(_file(tmp_path, target_toml(name))) == load_target(name)


def test_only_a_built_in_target_can_be_written_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown target 'my\.toml'"):
        target_toml("my.toml")


def test_a_file_keeps_what_depends_on_the_machine() -> None:
    assert 'weights_reduced_range = "without-vnni"' in target_toml("cpu-x86")


def test_a_tensorrt_target_needs_its_table(tmp_path: Path) -> None:
    text = _ENGINE.partition("[tensorrt]")[0]
    assert "runtime = 'tensorrt', provider = 'cpu' without a tensorrt table" in _message(_file(tmp_path, text))


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


def test_every_file_on_the_page_about_targets_loads_and_the_table_is_true(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/targets.md").read_text(encoding="utf-8")
    files = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert [load_target(_file(tmp_path, text)).name for text in files] == ["robot", "gateway", "pc"]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in page.splitlines() if row.startswith("| `")]
    assert [row[0].strip("`") for row in rows] == list(target_names())
    for name, _, runtime, int8, opset, _ in rows:
        target = load_target(name.strip("`"))
        version = f"TensorRT {target.tensorrt.version}" if target.tensorrt else runtime
        assert (runtime, opset) == (version, str(target.opset))
        assert int8.startswith("none") == ("int8" not in target.precisions)
