"""Data sets in one `.npz` file of arrays."""

import hashlib
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlc.calibration.images import ArrayReader, ImageSet
from tlc.runtime.errors import TlcError

_LAYOUT_HINT = (
    "Save numpy.savez(FILE, x_train=..., y_train=..., x_val=..., y_val=...) or (FILE, x=..., y=...): x uint8 or "
    "float32 (N, H, W) or (N, H, W, C), y integers (N,), optionally classes=[names]."
)


def read_arrays(path: Path, *, classes: tuple[str, ...]) -> tuple[ImageSet, ImageSet | None]:
    """Return the train and evaluation splits of an `.npz`; evaluation is None where the file holds one split.

    x is uint8 in [0, 255] or float32, which is used as it is (not divided by 255): (N, H, W) or (N, H, W, C) with
    C = 1 or 3, channels last. y holds integers (N,). `classes`, the model's names, serve where the file has none.
    """
    arrays = _load(path)
    names = _class_names(path, arrays)
    parts = _parts(path, arrays)
    highest = max(int(y.max()) for _, _, y in parts if y.size)
    names = names or classes or tuple(str(label) for label in range(highest + 1))
    sets = [_image_set(path, key, x, y, names) for key, x, y in parts]
    return sets[0], sets[1] if len(sets) == 2 else None


def _load(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise TlcError(f"{path} holds a single array", hint=_LAYOUT_HINT)
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise TlcError(f"{path} is not a readable .npz file: {error}", hint=_LAYOUT_HINT) from error


def _class_names(path: Path, arrays: dict[str, NDArray[np.generic]]) -> tuple[str, ...]:
    if "classes" not in arrays:
        return ()
    names = arrays["classes"]
    if names.ndim != 1 or names.dtype.kind != "U" or len(set(names.tolist())) != len(names):
        raise TlcError(
            f"{path}: classes must be a list of different names, got {names.dtype} {names.shape}", hint=_LAYOUT_HINT
        )
    return tuple(str(name) for name in names)


def _parts(
    path: Path, arrays: dict[str, NDArray[np.generic]]
) -> list[tuple[str, NDArray[np.generic], NDArray[np.int64]]]:
    if {"x", "y"} <= arrays.keys():
        keys = [("x", "y")]
    elif {"x_train", "y_train"} <= arrays.keys() and (
        part := next((p for p in ("val", "test") if {f"x_{p}", f"y_{p}"} <= arrays.keys()), None)
    ):
        keys = [("x_train", "y_train"), (f"x_{part}", f"y_{part}")]
    else:
        raise TlcError(f"{path} holds {', '.join(sorted(arrays)) or 'no arrays'}, not a data set", hint=_LAYOUT_HINT)
    return [(x, _pixels(path, x, arrays[x]), _labels(path, y, arrays[y], len(arrays[x]))) for x, y in keys]


def _pixels(path: Path, key: str, x: NDArray[np.generic]) -> NDArray[np.generic]:
    if x.dtype not in (np.uint8, np.float32):
        raise TlcError(
            f"{path}: {key} is {x.dtype}", hint="Convert it: uint8 for 0 to 255, float32 for values as they are."
        )
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[3] not in (1, 3):
        first = " It looks channels first: transpose(0, 2, 3, 1) it." if x.ndim == 4 and x.shape[1] in (1, 3) else ""
        raise TlcError(
            f"{path}: {key} has shape {x.shape}; (N, H, W) or (N, H, W, C) with 1 or 3 channels is needed",
            hint=f"Channels are last.{first}",
        )
    if 0 in x.shape:
        raise TlcError(f"{path}: {key} is empty, shape {x.shape}", hint=_LAYOUT_HINT)
    if x.dtype == np.float32 and not np.isfinite(x).all():
        bad = np.flatnonzero(~np.isfinite(x).all(axis=(1, 2, 3)))
        raise TlcError(
            f"{path}: {key} holds NaN or infinity in {len(bad)} of {len(x)} samples, first at [{bad[0]}]",
            hint="Remove or repair those samples.",
        )
    return x


def _labels(path: Path, key: str, y: NDArray[np.generic], count: int) -> NDArray[np.int64]:
    if y.dtype.kind not in "iu":
        raise TlcError(f"{path}: {key} is {y.dtype}; labels are integers", hint="Convert it with astype('int64').")
    if y.ndim != 1:
        raise TlcError(f"{path}: {key} has shape {y.shape}; (N,) is needed", hint="Use one class number per sample.")
    if len(y) != count:
        raise TlcError(f"{path}: {key} has {len(y)} labels for {count} samples", hint="Give one label per sample.")
    return y.astype(np.int64)


def _image_set(
    path: Path, key: str, x: NDArray[np.generic], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> ImageSet:
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        raise TlcError(
            f"{path}: label {labels[outside[0]]} of {key}[{outside[0]}] is outside 0 to {len(classes) - 1} "
            f"({len(outside)} of {len(labels)} samples)",
            hint="Number the classes from 0, and name all of them in `classes`.",
        )
    x = np.ascontiguousarray(x)
    return ImageSet(
        classes=classes,
        labels=labels,
        keys=tuple(f"{key}[{row}]" for row in range(len(x))),
        digests=tuple(hashlib.sha256(sample.data).hexdigest() for sample in x),
        sizes=np.tile(np.array([[x.shape[2], x.shape[1]]], np.int64), (len(x), 1)),
        reader=ArrayReader(x),
        rows=np.arange(len(x)),
        floating=x.dtype == np.float32,
    )
