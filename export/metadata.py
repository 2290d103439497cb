"""What a device needs to feed a file, written into the file: preprocessing and class names."""

import json
from pathlib import Path

import onnx

from tlc.calibration.preprocess import Preprocess
from tlc.runtime.artifact import write_bytes
from tlc.runtime.errors import TlcError

_PREPROCESS = "tlc.preprocess"
_CLASSES = "tlc.classes"


def write_metadata(source: Path, path: Path, preprocess: Preprocess, classes: tuple[str, ...]) -> None:
    """Write `source` to `path` with its preprocessing and class names as ONNX metadata; the same bytes every time."""
    model = onnx.load(source)
    del model.metadata_props[:]
    onnx.helper.set_model_props(
        model, {_CLASSES: json.dumps(classes, ensure_ascii=False), _PREPROCESS: preprocess.model_dump_json()}
    )
    write_bytes(path, model.SerializeToString(deterministic=True))


def read_metadata(path: Path) -> tuple[Preprocess | None, tuple[str, ...]]:
    """Return the preprocessing and class names that `write_metadata` wrote; None and () for another tool's file.

    Raises:
        TlcError: the file is not ONNX.

    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own errors differ between its backends
        raise TlcError(f"{path} is not an ONNX file.", hint="Give a file that an exporter wrote.") from error
    props = {prop.key: prop.value for prop in model.metadata_props}
    recorded = props.get(_PREPROCESS)
    return Preprocess.model_validate_json(recorded) if recorded else None, tuple(json.loads(props.get(_CLASSES, "[]")))
