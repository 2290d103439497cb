"""Write what the fuzz targets start from: make_corpus.py FOLDER. The files are committed as tests/native/corpus."""

import hashlib
import io
import json
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def npy(array: NDArray[np.generic]) -> bytes:
    """Return the array as a file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    """Return a zip that holds the members as they are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


def picture(mode: str, kind: str, **options: object) -> bytes:
    """Return a picture of 13x9 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(file, kind, **options)
    return file.getvalue()


def png_of(bits: int, colour: int, samples: int) -> bytes:
    """Return a PNG of 5x4 pixels of a kind that Pillow does not write."""
    row = (5 * bits * samples + 7) // 8
    data = b"".join(b"\0" + bytes(range(y, y + row)) for y in range(4))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 5, 4, bits, colour, 0, 0, 0)), (b"IDAT", zlib.compress(data))]
    out = b"\x89PNG\r\n\x1a\n"
    for name, content in [*chunks, (b"IEND", b"")]:
        out += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return out


def bundle_members() -> dict[str, bytes]:
    """Return what fuzz_manifest.cc puts into a bundle beside the manifest."""
    # Laid out as npy_bytes of runtime/native/npy.cc does.
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }".ljust(117) + b"\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(12)
    return {"golden/0/input-0.npy": array, "golden/0/output-0.npy": array, "model.onnx": b"model"}


def manifest() -> bytes:
    """Return the manifest of a bundle with those members."""
    record = {
        "format": "tlc-bundle",
        "version": 1,
        "name": "net",
        "target": {"name": "cpu-x86", "runtime": "onnxruntime", "threads": 1},
        "precision": "int8",
        "model": "model.onnx",
        "reference": None,
        "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [-1, 3]}],
        "fed": {
            "kind": "image",
            "size": [2, 2],
            "resize": [3, 3],
            "interpolation": "bilinear",
            "mean": [0.5],
            "std": [0.25],
            "channels": "gray",
        },
        "classes": ["cat", "dog"],
        "golden": {
            "source": "noise",
            "min_snr_db": 20.0,
            "samples": [{"image": None, "inputs": ["golden/0/input-0.npy"], "outputs": ["golden/0/output-0.npy"]}],
        },
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
            for name, content in bundle_members().items()
        },
    }
    return json.dumps(record).encode()


def corpus() -> dict[str, bytes]:
    """Return each file by its path."""
    members = {"a.npy": npy(np.arange(6, dtype=np.uint8).reshape(2, 3)), "classes.npy": npy(np.array(["cat", "dog"]))}
    savez = io.BytesIO()
    np.savez(savez, x=np.zeros((2, 2), np.uint8))
    record: dict[str, object] = {
        "onnx": "m.onnx",
        "target": "jetson-orin",
        "plan_sha256": "0" * 64,
        "tensorrt": "10.3.0.26",
        "sm": "8.7",
    }
    record |= {"gpu": "Orin", "version_compatible": False, "hardware_compatible": True, "stripped": False}
    return {
        "json/values.json": b'{"a": [1, -2.5e-3, true, false, null], "b": {"c": "x\\u00e9\\ud83d\\ude00\\n"}, "e": []}',
        "json/text.json": '"\u00e9\u20ac\U0001f600"'.encode(),
        "manifest/good.json": manifest(),
        "npy/float.npy": npy(np.ones((1, 2, 3), np.float32)),
        "npy/scalar.npy": npy(np.array(True)),
        "npy/names.npy": members["classes.npy"],
        "zip/members.zip": zipped(members),
        "zip/savez.npz": savez.getvalue(),
        "plan/header.plan": b"ftrt" + bytes(20) + bytes([10, 3, 0, 26]) + bytes(16),
        "plan/record.json": json.dumps(record).encode(),
        "image/rgb.png": picture("RGB", "PNG"),
        "image/palette.png": picture("P", "PNG"),
        "image/alpha.png": picture("RGBA", "PNG"),
        "image/gray_alpha.png": picture("LA", "PNG"),
        "image/bits_1.png": picture("1", "PNG"),
        "image/bits_4.png": png_of(4, 0, 1),
        "image/bits_16.png": png_of(16, 2, 3),
        "image/rgb.jpg": picture("RGB", "JPEG"),
        "image/progressive.jpg": picture("RGB", "JPEG", progressive=True),
        "image/gray.jpg": picture("L", "JPEG"),
        "image/cmyk.jpg": picture("CMYK", "JPEG"),
        "image/whole.jpg": picture("RGB", "JPEG", subsampling=0, quality=100),
    }


def main() -> None:
    """Write the corpus below the folder that the command line names."""
    for name, content in corpus().items():
        path = Path(sys.argv[1]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    main()
