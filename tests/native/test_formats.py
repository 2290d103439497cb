"""What tlc-run reads, it reads as Python does, or refuses; Python's own libraries are the other implementation."""

import hashlib
import io
import json
import random
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_build import built
from numpy.typing import NDArray
from onnx import TensorProto, helper, save
from tests.native.make_corpus import bundle_members, manifest

from tlc.calibration.preprocess import Preprocess
from tlc.export.bundle import PackOptions, pack
from tlc.export.bundle_source import source_of_file
from tlc.runtime.bundle import Bundle
from tlc.runtime.errors import TlcError
from tlc.runtime.target import load_target

REPOSITORY = Path(__file__).resolve().parents[2]


class Probe:
    """The program that reads files as tlc-run does."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, kind: str, content: bytes | Path) -> Any:
        """Return what it found in `content`: {"error": ...} where it refuses."""
        assert self._process.stdin
        assert self._process.stdout
        path = content if isinstance(content, Path) else self.folder / "file"
        if isinstance(content, bytes):
            path.write_bytes(content)
        print(kind, path, sep="\t", file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the program, which must not have crashed."""
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    probe = Probe(built("tlc_format_probe"), tmp_path_factory.mktemp("formats"))
    yield probe
    probe.close()


def refused(answer: Any, because: str) -> bool:
    return isinstance(answer, dict) and because in answer.get("error", "")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 128, 1 << 20])
def test_hashes_are_those_of_hashlib(probe: Probe, size: int) -> None:
    content = random.Random(size).randbytes(size)
    assert probe.ask("sha256", content) == sha256(content)


def some_json(draw: random.Random, levels: int = 4) -> Any:
    kind = draw.randrange(8 if levels else 6)
    if kind == 6:
        return [some_json(draw, levels - 1) for _ in range(draw.randrange(5))]
    if kind == 7:
        return {some_text(draw): some_json(draw, levels - 1) for _ in range(draw.randrange(5))}
    if kind == 2:
        return draw.randrange(-(2**53), 2**53)
    if kind == 3:
        return draw.gauss(0, 1) * 10.0 ** draw.randrange(-300, 300)
    return [None, draw.random() < 0.5, 0, 0, some_text(draw), ""][kind]


def some_text(draw: random.Random) -> str:
    letters = [chr(draw.choice([0, 10, 34, 92, 65, 127, 233, 8364, 0xFFFF, 0x1F600, 0x10FFFF])) for _ in range(6)]
    return "".join(letters[: draw.randrange(7)])


@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_is_read_as_python_reads_it(probe: Probe, ascii_only: bool) -> None:
    for seed in range(300):
        value = some_json(random.Random(seed))
        assert probe.ask("json", json.dumps(value, ensure_ascii=ascii_only).encode()) == value


def test_mutated_json_is_refused_or_read_as_python_reads_it(probe: Probe) -> None:
    good = json.dumps(
        {"name": "x\u20ac", "list": [1, -2.5e3, True, None, "\u00e9\n"], "in": {"a": {}, "b": []}}
    ).encode()
    read = 0
    for seed in range(1000):
        draw = random.Random(seed)
        text = bytearray(good)
        for _ in range(draw.randrange(1, 4)):
            text[draw.randrange(len(text))] = draw.choice(b'{}[],:"\\0129eE+-.tfn \xc3\xff')
        answer = probe.ask("json", bytes(text))
        if not refused(answer, "not JSON"):
            assert answer == json.loads(text)
            read += 1
    assert 50 < read < 950


def npy(array: NDArray[Any], version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "uint8", "int8", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 0, 4), (2, 1, 3, 5)])
def test_arrays_are_read_and_written_as_numpy_does(probe: Probe, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)
    found = probe.ask("npy", npy(array))
    assert found == {"dtype": dtype, "shape": list(shape), "sha256": sha256(array.tobytes())}
    for version in ((2, 0), (3, 0)):
        assert probe.ask("npy", npy(array, version)) == found
    path = probe.folder / "array.npy"
    np.save(path, array)
    assert probe.ask("rewrite", path) is None
    again = np.load(path)
    assert (again.dtype, again.shape, again.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_names_are_read_as_numpy_reads_them(probe: Probe) -> None:
    names = ["cat", "", "Grüße", "\U0001f600 face", "x" * 40, "a\0b"]
    assert probe.ask("npy", npy(np.array(names))) == {"names": names}
    assert probe.ask("npy", npy(np.array([], dtype=str))) == {"names": []}


@pytest.mark.parametrize(
    ("array", "because"),
    [
        (np.zeros(3, ">f4"), "values of type '>f4'"),
        (np.zeros(3, "uint16"), "values of type '<u2'"),
        (np.zeros(3, "complex64"), "values of type '<c8'"),
        (np.zeros((2, 3), order="F"), "Fortran order"),
        (np.array([{}, None]), "values of type '|O'"),
        (np.zeros(3, [("a", "<f4")]), "its header has no '"),
        (np.array(["2020-01-01"], "datetime64[D]"), "values of type '<M8[D]'"),
    ],
)
def test_other_arrays_are_refused(probe: Probe, array: NDArray[Any], because: str) -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    assert refused(probe.ask("npy", file.getvalue()), because)


def zipped(members: dict[str, bytes], **options: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def digests(members: dict[str, bytes]) -> dict[str, str]:
    return {name: sha256(content) for name, content in members.items()}


MEMBERS = {"a.npy": b"hello", "folder/b": b"", "0/x": bytes(200_000), "\u00e9": b"x"}


def test_zips_are_read_as_python_reads_them(probe: Probe) -> None:
    assert probe.ask("zip", zipped(MEMBERS)) == digests(MEMBERS)
    assert probe.ask("zip", zipped({})) == {}


def test_numpys_archives_are_read(probe: Probe) -> None:
    path = probe.folder / "data.npz"
    x, y = np.arange(50_000, dtype=np.uint8), np.arange(3)
    np.savez(path, x=x, y=y)
    assert probe.ask("zip", path) == digests({"x.npy": npy(x), "y.npy": npy(y)})
    np.savez_compressed(path, x=x, y=y)
    assert refused(probe.ask("zip", path), "member 'x.npy' is compressed")


def test_a_zip_that_was_written_into_a_pipe_is_read(probe: Probe) -> None:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.written = b""

        def writable(self) -> bool:
            return True

        def write(self, piece: Any) -> int:
            self.written += bytes(piece)
            return len(piece)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:  # sizes follow the data, since it cannot seek
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
    assert probe.ask("zip", pipe.written) == digests(MEMBERS)


@pytest.mark.parametrize("limit", ["ZIP64_LIMIT", "ZIP_FILECOUNT_LIMIT"])
def test_zip64_is_read(probe: Probe, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(zipfile, limit, 1)  # so that small files get what large ones have
    content = zipped(MEMBERS)
    assert b"PK\x06\x06" in content
    assert probe.ask("zip", content) == digests(MEMBERS)
    assert refused(probe.ask("zip", content.replace(b"PK\x06\x07", b"PK\x06\x08")), "other bytes before or after it")
    end = content.index(b"PK\x06\x06")
    lying = content[: end + 24] + struct.pack("<QQ", 2**63, 2**63) + content[end + 40 :]
    assert refused(probe.ask("zip", lying), "zip64 directory is broken")


def test_more_members_than_16_bits_count_are_read(probe: Probe) -> None:
    members = {f"{i}": b"" for i in range(66_000)}
    answer = probe.ask("zip", zipped(members))
    assert len(answer) == 66_000
    assert set(answer.values()) == {sha256(b"")}


def overlapping() -> bytes:
    """Two members whose data are the same bytes."""
    content = bytearray(zipped({"a": b"same", "b": b"same"}))
    second = content.rindex(b"PK\x01\x02")
    content[second + 42 : second + 46] = struct.pack("<I", 0)
    return bytes(content)


def twice() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"2")
    return file.getvalue()


def commented() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = b"hello"
        archive.writestr("a", b"1")
    return file.getvalue()


def flagged() -> bytes:
    content = bytearray(zipped({"a": b"1"}))
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + place] |= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "because"),
    [
        (lambda: zipped({"../../etc/passwd": b""}), "could leave a folder"),
        (lambda: zipped({"/etc/passwd": b""}), "could leave a folder"),
        (lambda: zipped({"a/./b": b""}), "could leave a folder"),
        (lambda: zipped({"a\\b": b""}), "could leave a folder"),
        (lambda: zipped({"folder/": b""}), "could leave a folder"),
        (lambda: zipped({"a": bytes(9999)}, compression=zipfile.ZIP_DEFLATED), "is compressed"),
        (lambda: zipped({"a": b"1"})[:-1], "cut short"),
        (lambda: zipped({"a": b"1"})[:20], "cut short"),
        (lambda: b"#!/bin/sh\n" + zipped({"a": b"1"}), "other bytes before or after"),
        (lambda: zipped({"a": b"1"}) + b"\n", "cut short, or not a zip file"),
        (lambda: b"", "cut short, or not a zip file"),
        (lambda: bytes(100), "cut short, or not a zip file"),
        (overlapping, "not what the directory says"),
        (twice, "is there twice"),
        (commented, "with a comment"),
        (flagged, "is encrypted"),
    ],
)
def test_hostile_zips_are_refused(probe: Probe, content: Callable[[], bytes], because: str) -> None:
    answer = probe.ask("zip", content())
    assert refused(answer, because), answer


def test_mutated_zips_are_refused_or_read_as_python_reads_them(probe: Probe) -> None:
    good = zipped({"a.npy": b"hello", "b": b"world!"})
    read = 0
    for seed in range(1000):
        draw = random.Random(seed)
        content = bytearray(good)
        for _ in range(draw.randrange(1, 3)):
            content[draw.randrange(len(content))] = draw.choice([0, 1, 8, 255, draw.randrange(256)])
        answer = probe.ask("zip", bytes(content))
        if "error" not in answer:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                assert answer == {name: sha256(archive.read(name)) for name in archive.namelist()}
            read += 1
    assert 50 < read < 950


PICTURES = Preprocess(size=(4, 4), resize=5, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))


@pytest.fixture(scope="module", params=[None, PICTURES], ids=["arrays", "pictures"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of y = relu(x) that tlc packed."""
    folder = tmp_path_factory.mktemp("bundle")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 4, 4]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    model = folder / "relu.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    out = folder / "relu.tlc"
    source = source_of_file(model, load_target("cpu-x86"), fed=request.param, classes=("cat", "dog"))
    pack(source, out, PackOptions(golden=2))
    return out


def test_a_bundle_is_read_as_it_was_packed(probe: Probe, bundle: Path) -> None:
    with Bundle(bundle) as packed:
        manifest = packed.manifest
        model = packed.read(manifest.model)
    assert probe.ask("bundle", bundle) == {
        "name": "relu",
        "runtime": manifest.target.runtime,
        "threads": manifest.target.threads,
        "golden": 2,
        "pictures": 0 if manifest.fed is None else 2,
        "files": len(manifest.files),
        "model": sha256(model),
    }


def test_a_bundle_with_any_member_altered_is_refused(probe: Probe, bundle: Path) -> None:
    content = bundle.read_bytes()
    with zipfile.ZipFile(bundle) as archive:
        infos = archive.infolist()
        members = {info.filename: archive.read(info) for info in infos}
    for info in infos[1:]:
        start = info.header_offset + 30 + len(info.filename)
        damaged = bytearray(content)
        damaged[start + info.file_size // 2] ^= 1
        assert refused(probe.ask("bundle", bytes(damaged)), f"member '{info.filename}' are damaged (CRC-32)")

        # The same with all of the zip's own numbers made right.
        altered = dict(members)
        altered[info.filename] = bytes(damaged[start : start + info.file_size])
        answer = probe.ask("bundle", zipped(altered))
        assert refused(answer, f"{info.filename} has SHA-256 {sha256(altered[info.filename])[:16]}")


def test_bundles_that_python_refuses_are_refused(probe: Probe, bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    path = probe.folder / "altered.tlc"

    def both_refuse(altered: dict[str, bytes], because: str) -> None:
        path.write_bytes(zipped(altered))
        answer = probe.ask("bundle", path)
        assert refused(answer, because), answer
        with pytest.raises(TlcError), Bundle(path):
            pass

    def with_manifest(**changes: Any) -> dict[str, bytes]:
        return {**members, "manifest.json": json.dumps({**json.loads(members["manifest.json"]), **changes}).encode()}

    both_refuse({**members, "zzz": b""}, "zzz is not in the manifest's list")
    both_refuse({name: members[name] for name in members if name != "model.onnx"}, "model.onnx, which is not there")
    both_refuse(dict(reversed(members.items())), "does not begin with manifest.json")
    both_refuse({**members, "manifest.json": members["manifest.json"][:-3]}, "not JSON")
    both_refuse(with_manifest(format="zip"), "its manifest does not say so")
    both_refuse(with_manifest(version=2), "a bundle of version 2")
    both_refuse(with_manifest(model="other.onnx"), 'refers to "other.onnx", which it does not list')
    both_refuse(with_manifest(classes=[1]), "classes[0] must be a string")
    both_refuse(with_manifest(name="a/b"), 'the name "a/b" has other letters')


def test_the_fuzz_targets_start_from_files_that_are_read(probe: Probe) -> None:
    for path in sorted((REPOSITORY / "tests" / "native" / "corpus").glob("*/*")):
        kind = path.parent.name
        if kind in ("json", "npy", "zip"):
            assert "error" not in probe.ask(kind, path), path
    assert (REPOSITORY / "tests" / "native" / "corpus" / "manifest" / "good.json").read_bytes() == manifest()
    answer = probe.ask("bundle", zipped({"manifest.json": manifest(), **bundle_members()}))
    assert answer["files"] == 3, answer
