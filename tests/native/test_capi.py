"""The C API, called through ctypes and by programs in C, against ONNX Runtime's Python."""

import ctypes
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from native_build import built, ort_library
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from tlc.calibration.preprocess import Preprocess
from tlc.export.bundle import PackOptions, pack
from tlc.export.bundle_source import source_of_file
from tlc.runtime.target import load_target

REPOSITORY = Path(__file__).resolve().parents[2]
ORT = ort_library()
HEADER = REPOSITORY / "runtime" / "native" / "include" / "tlc_runtime.h"
COLOURS = Preprocess(size=(8, 8), resize=10, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), interpolation="bicubic")
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
OK, ERROR, MISUSE = 0, 1, 2
DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int32", "int64", "bool")


class Options(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("threads", ctypes.c_int32),
        ("backend", ctypes.c_char_p),
        ("library", ctypes.c_char_p),
        ("plan", ctypes.c_char_p),
    ]


class Spec(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("dtype", ctypes.c_int), ("rank", ctypes.c_int32)]
    _fields_ += [("shape", ctypes.c_int64 * 8)]


class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size_bytes", ctypes.c_size_t), ("dtype", ctypes.c_int)]
    _fields_ += [("rank", ctypes.c_int32), ("shape", ctypes.c_int64 * 8)]


class Library:
    """libtlc_runtime.so, as an application sees it."""

    def __init__(self) -> None:
        self.c = ctypes.CDLL(str(built("libtlc_runtime.so")))
        for name in ("tlc_version", "tlc_last_error", "tlc_last_hint", "tlc_model_runtime", "tlc_model_class"):
            getattr(self.c, name).restype = ctypes.c_char_p
        for name in ("tlc_model_input_count", "tlc_model_output_count", "tlc_model_class_count"):
            getattr(self.c, name).restype = ctypes.c_size_t

    def options(self, **fields: Any) -> Options:
        return Options(**{"struct_size": ctypes.sizeof(Options), "library": os.fsencode(ORT), **fields})

    def load(self, path: Path, **fields: Any) -> ctypes.c_void_p:
        model = ctypes.c_void_p()
        status = self.c.tlc_model_load(os.fsencode(path), ctypes.byref(self.options(**fields)), ctypes.byref(model))
        assert status == OK, self.error()
        return model

    def context(self, model: ctypes.c_void_p) -> ctypes.c_void_p:
        context = ctypes.c_void_p()
        assert self.c.tlc_context_create(model, ctypes.byref(context)) == OK, self.error()
        return context

    def error(self) -> str:
        return str(self.c.tlc_last_error().decode())

    def infer(self, context: ctypes.c_void_p, *arrays: NDArray[Any], status: int = OK) -> NDArray[Any]:
        """Return the only output, or an empty array where the status is to be another."""
        tensors = [tensor_of(array) for array in arrays]
        outputs = (Tensor * 1)()
        found = self.c.tlc_infer(context, (Tensor * len(arrays))(*tensors), ctypes.c_size_t(len(arrays)), outputs, 1)
        assert found == status, self.error()
        return array_of(outputs[0]) if status == OK else np.empty(0)


def tensor_of(array: NDArray[Any]) -> Tensor:
    shape = (ctypes.c_int64 * 8)(*array.shape)
    return Tensor(array.ctypes.data, array.nbytes, DTYPES.index(array.dtype.name), array.ndim, shape)


def array_of(tensor: Tensor) -> NDArray[Any]:
    content = ctypes.string_at(tensor.data, tensor.size_bytes)
    return np.frombuffer(content, DTYPES[tensor.dtype]).reshape(tuple(tensor.shape)[: tensor.rank])


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


def save_linear(path: Path, classes: int = 3) -> Path:
    """Write y = flatten(x) @ w for x of (N, 3, 8, 8)."""
    weight = np.random.default_rng(1).normal(0, 0.1, (192, classes)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", classes])
    graph = helper.make_graph(nodes, "linear", [x], [y], [onnx.numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_linear(tmp_path_factory.mktemp("capi") / "linear.onnx")


@pytest.fixture(scope="module")
def bundle(linear: Path) -> Path:
    out = linear.with_suffix(".tlc")
    source = source_of_file(linear, load_target("cpu-x86"), fed=COLOURS, classes=("ant", "bee", "cät"), tokenizer=None)
    pack(source, out, PackOptions())
    return out


def python_output(model: Path, feed: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": feed})[0])


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def test_outputs_are_those_of_python_for_every_batch(library: Library, linear: Path) -> None:
    model = library.load(linear)
    context = library.context(model)
    for batch in (1, 5, 2):
        feed = noise(batch, 3, 8, 8, seed=batch)
        np.testing.assert_array_equal(library.infer(context, feed), python_output(linear, feed))
    library.c.tlc_context_free(context)
    library.c.tlc_model_free(model)


def test_a_model_says_what_it_takes_and_gives(library: Library, linear: Path, bundle: Path) -> None:
    plain, packed = library.load(linear), library.load(bundle)
    spec = Spec()

    assert library.c.tlc_model_runtime(plain).decode() == f"onnxruntime {onnxruntime.__version__}"
    assert (library.c.tlc_model_input_count(plain), library.c.tlc_model_output_count(plain)) == (1, 1)
    assert library.c.tlc_model_input(plain, ctypes.c_size_t(0), ctypes.byref(spec)) == OK
    assert (spec.name, DTYPES[spec.dtype], tuple(spec.shape)[: spec.rank]) == (b"x", "float32", (-1, 3, 8, 8))
    assert library.c.tlc_model_output(packed, ctypes.c_size_t(0), ctypes.byref(spec)) == OK
    assert (spec.name, tuple(spec.shape)[: spec.rank]) == (b"y", (-1, 3))
    assert (library.c.tlc_model_class_count(plain), library.c.tlc_model_picture_channels(plain)) == (0, 0)
    assert (library.c.tlc_model_class_count(packed), library.c.tlc_model_picture_channels(packed)) == (3, 3)
    assert library.c.tlc_model_class(packed, ctypes.c_size_t(2)).decode() == "cät"
    assert library.c.tlc_model_class(packed, ctypes.c_size_t(3)) is None
    for model in (plain, packed):
        library.c.tlc_model_free(model)


def test_pictures_and_pixels_become_the_input_that_python_makes(library: Library, linear: Path, bundle: Path) -> None:
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (21, 17, 3), np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    expected = python_output(linear, COLOURS(image))
    model = library.load(bundle)
    context = library.context(model)
    outputs = (Tensor * 1)()

    content = file.getvalue()
    done = library.c.tlc_infer_image(context, content, ctypes.c_size_t(len(content)), outputs, ctypes.c_size_t(1))
    if done == ERROR and "built without libpng" in library.error():
        assert not os.environ.get("TLC_REQUIRE_NATIVE"), library.error()
    else:
        assert done == OK, library.error()
        np.testing.assert_allclose(array_of(outputs[0]), expected, atol=1e-5)
    pixels = image.tobytes()
    done = library.c.tlc_infer_pixels(context, pixels, 21, 17, outputs, ctypes.c_size_t(1))
    assert done == OK, library.error()
    np.testing.assert_allclose(array_of(outputs[0]), expected, atol=1e-5)

    done = library.c.tlc_infer_image(context, content[:60], ctypes.c_size_t(60), outputs, ctypes.c_size_t(1))
    assert done == ERROR
    assert library.error()
    library.c.tlc_context_free(context)
    library.c.tlc_model_free(model)


def test_errors_are_values_that_name_the_cause(library: Library, linear: Path, bundle: Path, tmp_path: Path) -> None:
    def refusal(path: object, status: int, **fields: Any) -> str:
        model = ctypes.c_void_p(1)
        options = library.options(**fields)
        found = library.c.tlc_model_load(os.fsencode(str(path)), ctypes.byref(options), ctypes.byref(model))
        assert found == status
        assert model.value is None
        assert library.c.tlc_last_hint()
        return library.error()

    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "text.tlc").write_text("no bundle")
    changed = tmp_path / "changed.tlc"
    content = bytearray(bundle.read_bytes())
    content[content.index(linear.read_bytes()) + 200] ^= 1
    changed.write_bytes(content)
    assert "cannot read /none.onnx" in refusal("/none.onnx", ERROR)
    assert "cannot load" in refusal(tmp_path / "text.onnx", ERROR)
    assert "text.tlc" in refusal(tmp_path / "text.tlc", ERROR)
    assert "model.onnx" in refusal(changed, ERROR)
    assert "/none.so" in refusal(linear, ERROR, library=b"/none.so")
    assert "threads is not from 0 to 1024" in refusal(linear, MISUSE, threads=-1)
    assert "struct_size is not set" in refusal(linear, MISUSE, struct_size=0)

    model = library.load(linear)
    context = library.context(model)
    library.infer(context, noise(1, 3, 8, 7), status=ERROR)
    assert library.error() == "input x is float32 [?x3x8x8], got float32 [1x3x8x7]"
    library.infer(context, noise(1, 3, 8, 8), noise(1), status=MISUSE)
    assert library.error() == "input_count is not the model's"
    outputs = (Tensor * 1)()
    assert library.c.tlc_infer_pixels(context, b"\0" * 192, 8, 8, outputs, ctypes.c_size_t(1)) == ERROR
    assert "does not say how a picture becomes an input" in library.error()
    library.infer(context, noise(1, 3, 8, 8))
    library.c.tlc_context_free(context)
    library.c.tlc_model_free(model)


def test_nothing_crashes_of_null(library: Library) -> None:
    null, one = ctypes.c_void_p(), ctypes.c_size_t(1)
    out = (Tensor * 1)()
    assert library.c.tlc_model_load(null, null, null) == MISUSE
    assert library.c.tlc_context_create(null, null) == MISUSE
    assert library.c.tlc_infer(null, null, one, out, one) == MISUSE
    assert library.c.tlc_infer_image(null, null, one, out, one) == MISUSE
    assert library.c.tlc_infer_pixels(null, null, 1, 1, out, one) == MISUSE
    assert library.c.tlc_model_input(null, one, null) == MISUSE
    assert library.c.tlc_model_runtime(null) is None
    library.c.tlc_model_free(null)
    library.c.tlc_context_free(null)


def test_a_context_outlives_its_model(library: Library, linear: Path) -> None:
    model = library.load(linear)
    context = library.context(model)
    library.c.tlc_model_free(model)
    feed = noise(1, 3, 8, 8)

    np.testing.assert_array_equal(library.infer(context, feed), python_output(linear, feed))
    library.c.tlc_context_free(context)


def test_an_application_with_fewer_options_is_served(library: Library, linear: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TLC_ORT_LIB", str(ORT))
    short = ctypes.sizeof(ctypes.c_size_t) + ctypes.sizeof(ctypes.c_int32)
    model = library.load(linear, struct_size=short, threads=1, library=b"/not/known/to/the/application.so")
    library.c.tlc_model_free(model)


def test_threads_with_a_context_each_do_not_disturb_one_another(library: Library, linear: Path) -> None:
    model = library.load(linear)
    feeds = [noise(1, 3, 8, 8, seed=seed) for seed in range(4)]
    expected = [python_output(linear, feed) for feed in feeds]
    wrong: list[int] = []

    def work(index: int) -> None:
        context = library.context(model)
        for _ in range(300):
            if not np.array_equal(library.infer(context, feeds[index]), expected[index]):
                wrong.append(index)
        bad = library.c.tlc_model_load(f"/none{index}.onnx".encode(), None, ctypes.byref(ctypes.c_void_p()))
        if bad != ERROR or f"/none{index}.onnx" not in library.error():
            wrong.append(index)
        library.c.tlc_context_free(context)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    library.c.tlc_model_free(model)
    assert wrong == []


def test_a_program_in_c_keeps_its_memory_and_its_answers_in_four_threads(linear: Path) -> None:
    command = [str(built("tlc_capi_threads")), str(linear), "4", "20000", str(ORT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["runs"], found["differing"], found["failed"]) == (20000, 0, 0)
    resident = found["resident_kib"]
    assert resident[-1] - resident[1] < 1024  # a leak of 66 bytes a run would show


def test_only_the_api_is_exported() -> None:
    if shutil.which("nm") is None:
        pytest.skip("there is no nm here (Debian: binutils)")
    text = subprocess.run(
        ["nm", "-D", "--defined-only", built("libtlc_runtime.so")], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1].partition("@")[0] for line in text.splitlines()}
    declared = set(re.findall(r"^TLC_API .*?\b(tlc_\w+)\(", HEADER.read_text(), re.MULTILINE))
    assert len(declared) > 15
    assert names - {"TLC_RUNTIME_1"} == declared


@pytest.mark.parametrize("compiler", [("cc", "c", "c99"), ("c++", "c++", "c++11")], ids=["C99", "C++11"])
def test_the_header_needs_nothing_else(compiler: tuple[str, str, str], tmp_path: Path) -> None:
    program, language, standard = compiler
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")
    command = [program, "-x", language, f"-std={standard}", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    subprocess.run([*command, "-include", str(HEADER), "/dev/null"], check=True)


def test_the_code_of_the_page_compiles(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no cc here")
    page = (REPOSITORY / "docs" / "embed.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```c\n(.*?)```", page, re.DOTALL)
    head = "#include <stdio.h>\n#include <stdlib.h>\n#include <tlc_runtime.h>\n"
    (tmp_path / "page.c").write_text(f"{head}void page(const uint8_t* camera) {{\n{code}}}\n")
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{HEADER.parent}"]
    subprocess.run(["cc", *flags, str(tmp_path / "page.c")], check=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed tree, moved after installing."""
    if CMAKE is None:
        pytest.skip("there is no cmake here")
    build = built("libtlc_runtime.so").parent
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([CMAKE, "--install", str(build), "--prefix", str(folder / "first")], check=True, capture_output=True)
    (folder / "first").rename(folder / "moved")
    return folder / "moved"


@pytest.mark.parametrize("way", ["cmake", "pkg-config"])
def test_the_example_builds_against_what_is_installed(way: str, installed: Path, bundle: Path, tmp_path: Path) -> None:
    example = REPOSITORY / "examples" / "native"
    if way == "cmake":
        assert CMAKE is not None
        configure = [CMAKE, "-S", str(example), "-B", str(tmp_path), f"-DCMAKE_PREFIX_PATH={installed}"]
        subprocess.run(configure, check=True, capture_output=True)
        subprocess.run([CMAKE, "--build", str(tmp_path)], check=True, capture_output=True)
    else:
        if shutil.which("pkg-config") is None:
            pytest.skip("there is no pkg-config here")
        (file,) = installed.rglob("tlc_runtime.pc")
        flags = f"$(PKG_CONFIG_PATH={file.parent} pkg-config --cflags --libs tlc_runtime)"
        command = f"cc -Wall -Wextra -Werror {example}/classify.c {flags} -lm -o {tmp_path}/classify"
        subprocess.run(command, shell=True, check=True)
    Image.fromarray(np.full((20, 20, 3), 200, np.uint8)).save(tmp_path / "picture.png")
    (lib,) = {file.parent for file in installed.rglob("libtlc_runtime.so*")}
    env = {**os.environ, "TLC_ORT_LIB": str(ORT), "LD_LIBRARY_PATH": str(lib)}

    done = subprocess.run(
        [str(tmp_path / "classify"), str(bundle), str(tmp_path / "picture.png")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 1 and "built without libpng" in done.stderr:
        pytest.skip(done.stderr.splitlines()[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'picture.png'}: ")
    assert any(name in done.stdout for name in ("ant, 0.", "bee, 0.", "cät, 0."))
