"""Pictures become the same input in tlc-run as in Python: bit for bit."""

import io
import json
import struct
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from native_build import built
from numpy.typing import NDArray
from PIL import Image

from tlc.calibration.images import decode
from tlc.calibration.preprocess import Preprocess

RGB = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
GRAY = {"mean": (0.1307,), "std": (0.3081,), "channels": "gray"}
PLAIN = Preprocess(size=(24, 40), resize=None, **RGB)

Filter = Literal["nearest", "bilinear", "bicubic", "lanczos"]


class Probe:
    """The program that preprocesses pictures as tlc-run does."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, preprocess: Preprocess, picture: bytes) -> NDArray[np.float32] | str:
        """Return the model's input, or the error."""
        assert self._process.stdin
        assert self._process.stdout
        source, out = self._folder / "picture", self._folder / "out.npy"
        source.write_bytes(picture)
        record = json.dumps({"kind": "image", **preprocess.model_dump(mode="json")})
        print(record, source, out, sep="\t", file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().strip()
        if answer != "ok":
            return answer
        values: NDArray[np.float32] = np.load(out)
        return values

    def close(self) -> None:
        """End the program, which must not have crashed."""
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    probe = Probe(built("tlc_preprocess_probe"), tmp_path_factory.mktemp("pictures"))
    yield probe
    probe.close()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Return pixels (height, width, channels) with hard edges, where filters overshoot."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, channels), np.uint8)
    return np.where(rng.random((height, width, 1)) < 0.3, np.uint8(255) * (pixels > 127), pixels).astype(np.uint8)


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a smooth picture with some texture, as JPEG is made for."""
    small = Image.fromarray(noise(max(2, width // 8), max(2, height // 8), seed=seed))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grain = np.random.default_rng(seed).integers(-12, 13, smooth.shape)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def assert_same(probe: Probe, preprocess: Preprocess, picture: bytes) -> None:
    expected = preprocess(decode(picture))
    found = probe.ask(preprocess, picture)
    assert not isinstance(found, str), found
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.array_equal(found, expected), f"{preprocess}: {np.abs(found - expected).max()} apart"


def draw(rng: np.random.Generator, interpolation: Filter) -> tuple[Preprocess, int, int]:
    """Return a random record and the size of a picture: smaller, larger, of other proportions, odd and even."""
    width, height = (int(side) for side in rng.integers(1, 90, 2))
    size = tuple(int(side) for side in rng.integers(1, 70, 2))
    resize = [None, int(rng.integers(1, 100)), tuple(int(side) for side in rng.integers(1, 100, 2))][rng.integers(3)]
    channels = ["rgb", "bgr", "gray"][rng.integers(3)]
    count = 1 if channels == "gray" else 3
    mean, std = rng.uniform(0, 1, count), rng.uniform(0.05, 1, count)
    record = {"size": size, "resize": resize, "interpolation": interpolation, "channels": channels}
    return Preprocess.model_validate({**record, "mean": tuple(mean), "std": tuple(std)}), width, height


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_any_size_gives_the_bits_of_python(probe: Probe, interpolation: Filter) -> None:
    rng = np.random.default_rng(7)
    for seed in range(120):
        preprocess, width, height = draw(rng, interpolation)
        if min(width, height) * 200 < max(width, height) * 3:
            continue  # a thread of pixels scaled to thousands: slow, and another test's
        assert_same(probe, preprocess, encoded(Image.fromarray(noise(width, height, seed=seed))))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "lanczos"])
@pytest.mark.parametrize(("width", "height"), [(3, 700), (700, 3), (1, 101), (2, 201)])
def test_threads_of_pixels_too(probe: Probe, interpolation: Filter, width: int, height: int) -> None:
    picture = encoded(Image.fromarray(noise(width, height)))
    for size in ((20, 20), (height // 3, width * 3), (2 * height, max(1, width // 2))):
        assert_same(probe, Preprocess(size=(16, 16), resize=size, interpolation=interpolation, **RGB), picture)


def test_a_photograph_as_classifiers_take_it(probe: Probe) -> None:
    preprocess = Preprocess(size=(224, 224), resize=256, **RGB)
    for quality in (30, 75, 95):
        assert_same(probe, preprocess, encoded(photograph(640, 427), "JPEG", quality=quality))


def png_of(bit_depth: int, color_type: int) -> bytes:
    """Return a PNG of 37 x 21 pixels of noise in a format that Pillow reads but does not write, with all filters."""
    rng = np.random.default_rng(bit_depth * 10 + color_type)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    row_bytes = (37 * samples * bit_depth + 7) // 8
    rows = rng.integers(0, 256, (21, row_bytes), np.uint8)
    if color_type == 0 and bit_depth == 16:
        rows[:, 0:30:2] = 0  # so that some values are below 256

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 37, 21, bit_depth, color_type, 0, 0, 0)
    # Filtering bytes of noise gives other noise: every type of filter is undone, whatever was meant.
    lines = b"".join(bytes([number % 5]) + row.tobytes() for number, row in enumerate(rows))
    palette = chunk(b"PLTE", rng.integers(0, 256, 3 << bit_depth, np.uint8).tobytes()) if color_type == 3 else b""
    alpha = chunk(b"tRNS", bytes(range(1 << bit_depth))) if color_type == 3 else b""
    data = chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + alpha + data + chunk(b"IEND", b"")


PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits a sample, by colour type: PNG specification, section 11.2.1."""


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize(
    ("bit_depth", "color_type"),
    [(depth, color) for color, depths in PNG_DEPTHS.items() for depth in depths],
)
def test_every_kind_of_png(probe: Probe, bit_depth: int, color_type: int) -> None:
    picture = png_of(bit_depth, color_type)
    for preprocess in (PLAIN, Preprocess(size=(24, 40), resize=None, **GRAY)):
        assert_same(probe, preprocess, picture)


def test_a_palette_that_is_too_short_is_black_beyond(probe: Probe) -> None:
    image = Image.fromarray(noise(40, 24, 1)[:, :, 0] % 8, "L")
    image.putpalette([200, 100, 50, 1, 2, 3])
    assert_same(probe, PLAIN, encoded(image, bits=8))


JPEGS: Sequence[tuple[str, dict[str, Any]]] = [
    ("RGB", {}),
    ("RGB", {"progressive": True}),
    ("RGB", {"subsampling": 0}),
    ("RGB", {"subsampling": 1}),
    ("RGB", {"subsampling": 2, "quality": 20}),
    ("RGB", {"keep_rgb": True}),
    ("RGB", {"restart_marker_blocks": 3}),
    ("RGB", {"optimize": True, "quality": 100}),
    ("L", {}),
    ("L", {"progressive": True}),
    ("CMYK", {}),
    ("CMYK", {"progressive": True, "quality": 40}),
]


@pytest.mark.parametrize(("mode", "options"), JPEGS, ids=[f"{mode}-{'-'.join(kind)}" for mode, kind in JPEGS])
def test_every_kind_of_jpeg(probe: Probe, mode: str, options: dict[str, Any]) -> None:
    for width, height in ((40, 24), (33, 17), (1, 1)):
        picture = encoded(photograph(width, height).convert(mode), "JPEG", **options)
        for preprocess in (PLAIN, Preprocess(size=(24, 40), resize=None, **GRAY)):
            assert_same(probe, preprocess, picture)


def test_the_orientation_that_a_camera_noted_is_not_applied(probe: Probe) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert_same(probe, PLAIN, encoded(photograph(40, 24), "JPEG", exif=exif))


def test_a_cut_picture_is_refused_wherever_python_refuses_it(probe: Probe) -> None:
    image = photograph(48, 40)
    for picture in (encoded(image, "JPEG"), encoded(image, "JPEG", progressive=True), encoded(image)):
        refused = 0
        for length in range(0, len(picture), max(1, len(picture) // 40)):
            found = probe.ask(PLAIN, picture[:length])
            try:
                expected = PLAIN(decode(picture[:length]))
            except OSError:
                refused += 1
                assert isinstance(found, str), f"{length} of {len(picture)} bytes are taken for a picture"
                assert found.startswith("error: ")
            else:
                assert not isinstance(found, str), found
                assert np.array_equal(found, expected)
        assert refused > 30


def test_damage_is_an_error_or_a_picture_and_never_a_crash(probe: Probe) -> None:
    rng = np.random.default_rng(3)
    answers = []
    for picture in (
        encoded(photograph(48, 40), "JPEG"),
        encoded(photograph(48, 40), "JPEG", progressive=True),
        png_of(8, 2),
    ):
        for _ in range(100):
            damaged = bytearray(picture)
            for position in rng.integers(0, len(damaged), 4):
                damaged[position] = rng.integers(256)
            answers.append(probe.ask(PLAIN, bytes(damaged)))
    assert any(isinstance(answer, str) for answer in answers)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (b"", "an empty file, not a picture"),
        (b"GIF89a", "neither a JPEG nor a PNG picture"),
        (b"\xff\xd8\xff", "not a whole JPEG picture: the file is cut short"),
        (b"\x89PNG\r\n\x1a\n", "not a whole PNG picture: the file is cut short"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(probe: Probe, picture: bytes, message: str) -> None:
    answer = probe.ask(PLAIN, picture)
    assert isinstance(answer, str)
    assert message in answer


def test_a_picture_that_would_fill_the_memory_is_refused(probe: Probe) -> None:
    wide = probe.ask(PLAIN, encoded(Image.new("1", (90_001, 1_000))))
    assert isinstance(wide, str)
    assert "a PNG picture of 90001 x 1000 pixels; the limit is 90000000" in wide

    thread = probe.ask(Preprocess(size=(8, 8), resize=256, **RGB), encoded(Image.new("RGB", (1, 2000))))
    assert isinstance(thread, str)
    assert "would be resized to 256 x 512000; the limit is 90000000 pixels" in thread


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [0, 8]}, "fed: size must be from 1 to 65536 pixels, got 0"),
        ({"size": [8]}, "fed: size must be [height, width], got 1 numbers"),
        ({"resize": [8, 8, 8]}, "fed: resize must be [height, width], got 3 numbers"),
        ({"interpolation": "box"}, "interpolation must be one of nearest, bilinear, bicubic, lanczos, got 'box'"),
        ({"channels": "rgba"}, "channels must be one of rgb, bgr, gray, got 'rgba'"),
        ({"mean": [0.5]}, "fed: mean must have 3 numbers, got 1"),
        ({"std": [0.5, 0.5, 0]}, "fed: std must be above 0"),
        ({"kind": "text"}, "fed: kind must be image, got 'text'"),
    ],
)
def test_a_record_that_python_would_not_write_is_refused(
    probe: Probe, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"kind": "image", **PLAIN.model_dump(mode="json"), **change}
    monkeypatch.setattr(Preprocess, "model_dump", lambda *_args, **_options: record)
    answer = probe.ask(PLAIN, b"")
    assert isinstance(answer, str)
    assert message in answer
