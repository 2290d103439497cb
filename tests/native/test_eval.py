"""tlc-run's eval, serve-once and check, on bundles that `tlc pack` writes, against Python on the same data."""

import json
import subprocess
from collections.abc import Callable, Sequence
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

from tlc.calibration.data import read_data
from tlc.calibration.images import decode
from tlc.calibration.preprocess import Preprocess
from tlc.export.bundle import PackOptions, pack
from tlc.export.bundle_source import source_of_file
from tlc.runtime.stored_zip import write_stored_zip
from tlc.runtime.target import load_target

CLASSES = ("ant", "bee", "cat")
COLOURS = Preprocess(size=(8, 8), resize=10, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), interpolation="bicubic")
LIBRARY = ort_library()

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def tlc_run() -> Run:
    """Runs the built program."""
    program = built()

    def run(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(program), *map(str, arguments), "--ort-lib", str(LIBRARY)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def save_linear(
    path: Path,
    *,
    batch: int | str = "N",
    classes: int = 3,
    dtype: int = TensorProto.FLOAT,
    ending: Sequence[onnx.NodeProto] = (),
) -> Path:
    """Write logits = flatten(input) @ w for (batch, 3, 8, 8); seeded, so that classes are predicted about evenly."""
    rng = np.random.default_rng(1)
    weight = rng.normal(0, 0.1, (192, classes)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["input"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["f"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["scores" if ending else "logits"]),
        *ending,
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("input", dtype, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def packed(
    model: Path, fed: Preprocess | None = COLOURS, classes: tuple[str, ...] = CLASSES, out: Path | None = None
) -> Path:
    """Pack `model` for the CPU into the file beside it."""
    out = out or model.with_suffix(".tlc")
    pack(source_of_file(model, load_target("cpu-x86"), fed=fed, classes=classes, tokenizer=None), out, PackOptions())
    return out


def write_pictures(folder: Path, count: int = 9) -> Path:
    """Write JPEGs and PNGs of several sizes, some in folders of folders, with files that are no pictures."""
    rng = np.random.default_rng(2)
    for name in CLASSES:
        (folder / name / "more").mkdir(parents=True)
        for number in range(count):
            height, width = rng.integers(9, 40, 2)
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
            place = folder / name / ("more" if number % 4 == 0 else "")
            image.save(place / (f"{number}.JPG" if number % 2 else f"{number}.png"))
        (folder / name / "notes.txt").write_text("none")
        (folder / name / ".hidden.jpg").write_bytes(b"none")
    return folder


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


def logits_of(model: Path, feeds: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Return what ONNX Runtime computes as tlc-run starts it: one thread, all optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0], np.float32)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_linear(tmp_path_factory.mktemp("linear") / "linear.onnx")


@pytest.fixture(scope="module")
def bundle(linear: Path) -> Path:
    return packed(linear)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data"))


def test_a_folder_gives_the_predictions_of_python(
    tlc_run: Run, linear: Path, bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    report = json.loads(
        tlc_run("eval", bundle, "--data", pictures, "--json", "--predictions", tmp_path / "p.json").stdout
    )
    found = json.loads((tmp_path / "p.json").read_text())

    expected = []
    for name in found["names"]:
        image = decode((pictures / name).read_bytes())
        expected.append(int(logits_of(linear, {"input": COLOURS(image)}).argmax()))
    labels = [CLASSES.index(name.partition("/")[0]) for name in found["names"]]
    right = np.array(expected) == np.array(labels)
    assert len(set(expected)) > 1, "the model says one thing of everything: nothing would be tested"
    assert found["predicted"] == expected
    assert found["labels"] == labels
    assert found["names"] == sorted(found["names"])
    assert (report["samples"], report["correct"]) == (27, right.sum())
    assert report["top1"] == right.mean()
    assert report["top5"] is None
    assert report["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    assert [(row["name"], row["support"], row["correct"]) for row in report["per_class"]] == [
        (name, 9, right[np.array(labels) == label].sum()) for label, name in enumerate(CLASSES)
    ]
    assert report["run_p50_ms"] > 0


def test_what_a_person_reads(tlc_run: Run, bundle: Path, pictures: Path) -> None:
    lines = tlc_run("eval", bundle, "--data", pictures).stdout.splitlines()
    assert lines[0].startswith("linear: ")
    assert " of 27 samples; onnxruntime " in lines[0]
    assert [line.split()[-1] for line in lines[1:4]] == list(CLASSES)


def test_a_limit_takes_samples_of_every_class(tlc_run: Run, bundle: Path, pictures: Path) -> None:
    report = json.loads(tlc_run("eval", bundle, "--data", pictures, "--limit", 6, "--json").stdout)
    assert [row["support"] for row in report["per_class"]] == [2, 2, 2]


def test_arrays_give_the_predictions_of_python(tlc_run: Run, linear: Path, bundle: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 256, (40, 21, 17, 3), np.uint8), rng.integers(0, 3, 40)
    # The file numbers the classes otherwise than the model does.
    np.savez(tmp_path / "data.npz", x=x, y=y, classes=np.array(["cat", "ant", "bee"]))
    tlc_run("eval", bundle, "--data", tmp_path / "data.npz", "--predictions", tmp_path / "p.json")
    found = json.loads((tmp_path / "p.json").read_text())

    assert found["predicted"] == [
        int(logits_of(linear, {"input": COLOURS(Image.fromarray(pixels))}).argmax()) for pixels in x
    ]
    assert found["labels"] == [(2, 0, 1)[label] for label in y]


def test_gray_arrays_feed_a_model_of_colours(tlc_run: Run, linear: Path, bundle: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(4).integers(0, 256, (5, 12, 12), np.uint8)
    np.savez(tmp_path / "data.npz", x_train=x[:1], y_train=[0], x_val=x, y_val=np.arange(5, dtype=np.uint8) % 3)
    tlc_run("eval", bundle, "--data", tmp_path / "data.npz", "--predictions", tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())["predicted"] == [
        int(logits_of(linear, {"input": COLOURS(Image.fromarray(pixels))}).argmax()) for pixels in x
    ]


def test_prepared_inputs_of_their_own_shapes(tlc_run: Run, tmp_path: Path) -> None:
    """Two inputs and an open length, as a classifier of texts has them."""
    table = onnx.numpy_helper.from_array(np.random.default_rng(5).normal(size=(50, 2)).astype(np.float32), "table")
    axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Cast", ["column"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["rows", "weight"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axes"], ["logits"], keepdims=0),
    ]
    last = onnx.numpy_helper.from_array(np.array([2]), "last")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "T"]) for name in ("ids", "mask")]
    output = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])]
    graph = helper.make_graph(nodes, "words", inputs, output, [table, axes, last])
    path = tmp_path / "words.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    rng = np.random.default_rng(6)
    feeds = [
        {"ids": rng.integers(0, 50, (1, length)), "mask": np.ones((1, length), np.int64)} for length in (3, 9, 1, 17)
    ]
    arrays = {f"{i}/{name}": array for i, feed in enumerate(feeds) for name, array in feed.items()}
    save_arrays(tmp_path / "data.npz", {**arrays, "y": np.array([0, 1, 0, 1])})
    bundle = packed(path, None, ("bad", "good"))

    tlc_run("eval", bundle, "--data", tmp_path / "data.npz", "--predictions", tmp_path / "p.json")
    expected = [int(logits_of(path, feed).argmax()) for feed in feeds]
    assert json.loads((tmp_path / "p.json").read_text())["predicted"] == expected

    save_arrays(tmp_path / "one.npz", feeds[1])
    served = json.loads(tlc_run("serve-once", bundle, tmp_path / "one.npz").stdout)
    assert served["predictions"][0]["class"] == expected[1]
    picture = tlc_run("serve-once", bundle, tmp_path / "p.json", status=1).stderr
    assert "does not say how pictures become its input" in picture
    assert "tlc-run check" not in picture


def test_serving_a_picture_gives_the_probabilities_of_python(
    tlc_run: Run, linear: Path, bundle: Path, pictures: Path
) -> None:
    picture = pictures / "bee" / "1.JPG"
    served = json.loads(tlc_run("serve-once", bundle, picture, "--top", 2).stdout)

    logits = logits_of(linear, {"input": COLOURS(decode(picture.read_bytes()))})[0].astype(np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = np.argsort(-shares)[:2]
    assert [(row["class"], row["name"]) for row in served["predictions"]] == [(i, CLASSES[i]) for i in order]
    assert [row["probability"] for row in served["predictions"]] == pytest.approx(shares[order], abs=1e-12)
    assert (served["bundle"], served["input"]) == ("linear", str(picture))


def test_a_model_that_gives_probabilities_is_taken_at_its_word(tlc_run: Run, pictures: Path, tmp_path: Path) -> None:
    model = save_linear(tmp_path / "soft.onnx", ending=[helper.make_node("Softmax", ["scores"], ["logits"])])
    picture = pictures / "cat" / "3.JPG"
    served = json.loads(tlc_run("serve-once", packed(model), picture).stdout)

    shares = logits_of(model, {"input": COLOURS(decode(picture.read_bytes()))})[0]
    assert [row["probability"] for row in served["predictions"]] == pytest.approx(sorted(shares, reverse=True))


@pytest.mark.parametrize(("batch", "dtype"), [(1, TensorProto.FLOAT), (4, TensorProto.FLOAT), (1, TensorProto.FLOAT16)])
def test_a_fixed_batch_and_another_type_are_fed_as_the_golden_samples_were(
    tlc_run: Run, pictures: Path, tmp_path: Path, batch: int, dtype: int
) -> None:
    bundle = packed(save_linear(tmp_path / "fixed.onnx", batch=batch, dtype=dtype))
    checked = json.loads(tlc_run("check", bundle, "--json").stdout)
    assert [sample["picture_error"] for sample in checked["golden"]] == [0, 0, 0, 0]
    found = json.loads(tlc_run("eval", bundle, "--data", pictures, "--json").stdout)
    assert found["samples"] == 27


def test_a_bundle_that_is_as_it_was_packed_passes(tlc_run: Run, bundle: Path) -> None:
    checked = json.loads(tlc_run("check", bundle, "--json").stdout)
    assert checked["passed"] is True
    assert checked["min_snr_db"] == 50
    assert len(checked["golden"]) == 4
    assert all(sample["picture_passed"] and sample["picture_error"] == 0 for sample in checked["golden"])
    assert all(output["passed"] and output["name"] == "logits" for s in checked["golden"] for output in s["outputs"])
    assert all(output["identical"] or output["snr_db"] > 100 for s in checked["golden"] for output in s["outputs"])
    text = tlc_run("check", bundle).stdout
    assert "picture prepared as recorded" in text
    assert text.endswith("passed: this device gives what was recorded, at 50.0 dB or better\n")


def rewritten(bundle: Path, out: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> Path:
    """Write the bundle with other members, and a manifest that agrees with them."""
    import hashlib
    import zipfile

    with zipfile.ZipFile(bundle) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members.pop("manifest.json"))
    change(manifest, members)
    for name, content in members.items():
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    write_stored_zip(out, {"manifest.json": json.dumps(manifest).encode(), **members})
    return out


def test_one_changed_byte_is_found(tlc_run: Run, bundle: Path, tmp_path: Path) -> None:
    content = bytearray(bundle.read_bytes())
    content[content.index(b"MatMul")] ^= 1
    (tmp_path / "changed.tlc").write_bytes(content)
    assert "model.onnx" in tlc_run("check", tmp_path / "changed.tlc", status=1).stderr


def test_outputs_that_are_not_reproduced_are_refused(tlc_run: Run, bundle: Path, tmp_path: Path) -> None:
    def worse(_manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        output = members["golden/2/output-0.npy"]
        values = np.frombuffer(output[-12:], np.float32) * np.float32(1.01)  # 40 dB
        members["golden/2/output-0.npy"] = output[:-12] + values.tobytes()

    changed = rewritten(bundle, tmp_path / "changed.tlc", worse)
    done = tlc_run("check", changed, "--json", status=3)
    checked = json.loads(done.stdout)
    assert checked["passed"] is False
    assert [sample["outputs"][0]["passed"] for sample in checked["golden"]] == [True, True, False, True]
    assert checked["golden"][2]["outputs"][0]["snr_db"] == pytest.approx(40.09, abs=0.05)
    assert "Build the engine again" in done.stderr
    text = tlc_run("check", changed, status=3).stdout
    assert "logits 40.1 dB BELOW 50.0 dB" in text
    assert "FAILED: this device does not give what was recorded" in text


def test_a_model_of_other_outputs_than_the_manifest_lists(tlc_run: Run, bundle: Path, tmp_path: Path) -> None:
    def renamed(manifest: dict[str, Any], _members: dict[str, bytes]) -> None:
        manifest["outputs"][0]["name"] = "scores"

    changed = rewritten(bundle, tmp_path / "changed.tlc", renamed)
    assert "the model has no scores, which the bundle lists" in tlc_run("check", changed, status=1).stderr


def test_pictures_that_are_prepared_otherwise_are_refused(tlc_run: Run, bundle: Path, tmp_path: Path) -> None:
    def other(manifest: dict[str, Any], _members: dict[str, bytes]) -> None:
        manifest["fed"]["interpolation"] = "bilinear"

    changed = rewritten(bundle, tmp_path / "changed.tlc", other)
    done = tlc_run("check", changed, status=3)
    assert "PICTURE PREPARED OTHERWISE" in done.stdout
    assert "Pillow 13" in done.stderr


def refusal(tlc_run: Run, bundle: Path, data: Path) -> str:
    done = tlc_run("eval", bundle, "--data", data, status=1)
    assert done.stdout == ""
    assert "\nhint: " in done.stderr
    return done.stderr


def test_folders_that_are_not_the_model_s_classes(tlc_run: Run, bundle: Path, tmp_path: Path) -> None:
    assert f"cannot read {tmp_path / 'none'}: No such file" in refusal(tlc_run, bundle, tmp_path / "none")
    assert "holds no folders" in refusal(tlc_run, bundle, tmp_path)

    for name in CLASSES:
        (tmp_path / "data" / name).mkdir(parents=True)
    assert "holds no pictures" in refusal(tlc_run, bundle, tmp_path / "data")
    (tmp_path / "data" / "dog").mkdir()
    assert "does not know: dog; the model's that have no folder: none" in refusal(tlc_run, bundle, tmp_path / "data")
    (tmp_path / "data" / "dog").rmdir()
    (tmp_path / "data" / "bee").rmdir()
    assert "has no folder for 1 of 3 classes: bee" in refusal(tlc_run, bundle, tmp_path / "data")

    for name in ("train", "val"):
        (tmp_path / "splits" / name).mkdir(parents=True)
    assert f"--data {tmp_path / 'splits'}/val" in refusal(tlc_run, bundle, tmp_path / "splits")


def test_pictures_that_cannot_be_read_are_named(tlc_run: Run, bundle: Path, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", count=2)
    whole = (data / "cat" / "1.JPG").read_bytes()
    (data / "cat" / "1.JPG").write_bytes(whole[: len(whole) // 2])
    assert "cat/1.JPG: not a whole JPEG picture: the file is cut short" in refusal(tlc_run, bundle, data)
    (data / "cat" / "2.webp").write_bytes(b"")
    assert "cat/2.webp is neither JPEG nor PNG" in refusal(tlc_run, bundle, data)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 8, 8, 3), np.uint8)}, "has no array y"),
        ({"y": np.zeros(2, np.int64)}, "has neither x nor 0/input"),
        ({"x": np.zeros((2, 8, 8, 3), np.float32), "y": np.zeros(2, np.int64)}, "x is float32 of shape 2x8x8x3"),
        ({"x": np.zeros((2, 3, 8, 8), np.uint8), "y": np.zeros(2, np.int64)}, "x is uint8 of shape 2x3x8x8"),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": np.zeros(2)}, "y is float64 of shape 2; labels are integers"),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": np.zeros(3, np.int64)}, "y has 3 labels for 2 samples"),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": np.array([0, 3])}, "label 3 of y[1] is outside 0 to 2"),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": np.array([0, -1])}, "label -1 of y[1] is outside 0 to 2"),
        (
            {"x": np.zeros((2, 8, 8), np.uint8), "y": np.array([0, 1]), "classes": np.array(["ant", "owl"])},
            "has a class that the model does not know: owl",
        ),
        ({"0/input": np.zeros((1, 3, 8, 8), np.float32), "y": np.array([0, 1])}, "has no array 1/input"),
        ({"0/input": np.zeros((1, 3, 8, 9), np.float32), "y": np.array([0])}, "input"),
        (
            {"0/input": np.zeros((1, 3, 8, 8), np.float32), "1/input": np.zeros(1), "y": np.array([0])},
            "y has 1 labels, and there is a sample 1/input",
        ),
    ],
    ids=range(12),
)
def test_arrays_that_are_no_data_set_are_refused(
    tlc_run: Run, bundle: Path, tmp_path: Path, arrays: dict[str, NDArray[Any]], message: str
) -> None:
    save_arrays(tmp_path / "data.npz", arrays)
    assert message in refusal(tlc_run, bundle, tmp_path / "data.npz")


def test_damaged_and_compressed_arrays_are_refused(tlc_run: Run, bundle: Path, tmp_path: Path) -> None:
    x, y = np.zeros((9, 8, 8), np.uint8), np.zeros(9, np.int64)
    np.savez_compressed(tmp_path / "small.npz", x=x, y=y)
    assert "compressed" in refusal(tlc_run, bundle, tmp_path / "small.npz")

    np.savez(tmp_path / "data.npz", x=x, y=y)
    content = bytearray((tmp_path / "data.npz").read_bytes())
    content[400] ^= 1  # a pixel
    (tmp_path / "data.npz").write_bytes(content)
    assert "CRC" in refusal(tlc_run, bundle, tmp_path / "data.npz")


def test_a_model_that_is_no_classifier_or_computes_no_numbers(tlc_run: Run, pictures: Path, tmp_path: Path) -> None:
    nan = save_linear(tmp_path / "nan.onnx", ending=[helper.make_node("Log", ["scores"], ["logits"])])
    bundle = rewritten(packed(save_linear(tmp_path / "good.onnx")), tmp_path / "nan.tlc", with_model(nan))
    assert "the model's output holds NaN or infinity" in refusal(tlc_run, bundle, pictures)

    five = save_linear(tmp_path / "five.onnx", classes=5)
    bundle = rewritten(tmp_path / "good.tlc", tmp_path / "five.tlc", with_model(five))
    assert "the model has 5 classes, the bundle names 3" in refusal(tlc_run, bundle, pictures)

    unsqueeze = [
        helper.make_node("Constant", [], ["axes"], value_ints=[2]),
        helper.make_node("Unsqueeze", ["scores", "axes"], ["logits"]),
    ]
    deep = save_linear(tmp_path / "deep.onnx", ending=unsqueeze)
    model = onnx.load(deep)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for size in (1, 3, 1):
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = size
    onnx.save(model, deep)
    bundle = rewritten(tmp_path / "good.tlc", tmp_path / "deep.tlc", with_model(deep))
    assert "the model's first output is 1x3x1, not one row of" in refusal(tlc_run, bundle, pictures)


def with_model(path: Path) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    def change(_manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        members["model.onnx"] = path.read_bytes()

    return change


def test_a_large_file_of_predictions_appears_whole_or_not_at_all(
    tlc_run: Run, bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    done = tlc_run("eval", bundle, "--data", pictures, "--predictions", tmp_path / "none" / "p.json", status=1)
    assert str(tmp_path / "none") in done.stderr
    assert done.stdout == ""


def test_the_split_that_python_evaluates_on_gives_its_accuracy(tlc_run: Run, linear: Path, tmp_path: Path) -> None:
    """The evaluation folder of a data set, read by tlc's own reader and by tlc-run."""
    write_pictures(tmp_path / "data" / "val", count=6)
    rng = np.random.default_rng(9)
    for name in CLASSES:
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "train" / name / "0.png")
        Image.fromarray(pixels[::-1]).save(tmp_path / "data" / "train" / name / "1.png")
    evaluation = read_data(tmp_path / "data", classes=CLASSES).evaluation
    feeds = [COLOURS(evaluation.image(i)) for i in range(len(evaluation))]  # type: ignore[arg-type]
    predicted = [int(logits_of(linear, {"input": feed}).argmax()) for feed in feeds]

    report = json.loads(
        tlc_run("eval", packed(linear, out=tmp_path / "m.tlc"), "--data", tmp_path / "data" / "val", "--json").stdout
    )
    assert (report["samples"], report["correct"]) == (18, int((np.array(predicted) == evaluation.labels).sum()))
