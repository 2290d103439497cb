"""The files that a model is made of."""

import re
from pathlib import Path

from tlc.runtime.artifact import sha256_file, sha256_json


def model_files(path: Path) -> list[Path]:
    """Return the files that a model is made of: itself and the data files that an ONNX file names, or a folder's."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    if path.suffix.lower() != ".onnx" or not path.is_file():
        return [path] if path.is_file() else []
    # An entry {key: "location", value: name} of onnx.proto's TensorProto.external_data, as protobuf encodes it.
    found = re.findall(rb"\n\x08location\x12(.)(.{1,127})", path.read_bytes(), re.DOTALL)
    names = {name[: length[0]].decode(errors="replace") for length, name in found}
    beside = [path.parent / name for name in sorted(names)]
    return [path, *(file for file in beside if file.is_file())]


def model_sha256(path: Path) -> str:
    """Return the SHA-256 of a model's file; of several files, that of the list of theirs; "" where there is none."""
    digests = [sha256_file(file) for file in model_files(path)]
    return digests[0] if len(digests) == 1 else sha256_json(digests) if digests else ""
