"""What a device needs to feed a file, written into the file: preprocessing and class names."""

import json
from pathlib import Path
from typing import TypeAlias

import onnx
from pydantic import TypeAdapter

from tlc.calibration.preprocess import Preprocess
from tlc.calibration.token_set import TextInput
from tlc.runtime.artifact import write_bytes
from tlc.runtime.errors import TlcError

_FED = "tlc.preprocess"
_CLASSES = "tlc.classes"

Fed: TypeAlias = Preprocess | TextInput
"""What a sample goes through before the network."""
_ANY_FED: TypeAdapter[Fed] = TypeAdapter(Fed)


def write_metadata(source: Path, path: Path, fed: Fed, classes: tuple[str, ...]) -> None:
    """Write `source` to `path` with what feeds it and its class names as ONNX metadata; the same bytes every time."""
    model = onnx.load(source)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {_CLASSES: json.dumps(classes, ensure_ascii=False), _FED: fed.model_dump_json()})
    write_bytes(path, model.SerializeToString(deterministic=True))


def read_metadata(path: Path) -> tuple[Fed | None, tuple[str, ...]]:
    """Return what feeds the file and its class names, as `write_metadata` wrote them; None and () if it did not.

    Raises:
        TlcError: the file is not ONNX.

    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own errors differ between its backends
        raise TlcError(f"{path} is not an ONNX file.", hint="Give a file that an exporter wrote.") from error
    props = {prop.key: prop.value for prop in model.metadata_props}
    return fed_of(model), tuple(json.loads(props.get(_CLASSES, "[]")))


def fed_of(model: onnx.ModelProto) -> Fed | None:
    """Return what feeds the model, as `write_metadata` wrote it; None if it did not."""
    return fed_from_json(next((prop.value for prop in model.metadata_props if prop.key == _FED), None))


def fed_from_json(text: str | None) -> Fed | None:
    """Return what feeds a file, from its record as JSON; None for None."""
    return None if text is None else _ANY_FED.validate_json(text)
