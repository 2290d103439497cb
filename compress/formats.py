"""What kind of file a model is, and its weights, read without running anything of it."""

import io
import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tlc.compress.checkpoint import identity, read_weights
from tlc.compress.pickles import Record, broken, foreign, named_globals, read_pickle
from tlc.compress.skeleton import check_module_state, record_tensors
from tlc.runtime.errors import TlcError

_NESTED = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "params",
    "weights",
    "module",
    "ema",
    "state_dict_ema",
)
"""Where training scripts put the weights, in order of preference."""
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_COUNTERS = ("num_batches_tracked", "total_ops", "total_params", "n_averaged")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of a file as float32, and what was said and done on the way."""

    path: Path
    format: str
    """In words, for people: "PyTorch zip, weights under 'state_dict'"."""
    state: dict[str, torch.Tensor]
    """Parameters and buffers by the file's own names; floating ones float32."""
    dtypes: tuple[str, ...]
    """Of the floating tensors as stored, sorted."""
    record: Record | None = None
    """The module itself if it was saved whole."""
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the weights of a .pt, .pth, .th, .bin, .safetensors, .pt2 or TorchScript file.

    Raises TlcError for what is no such file, is damaged, names foreign classes, or holds NaN or infinite weights.
    """
    head = _head(path)
    if zipfile.is_zipfile(path):
        return _read_zip(path)
    if head.startswith(b"PK"):
        raise broken(path, "the zip archive has no end: it was cut off")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _checkpoint(path, "safetensors", read_weights(path))
    if head.startswith(b"\x80"):
        return _read_pickled(path, "PyTorch legacy pickle" if _is_legacy(head) else "Python pickle")
    raise TlcError(
        f"{path} is {_other_kind(head)}, not a PyTorch model",
        hint="Give the file that torch.save wrote, or a .safetensors.",
    )


def _head(path: Path) -> bytes:
    if not path.exists():
        raise TlcError(f"there is no file {path}", hint="Check the path.")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise TlcError(f"{path} is empty (0 bytes)", hint="Copy or download it again.")
    return head


def _is_legacy(head: bytes) -> bool:
    return head[2:14] == b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


def _other_kind(head: bytes) -> str:
    known = {
        b"version https://git-lfs": "a Git LFS pointer (the file itself was not fetched)",
        b"\x89HDF": "an HDF5 file (Keras?)",
        b"\x93NUMPY": "a NumPy array",
        b"GGUF": "a GGUF file",
        b"\x1f\x8b": "gzip-compressed",
    }
    for start, kind in known.items():
        if head.startswith(start):
            return kind
    if head.lstrip()[:1] == b"<":
        return "an HTML or XML page"
    return "text" if head.isascii() and head.decode("ascii").isprintable() else "of an unknown format"


def _read_zip(path: Path) -> Checkpoint:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename.partition("/")[2] or entry.filename for entry in entries]
        total = sum(entry.file_size for entry in entries)
    if total > 2 * path.stat().st_size + (1 << 20):
        raise broken(path, f"its archive claims {total:,} bytes, more than twice its size")
    if any(name.startswith("data/weights/") for name in names) or "archive_format" in names:
        return _checkpoint(path, "torch.export archive", _exported_weights(path))
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return _checkpoint(path, "TorchScript archive", _scripted_weights(path))
    if "data.pkl" in names:
        return _read_pickled(path, "PyTorch zip")
    raise TlcError(f"{path} is a zip archive without a PyTorch model in it", hint="Unpack it, and give the model file.")


def _read_pickled(path: Path, kind: str) -> Checkpoint:
    if kind == "Python pickle":
        if names := named_globals(path.read_bytes()):
            raise foreign(path, sorted(names))
        raise TlcError(
            f"{path} is a Python pickle that torch.save did not write",
            hint="Save the model's state_dict with torch.save.",
        )
    content = read_pickle(path)
    record, place = _find_record(content)
    classes = _class_names(content)
    if record is not None:
        record = _unwrapped(record)
        where = f"{kind}, whole module {record.global_name}" + (f" under {place!r}" if place else "")
        return _checkpoint(path, where, dict(record_tensors(record)), record=record, classes=classes)
    state, place, others = _find_state(content, path)
    notes = [f"used the weights under {place!r}; the file also holds {', '.join(map(repr, others))}"] if others else []
    where = f"{kind}, state_dict" + (f" under {place!r}" if place else "")
    return _checkpoint(path, where, state, classes=classes, notes=notes)


def _unwrapped(record: Record) -> Record:
    """Return the network inside DataParallel; TlcError for a record without the state of a module."""
    check_module_state(record, "")
    inner = record.state["_modules"].get("module") if record.global_name.endswith(".DataParallel") else None
    return record if inner is None else _unwrapped(inner)


def _find_record(content: object) -> tuple[Record | None, str]:
    if isinstance(content, Record):
        return content, ""
    if isinstance(content, Mapping):
        for key in _NESTED:
            if isinstance(content.get(key), Record):
                return content[key], key
    return None, ""


def _find_state(content: object, path: Path) -> tuple[dict[str, torch.Tensor], str, list[str]]:
    found = dict(_states(content, "", 3))
    if not found:
        kind = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            kind = (
                f"a dictionary of {', '.join(repr(key) for key in list(content)[:6])}"
                if content
                else "an empty dictionary"
            )
        raise TlcError(f"{path} holds no weights but {kind}", hint="Save model.state_dict() with torch.save.")

    def rank(place: str) -> tuple[int, int]:
        last = place.rpartition(".")[2]
        return (_NESTED.index(last) if last in _NESTED else len(_NESTED)) if place else -1, place.count(".")

    first, *others = sorted(found, key=rank)
    return found[first], first, others


def _states(content: object, place: str, depth: int) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield every dictionary that is mostly named tensors of at least one dimension."""
    if not isinstance(content, Mapping) or depth < 0:
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if any(value.dim() > 0 for value in tensors.values()) and 2 * len(tensors) > len(content):
        yield place, tensors
        return
    for key, value in content.items():
        if isinstance(key, str) and not key.startswith("optim"):
            yield from _states(value, f"{place}.{key}" if place else key, depth - 1)


def _class_names(content: object) -> tuple[str, ...]:
    """Return class names that a training script stored beside the weights, in the order of the outputs."""
    if not isinstance(content, Mapping):
        return ()
    for key in ("classes", "class_names", "names", "class_to_idx"):
        value = content.get(key)
        if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
            return tuple(value)
        if (
            isinstance(value, Mapping)
            and value
            and sorted(value.values(), key=str) == sorted(range(len(value)), key=str)
        ):
            return tuple(str(name) for name in sorted(value, key=lambda name: value[name]))
    return ()


def _checkpoint(
    path: Path,
    kind: str,
    state: Mapping[str, torch.Tensor],
    *,
    record: Record | None = None,
    classes: tuple[str, ...] = (),
    notes: list[str] | None = None,
) -> Checkpoint:
    notes = notes or []
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in state.values() if value.is_floating_point()})
    if others := [dtype for dtype in dtypes if dtype != "float32"]:
        notes = [*notes, f"stored as {', '.join(others)}, used as float32"]
    made: dict[object, torch.Tensor] = {}
    values = {}
    for name, value in state.items():
        # A tensor that stands in two places stays one.
        key = identity(value) if value.layout == torch.strided and not value.is_quantized else id(value)
        if key not in made:
            made[key] = _as_float32(name, value, path)
        values[name] = made[key]
    _check_finite(values, path)
    return Checkpoint(path, kind, values, tuple(dtypes), record, classes, tuple(notes))


def _as_float32(name: str, value: torch.Tensor, path: Path) -> torch.Tensor:
    if value.is_quantized or value.layout != torch.strided or value.is_complex() or value.is_meta:
        what = "quantized" if value.is_quantized else "sparse, complex or without data"
        raise TlcError(f"{path}: {name} is {what}", hint="Give the float model it was made from.")
    stored = value.untyped_storage().nbytes()
    if value.numel() * value.element_size() > 64 * max(stored, 1):
        raise broken(path, f"{name} has shape {tuple(value.shape)}, but only {stored:,} bytes")
    if value.is_floating_point() and value.dtype not in _FLOATS:
        raise TlcError(
            f"{path}: {name} is stored as {value.dtype}", hint="Give the model in float32, float16 or bfloat16."
        )
    value = value.detach().contiguous()
    return value.float() if value.is_floating_point() else value


def _check_finite(state: Mapping[str, torch.Tensor], path: Path) -> None:
    bad = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        shown = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
        message = f"{path}: {len(bad)} of {len(state)} tensors hold NaN or infinite values: {shown}"
        raise TlcError(message, hint="Take an earlier checkpoint: this training diverged.")


def is_counter(name: str) -> bool:
    """Whether a key counts steps or operations (BatchNorm, thop, AveragedModel) and carries no weights."""
    return name.rpartition(".")[2] in _COUNTERS


def _exported_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a torch.export archive without `torch.export.load`, which unpickles and evaluates text.

    Format: data/weights/NAME_weights_config.json maps each name to a file of raw bytes and its meta data.
    """
    with zipfile.ZipFile(path) as archive:
        config = next((name for name in archive.namelist() if name.endswith("weights_config.json")), None)
        try:
            if config is None:
                legacy = next(name for name in archive.namelist() if name.endswith("serialized_state_dict.pt"))
                return dict(torch.load(io.BytesIO(archive.read(legacy)), map_location="cpu", weights_only=True))
            folder = config.rpartition("/")[0]
            entries = json.loads(archive.read(config))["config"]
            return {name: _exported_tensor(archive, folder, entry) for name, entry in entries.items()}
        except (
            StopIteration,
            KeyError,
            ValueError,
            TypeError,
            RuntimeError,
            pickle.UnpicklingError,
            zipfile.BadZipFile,
        ) as error:
            raise broken(path, f"the weights of the torch.export archive: {type(error).__name__} {error}") from error


_SCALAR_TYPES = {
    # torch._export.serde.schema.ScalarType
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip


def _exported_tensor(archive: zipfile.ZipFile, folder: str, entry: dict[str, Any]) -> torch.Tensor:
    data = archive.read(f"{folder}/{entry['path_name']}")
    if entry["use_pickle"]:
        tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{entry['path_name']} is no tensor")
        return tensor
    meta = entry["tensor_meta"]
    sizes, strides = ([item["as_int"] for item in meta[key]] for key in ("sizes", "strides"))
    flat = torch.frombuffer(bytearray(data), dtype=_SCALAR_TYPES[meta["dtype"]]) if data else torch.empty(0)
    return flat.as_strided(sizes, strides, meta["storage_offset"]["as_int"])


def _scripted_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a TorchScript archive; its code is not compiled and not run."""
    from tlc.compress.torchscript import read_scripted

    return read_scripted(path)
