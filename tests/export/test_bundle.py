"""Packing: the same bytes every time, nothing of this machine, and golden samples that prove the model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bar_nets import CLASSES, write_net
from bundles import members_of, rewritten, with_hash, write_bundle, write_run
from graphs import Net, two_convolutions
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from tiny_text import write_reviews
from tiny_tokens import SPECIAL, WORDS, fed_by, wordpiece

import tiny
from tlc.calibration.preprocess import Preprocess
from tlc.export import bundle_source
from tlc.export.bundle import PackOptions, pack
from tlc.export.bundle_check import BundleCheck, check_bundle
from tlc.export.bundle_source import precision_of, source_of_file, source_of_run, without_folders
from tlc.runtime.bundle import Bundle, read_manifest, unpacked
from tlc.runtime.bundle_manifest import BundleLimits
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.plan import ProfileShapes
from tlc.runtime.target import load_target

CPU = load_target("cpu-x86")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def packed(path: Path, model: Path, *, target: str = "cpu-x86", fed: Any = None, **options: Any) -> Path:
    source = source_of_file(model, load_target(target), fed=fed, classes=())
    pack(source, path, PackOptions(**options))
    return path


def refusal(bundle: Path) -> str:
    with pytest.raises(TlcError) as caught:
        check_bundle(bundle)
    assert caught.value.hint
    return caught.value.message.removeprefix(f"{bundle}: ")


def test_two_processes_elsewhere_write_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for place, (zone, mask) in enumerate([("UTC", 0o022), ("Asia/Kathmandu", 0o077)]):
        folder = tmp_path / f"home of user {place}"
        folder.mkdir()
        write_run(folder / "run")
        code = f"import os; os.umask({mask}); from tlc.cli.main import main; main()"
        command = ["pack", "run", "-o", "net.tlc", "--with-reference", "--licence", "MIT", "--p50-under", "8ms"]
        env = {**os.environ, "TZ": zone, "HOME": str(folder), "PYTHONHASHSEED": str(place)}
        subprocess.run([sys.executable, "-c", code, *command], cwd=folder, env=env, check=True, capture_output=True)
        written.append((folder / "net.tlc").read_bytes())

    assert written[0] == written[1]
    assert str(tmp_path).encode() not in written[0]


def test_nothing_is_left_where_packing_fails(tmp_path: Path) -> None:
    model = write_net(tmp_path / "net.onnx", bias=float("nan"))

    with pytest.raises(TlcError, match="output logits of golden sample 0 is not finite"):
        packed(tmp_path / "net.tlc", model)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_a_run_is_packed_with_all_that_it_found(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", command="tlc compress /home/me/net.pt --data /mnt/bars.npz")
    manifest, warnings = pack(
        source_of_run(folder),
        tmp_path / "net.tlc",
        PackOptions(
            with_reference=True, limits=BundleLimits(p50_ms=8.0, max_drop_points=1.0), licence="mit or gpl-2.0"
        ),
    )
    members = members_of(tmp_path / "net.tlc")

    assert warnings == []
    assert members["model.onnx"] == (folder / "model.onnx").read_bytes()
    assert members["reference.onnx"] == (folder / "original.onnx").read_bytes()
    assert manifest.limits.model_dump(exclude_none=True) == {"p50_ms": 8.0, "max_drop_points": 1.0}
    assert manifest.licence == "MIT OR GPL-2.0"
    assert manifest.lineage.command == "tlc compress net.pt --data bars.npz"
    assert manifest.lineage.original_sha256 == "1" * 64
    assert manifest.lineage.versions == {"torch": "2.9.0"}
    assert manifest.target == load_target("cpu-x86", flags=frozenset({"sse2", "avx512_vnni"}))
    card = members["card.md"].decode()
    assert "student is 1.50x as fast as the original." in card
    assert "- top-1 95.83 % of 24 samples\n" in card
    assert "- weakest class upright: 91.7 % of 12\n" in card
    assert "- distill: kept. 1.5x the speed.\n" in card
    assert "- median latency under 8.0 ms\n- at most 1.0 points of top-1 lost\n" in card


def test_a_run_that_was_changed_since_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_net(folder / "model.onnx", bias=0.25)

    with pytest.raises(TlcError, match=r"model.onnx is not the file that .*manifest.json lists"):
        source_of_run(folder)


def test_a_folder_that_is_no_run_and_one_that_is_broken_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not the folder of a finished run: no report.json"):
        source_of_run(tmp_path)

    folder = write_run(tmp_path / "run")
    (folder / "report.json").write_text('{"chosen": 3}')
    with pytest.raises(TlcError, match=r"report.json is not what tlc compress writes: tlc_version: Field required"):
        source_of_run(folder)


def test_a_good_bundle_passes_and_tells_how_near_its_outputs_are(tmp_path: Path) -> None:
    found = check_bundle(write_bundle(tmp_path / "bars.tlc"))

    assert isinstance(found, BundleCheck)
    assert (found.members, found.pictures, found.stands_in, found.signer) == (15, 4, "", None)
    assert found.runtime.startswith("onnxruntime ")
    assert found.snr_db["logits"] > 100


def test_noise_pictures_are_of_other_sizes_than_the_input(tmp_path: Path) -> None:
    fed = Preprocess(size=(8, 8), resize=9, mean=(0.5,), std=(0.25,), channels="gray", interpolation="bicubic")
    source = source_of_file(write_net(tmp_path / "net.onnx"), CPU, fed=fed, classes=CLASSES)
    pack(source, tmp_path / "net.tlc", PackOptions(golden=6))

    heights = {members_of(tmp_path / "net.tlc")[f"golden/{i}/image.png"][16:24] for i in range(6)}
    assert len(heights) == 6
    assert check_bundle(tmp_path / "net.tlc").pictures == 6


def test_golden_samples_of_data_are_its_pictures(tmp_path: Path) -> None:
    data = tiny.write_bars(tmp_path / "bars.npz")
    path = write_bundle(tmp_path / "bars.tlc", data=data, golden=3)

    with Bundle(path) as bundle:
        golden = bundle.manifest.golden
        outputs = [bundle.array(sample.outputs[0]) for sample in golden.samples]
    assert (golden.source, len(golden.samples)) == ("data", 3)
    assert len({output.tobytes() for output in outputs}) == 3
    assert check_bundle(path).pictures == 3
    with pytest.raises(TlcError, match=r"bars.npz has 24 evaluation samples, and 64 are wanted"):
        write_bundle(tmp_path / "more.tlc", data=data, golden=64)


def test_a_model_that_answers_otherwise_is_found(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "bars.tlc")
    other = write_net(tmp_path / "other.onnx", bias=0.5).read_bytes()
    rewritten(path, {"model.onnx": other}, manifest=lambda value: with_hash(value, "model.onnx", other))

    assert "output logits meets the golden one at " in refusal(path)
    assert "; the limit is 50 dB" in refusal(path)


def test_a_model_of_other_outputs_is_found(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "bars.tlc")
    other = write_net(tmp_path / "other.onnx", more=True).read_bytes()
    rewritten(path, {"model.onnx": other}, manifest=lambda value: with_hash(value, "model.onnx", other))

    assert refusal(path) == "the model's outputs are logits, rows, the manifest says logits"


def test_a_picture_that_becomes_another_input_is_found(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "bars.tlc")

    def darker(value: Any) -> None:
        value["fed"]["mean"] = [0.4]

    assert "golden/0/image.png becomes an input that is 0.4 from the golden one" in refusal(
        rewritten(path, {}, manifest=darker)
    )


def test_a_model_whose_preprocessing_gives_another_shape_is_refused(tmp_path: Path) -> None:
    fed = Preprocess(size=(8, 8), resize=None, mean=(0.5,) * 3, std=(0.25,) * 3)

    with pytest.raises(TlcError, match=r"takes input \['N', 1, 8, 8\], and its preprocessing gives \[1, 3, 8, 8\]"):
        packed(tmp_path / "net.tlc", write_net(tmp_path / "net.onnx"), fed=fed)


def test_a_batch_that_the_file_fixes_is_filled(tmp_path: Path) -> None:
    path = packed(tmp_path / "net.tlc", write_net(tmp_path / "net.onnx", batch=3), fed=tiny.PREPROCESS)

    with Bundle(path) as bundle:
        assert bundle.manifest.inputs[0].shape == [3, 1, 8, 8]
        assert bundle.array("golden/0/input-0.npy").shape == (3, 1, 8, 8)
        assert bundle.manifest.build.profile == {}
    assert check_bundle(path).pictures == 4


def test_what_feeds_the_model_is_written_into_its_file(tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    onnx.save(two_convolutions(), model)
    fed = Preprocess(size=(8, 8), resize=None, mean=(0.5,), std=(0.25,), channels="gray")

    with pytest.raises(TlcError, match=r"takes x \['N', 16, 8, 8\]"):
        packed(tmp_path / "net.tlc", model, fed=fed)
    plain = packed(tmp_path / "plain.tlc", model)
    assert members_of(plain)["model.onnx"] == model.read_bytes()
    assert read_manifest(plain).precision == "int8"

    relabelled = source_of_file(write_net(model), CPU, fed=tiny.PREPROCESS, classes=("on", "off"))
    pack(relabelled, tmp_path / "net.tlc", PackOptions())
    assert b'["on", "off"]' in members_of(tmp_path / "net.tlc")["model.onnx"]


def test_external_weights_are_taken_into_the_file(tmp_path: Path) -> None:
    net = Net(("N", 4))
    weights = np.random.default_rng(0).standard_normal((4, 400)).astype(np.float32)
    model = net.model(net.op("MatMul", "x", net.constant(weights)))
    external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, tmp_path / "net.onnx")
    assert (tmp_path / "weights.bin").stat().st_size == 6400

    path = packed(tmp_path / "net.tlc", tmp_path / "net.onnx")

    assert len(members_of(path)["model.onnx"]) > 6400
    assert check_bundle(path).snr_db["matmul0"] > 100


def test_a_model_above_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_source, "MAX_BYTES", 100)
    model = write_net(tmp_path / "net.onnx")

    with pytest.raises(
        TlcError, match=rf"has {model.stat().st_size:,} bytes with its data; the limit of a bundle is 100"
    ):
        packed(tmp_path / "net.tlc", model)


def test_a_model_that_the_target_refuses_is_not_packed(tmp_path: Path) -> None:
    net = Net()
    onnx.save(net.model(net.conv(net.pair(net.op("Relu", "x"), zero_point=np.uint8(0)))), tmp_path / "net.onnx")

    with pytest.raises(TlcError, match=r"jetson-orin does not take .* in 2 places; first quantizelinear1"):
        packed(tmp_path / "net.tlc", tmp_path / "net.onnx", target="jetson-orin")


def test_a_bundle_for_tensorrt_has_a_profile_and_says_that_its_engine_is_elsewhere(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "bars.tlc", target="jetson-orin", workspace_bytes=1 << 28, builder_level=2)
    build = read_manifest(path).build

    assert build.profile["input"] == ProfileShapes(min=[1, 1, 8, 8], opt=[1, 1, 8, 8], max=[1, 1, 8, 8])
    assert (build.workspace_bytes, build.builder_level) == (1 << 28, 2)
    assert check_bundle(path).stands_in == "jetson-orin runs engines, which are built on the device"


def test_shapes_that_only_tensorrt_needs_may_stay_open_elsewhere(tmp_path: Path) -> None:
    net = Net(("N", "T", 4))
    onnx.save(net.model(net.op("Relu", "x")), tmp_path / "net.onnx")
    shapes = {"x": ProfileShapes(min=[1, 2, 4], opt=[1, 5, 4], max=[2, 9, 4])}

    assert read_manifest(packed(tmp_path / "a.tlc", tmp_path / "net.onnx")).build.profile == {}
    with pytest.raises(UsageError, match="leaves T open"):
        packed(tmp_path / "b.tlc", tmp_path / "net.onnx", target="jetson-orin")
    path = packed(tmp_path / "b.tlc", tmp_path / "net.onnx", target="jetson-orin", shapes=shapes)
    assert read_manifest(path).build.profile == shapes
    with Bundle(path) as bundle:
        assert bundle.array("golden/0/input-0.npy").shape == (1, 5, 4)


def _write_text_net(path: Path) -> Path:
    """The sum of a table's rows for the tokens that count: (N, T) ids and mask -> (N, 2)."""
    table = np.random.default_rng(0).standard_normal((len(SPECIAL + WORDS), 2)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["N", "T"]) for n in ("input_ids", "attention_mask")]
    constants = {"table": table, "last": np.array([2]), "middle": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "words",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_text_model_travels_with_its_tokenizer(tmp_path: Path) -> None:
    model = _write_text_net(tmp_path / "words.onnx")
    fed = fed_by(wordpiece(), max_length=24)
    with pytest.raises(TlcError, match=r"holds no tokenizer.json with SHA-256 "):
        source_of_file(model, CPU, fed=fed, classes=())
    (tmp_path / "tokenizer.json").write_text(wordpiece())
    source = source_of_file(model, CPU, fed=fed, classes=("bad", "good"))
    pack(source, tmp_path / "noise.tlc", PackOptions())
    pack(source, tmp_path / "data.tlc", PackOptions(data=write_reviews(tmp_path / "reviews.csv"), golden=2))

    with Bundle(tmp_path / "noise.tlc") as bundle:
        lengths = [bundle.array(sample.inputs[0]).shape[1] for sample in bundle.manifest.golden.samples]
        assert bundle.manifest.tokenizer == "tokenizer/"
    assert lengths == [5, 12, 24, 24]
    for name in ("noise.tlc", "data.tlc"):
        assert min(check_bundle(tmp_path / name).snr_db.values()) > 50
    beside = unpacked(tmp_path / "noise.tlc").with_name("tokenizer.json")
    assert beside.read_text() == wordpiece()


def test_options_that_contradict_the_source_are_refused(tmp_path: Path) -> None:
    model = write_net(tmp_path / "net.onnx")
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (tmp_path / "net.zip", {}, r"net.zip does not end in .tlc"),
        (tmp_path / "net.tlc", {"name": "a b"}, "'a b' is no name of a bundle"),
        (tmp_path / "net.tlc", {"with_reference": True}, "comes without a float original"),
        (tmp_path / "net.tlc", {"licence": "free for all"}, "--licence 'free for all' is no SPDX expression"),
        (tmp_path / "net.tlc", {"data": tmp_path}, "not known how images or texts become inputs"),
    ]

    for path, options, said in cases:
        with pytest.raises(UsageError, match=said):
            packed(path, model, **options)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize(
    ("command", "cut"),
    [
        ("tlc demo --out demo-out", "tlc demo --out demo-out"),
        ("tlc compress ~/net.pt --recipe=/etc/tlc.toml", "tlc compress net.pt --recipe=tlc.toml"),
        ("tlc compress 'an unmatched quote", ""),
    ],
)
def test_folders_of_this_machine_are_cut_from_commands(command: str, cut: str) -> None:
    assert without_folders(command) == cut


def test_precision_is_that_of_the_graph(tmp_path: Path) -> None:
    half = Net()
    half.op("Cast", half.constant(np.zeros(2, np.float16)), to=1)

    assert precision_of(onnx.load(write_net(tmp_path / "net.onnx"))) == "fp32"
    assert precision_of(two_convolutions()) == "int8"
    assert precision_of(half.model("cast0")) == "fp16"


def test_the_component_list_keeps_its_schema(tmp_path: Path) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    schema = pytest.importorskip("cyclonedx.schema")
    chosen: tuple[dict[str, Any], ...] = ({}, {"with_reference": True, "licence": "Apache-2.0 AND LicenseRef-weights"})
    for options in chosen:
        pack(source_of_run(write_run(tmp_path / f"run{len(options)}")), tmp_path / "net.tlc", PackOptions(**options))
        text = members_of(tmp_path / "net.tlc")["sbom.cdx.json"].decode()

        assert validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text) is None
        assert (
            validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text.replace("SHA-256", "SHA"))
            is not None
        )


def test_the_component_list_names_the_model_its_scores_and_what_it_was_made_with(tmp_path: Path) -> None:
    pack(source_of_run(write_run(tmp_path / "run")), tmp_path / "net.tlc", PackOptions(licence="MIT"))
    bom = json.loads(members_of(tmp_path / "net.tlc")["sbom.cdx.json"])
    model = bom["metadata"]["component"]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]

    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    assert model["hashes"][0]["content"] == read_manifest(tmp_path / "net.tlc").files["model.onnx"].sha256
    assert model["licenses"] == [{"expression": "MIT"}]
    assert model["pedigree"]["ancestors"][0]["hashes"][0]["content"] == "1" * 64
    assert {"type": "recall", "slice": "upright", "value": "0.9167"} in metrics
    assert "pkg:pypi/torch@2.9.0" in {component.get("purl") for component in bom["components"]}
    assert bom["serialNumber"].startswith("urn:uuid:")
    assert "timestamp" not in bom["metadata"]
