"""Weights of a TorchScript archive, read as data: none of its code is compiled or run."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, TypeAlias

import torch

from tlc.compress.pickles import Record, broken, foreign, record_class
from tlc.compress.skeleton import join

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

_Flat: TypeAlias = torch.Tensor


def read_scripted(path: Path) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by dotted name; TlcError for a damaged file or one that names other classes."""
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("constants.pkl")).removesuffix("constants.pkl")
        reader = _Reader(archive, root)
        try:
            top = reader.load()
        except _ForeignError as error:
            raise foreign(path, [str(error)]) from error
        except Exception as error:  # the reader of a hostile file may fail in any way
            raise broken(path, f"its data.pkl: {type(error).__name__} {error}") from error
    found: dict[str, torch.Tensor] = {}
    _collect(top, "", found)
    return found


def _collect(value: object, path: str, found: dict[str, torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        found[path] = value
    elif isinstance(value, Record) and isinstance(value.state, dict):
        for key, inner in value.state.items():
            _collect(inner, join(path, str(key)), found)


class _ForeignError(Exception):
    """A global that is not on the list."""


class _Reader(pickle.Unpickler):
    """Python's unpickler restricted to records and tensors: find_class never imports (see "Restricting Globals")."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        """Return an inert stand-in for `module.name`; _ForeignError for what is not on the list."""
        if module.split(".")[0] == "__torch__":
            return record_class(f"{module}.{name}")
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda flat, offset, size, stride, *_: _strided(flat, offset, size, stride)
        if module == "torch.jit._pickle" and name in ("build_intlist", "build_doublelist", "build_boollist"):
            return lambda items: list(items)
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return lambda value, _tag: value
        if (module, name) == ("collections", "OrderedDict"):
            return lambda *_: {}
        raise _ForeignError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Flat:
        """Return the storage ("storage", type, key, device, count) as a flat tensor."""
        _kind, storage, key, _device, _count = pid
        data = self._archive.read(f"{self._root}data/{int(key)}")
        return (
            torch.frombuffer(bytearray(data), dtype=_DTYPES[storage])
            if data
            else torch.empty(0, dtype=_DTYPES[storage])
        )


def _strided(flat: _Flat, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    return flat.as_strided(tuple(size), tuple(stride), int(offset))
