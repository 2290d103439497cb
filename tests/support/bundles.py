"""Small bundles, and zips that look like them and are not."""

import hashlib
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bar_nets import CLASSES, write_net

import tiny
from tlc.export.bundle import PackOptions, pack
from tlc.export.bundle_source import source_of_file
from tlc.runtime.artifact import sha256_file
from tlc.runtime.bundle_manifest import MANIFEST, SIGNATURE
from tlc.runtime.stored_zip import write_stored_zip
from tlc.runtime.target import load_target


def write_bundle(path: Path, *, target: str = "cpu-x86", bias: float = 0.0, **options: Any) -> Path:
    """Write a bundle of `bar_nets.write_net`: gray images 8x8, two classes."""
    model = write_net(path.with_suffix(".onnx"), bias=bias)
    source = source_of_file(model, load_target(target), fed=tiny.PREPROCESS, classes=CLASSES)
    pack(source, path, PackOptions(**options))
    return path


def members_of(path: Path) -> dict[str, bytes]:
    """Return the content of every member, in the file's order."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path: Path, changes: Mapping[str, bytes | None], *, manifest: Callable[[Any], Any] | None = None) -> Path:
    """Rewrite the bundle with other members, None removing one, and with what `manifest` makes of the manifest."""
    members = members_of(path)
    for name, content in changes.items():
        if content is None:
            del members[name]
        else:
            members[name] = content
    if manifest is not None:
        value = json.loads(members[MANIFEST])
        value = manifest(value) or value
        members[MANIFEST] = (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    ends = [name for name in (SIGNATURE,) if name in members]
    order = [MANIFEST, *sorted(members.keys() - {MANIFEST, SIGNATURE}), *ends]
    write_stored_zip(path, {name: members[name] for name in order})
    return path


def with_hash(value: Any, name: str, content: bytes) -> Any:
    """Return the manifest `value` with the hash and size of `content` for `name`: an attacker who is thorough."""
    value["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    return value


def write_raw_zip(path: Path, members: list[tuple[str, bytes]], **changes: Any) -> Path:
    """Write a zip by zipfile, which checks no names; `changes` are attributes of every entry."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            for key, value in changes.items():
                setattr(info, key, value)
            archive.writestr(info, content)
    return path


def patched(path: Path, place: int, data: bytes) -> Path:
    """Overwrite bytes of the file at `place`."""
    content = bytearray(path.read_bytes())
    content[place : place + len(data)] = data
    path.write_bytes(content)
    return path


def directory_place(path: Path) -> int:
    """Return where the zip's central directory begins."""
    (place,) = struct.unpack("<I", path.read_bytes()[-6:-2])
    return int(place)


def write_run(folder: Path, *, command: str = "tlc compress net.pt --data bars.npz") -> Path:
    """Write the folder of a finished run, as far as packing reads it: the bar net, chosen as `student`."""
    folder.mkdir()
    write_net(folder / "original.onnx")
    write_net(folder / "model.onnx", bias=0.5)
    top1 = {"samples": 24, "top1": 0.9583, "macro_f1": 0.95, "per_class": []}
    score: dict[str, Any] = {"support": 12, "precision": 1.0, "f1": 0.95}
    top1["per_class"] = [{"name": "flat", "recall": 1.0, **score}, {"name": "upright", "recall": 0.9167, **score}]
    points = {"estimate": -0.5, "low": -1.5, "high": 0.25}
    rows = [
        _row("original", "original.onnx", {"samples": 24, "top1": 0.96, "per_class": []}, None),
        _row("student", "student.onnx", top1, {"change_points": points}),
    ]
    recipe = {"target": "cpu-x86", "seed": 0, "data": {"path": "bars.npz"}}
    environment = {"cpu_model": "Test CPU", "cpu_flags": ["sse2", "avx512_vnni"], "versions": {"torch": "2.9.0"}}
    common = {
        "schema_version": 1,
        "tlc_version": "0.1.0",
        "command": command,
        "model": {"path": "net.pt", "sha256": "1" * 64, "arch": "net.py:bars", "input_shape": [1, 8, 8]},
        "data": {"path": "bars.npz", "sha256": "2" * 64, "fit_samples": 90, "evaluation_samples": 24},
        "recipe": recipe,
        "environment": environment,
    }
    stage = {"name": "distill", "status": "kept", "reason": "1.5x the speed.", "seconds": 3.0, "details": {}}
    report = {**common, "target": "cpu-x86", "threads": 1, "stages": [stage], "measurements": rows}
    report |= {"chosen": "student", "verdict": "student is 1.50x as fast as the original."}
    (folder / "report.json").write_text(json.dumps(report))
    files = {name: sha256_file(folder / name) for name in ("model.onnx", "original.onnx")}
    (folder / "manifest.json").write_text(json.dumps({**common, "files": files}))
    return folder


def _row(name: str, file: str, accuracy: dict[str, Any], change: dict[str, Any] | None) -> dict[str, Any]:
    latency = {"p50_ms": 1.25, "p99_ms": 1.5}
    numbers = {"precision": "fp32", "size_bytes": 500, "parameters": 2, "macs": 10, "peak_memory_bytes": None}
    return {"name": name, "file": file, **numbers, "latency": latency, "accuracy": accuracy, "change": change}
