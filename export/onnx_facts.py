"""What the engine builder asks of an ONNX file, without the onnx package, which devices do not have.

Inputs and outputs come from ONNX Runtime. The rest is read from the file itself: protobuf's wire format
(https://protobuf.dev/programming-guides/encoding/) with the field numbers of onnx.proto.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tlc.runtime.artifact import sha256_file
from tlc.runtime.session import OrtSession
from tlc.runtime.tensor import TensorSpec

_MODEL_GRAPH, _MODEL_METADATA, _GRAPH_NODE, _GRAPH_INITIALIZER = 7, 14, 1, 5
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_NODE_NAME, _NODE_OP_TYPE = 3, 4
_TENSOR_DATA_TYPE, _FLOAT16 = 2, 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class OnnxFacts:
    """An ONNX file as a builder sees it."""

    path: Path
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    op_types: Counter[str]
    node_names: tuple[str, ...]
    """In the file's order, which is the parser's numbering; "" where a node has none."""
    has_float16: bool
    """Whether constants are float16, as in a file that was converted."""
    longest_text: int | None
    """Most tokens of a text, where the file takes texts and says so."""
    preprocess: str | None
    classes: tuple[str, ...]

    @property
    def is_quantized(self) -> bool:
        """Whether it has QuantizeLinear or DequantizeLinear."""
        return "QuantizeLinear" in self.op_types or "DequantizeLinear" in self.op_types


def read_onnx_facts(path: Path) -> OnnxFacts:
    """Return the facts of the file. Raises TlcError when it is missing or ONNX Runtime cannot load it."""
    with OrtSession(path) as session:
        inputs, outputs = session.inputs, session.outputs
    ops: Counter[str] = Counter()
    names: list[str] = []
    has_float16 = False
    metadata: dict[str, str] = {}
    for number, value in _fields(memoryview(path.read_bytes())):
        if number == _MODEL_METADATA:
            entry = _texts(value)
            metadata[entry.get(_ENTRY_KEY, "")] = entry.get(_ENTRY_VALUE, "")
        for part, content in _fields(_message(value)) if number == _MODEL_GRAPH else ():
            if part == _GRAPH_NODE:
                node = _texts(content)
                ops[node.get(_NODE_OP_TYPE, "")] += 1
                names.append(node.get(_NODE_NAME, ""))
            elif part == _GRAPH_INITIALIZER:
                has_float16 |= (_TENSOR_DATA_TYPE, _FLOAT16) in _fields(_message(content))
    return OnnxFacts(
        path=path,
        sha256=sha256_file(path),
        inputs=inputs,
        outputs=outputs,
        op_types=ops,
        node_names=tuple(names),
        has_float16=has_float16,
        preprocess=metadata.get("tlc.preprocess"),
        longest_text=json.loads(metadata.get("tlc.preprocess", "{}")).get("max_length"),
        classes=tuple(json.loads(metadata.get("tlc.classes", "[]"))),
    )


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs: not an ONNX file")
    return value


def _texts(value: memoryview | int) -> dict[int, str]:
    """Return the wanted strings of a small message by field number."""
    wanted = (_ENTRY_KEY, _ENTRY_VALUE, _NODE_NAME, _NODE_OP_TYPE)
    texts = ((number, text) for number, text in _fields(_message(value)) if number in wanted)
    return {number: bytes(text).decode(errors="replace") for number, text in texts if not isinstance(text, int)}


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield (field number, value) of one message; a value is a number, or the bytes of a string or message."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == _VARINT:
            value, place = _varint(data, place)
            yield key >> 3, value
        elif kind == _BYTES:
            size, place = _varint(data, place)
            yield key >> 3, data[place : place + size]
            place += size
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {place}: not a protobuf message")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
