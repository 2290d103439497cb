"""Prepared pixels are the same from memory, from disk and decoded anew, and a damaged cache is made again."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tlc.calibration import cache as cache_module
from tlc.calibration.augment import Augment, draw_views
from tlc.calibration.cache import Pixels, prepare
from tlc.calibration.data import ImageSet, read_data
from tlc.calibration.preprocess import Preprocess
from tlc.runtime.errors import TlcError

Make = Callable[[Mapping[str, int]], Path]
Encode = Callable[..., bytes]

PREPROCESS = Preprocess(size=(8, 8), resize=10, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture
def images(make: Make) -> ImageSet:
    return read_data(make({"ant": 10, "bee": 10})).fit


@pytest.fixture
def ragged(make: Make, encode: Encode) -> ImageSet:
    root = make({"train/ant": 4, "train/bee": 4, "val/ant": 2, "val/bee": 2})
    (root / "val/ant/wide.jpg").write_bytes(encode(1, (300, 200), "JPEG"))
    (root / "val/bee/tall.jpg").write_bytes(encode(2, (70, 90), "JPEG"))
    return read_data(root).evaluation


def decoded_one_by_one(images: ImageSet, preprocess: Preprocess = PREPROCESS) -> NDArray[np.float32]:
    inputs = []
    for index in range(len(images)):
        image = images.image(index)
        assert isinstance(image, Image.Image)
        inputs.append(preprocess(image)[0])
    return np.stack(inputs)


@pytest.mark.parametrize("which", ["images", "ragged"])
@pytest.mark.parametrize("where", ["memory", "disk", "nowhere"])
def test_a_batch_is_what_preprocessing_gives_image_by_image(
    which: str, where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    images: ImageSet = request.getfixturevalue(which)
    pixels = prepare(
        images,
        PREPROCESS,
        cache=tmp_path / "cache" if where == "disk" else None,
        memory_limit_bytes=0 if where == "nowhere" else 1 << 20,
    )
    assert (pixels.store is None) == (where == "nowhere")
    wanted = decoded_one_by_one(images)
    np.testing.assert_array_equal(pixels.batch(np.arange(len(images))), wanted)
    np.testing.assert_array_equal(pixels.batch([3, 0, 3]), wanted[[3, 0, 3]])


@pytest.mark.parametrize("which", ["images", "ragged"])
def test_augmented_views_do_not_depend_on_where_pixels_are_kept(which: str, request: pytest.FixtureRequest) -> None:
    images: ImageSet = request.getfixturevalue(which)
    views = draw_views(Augment(crop="resized", color=0.2), len(images), seed=0, view=0)
    kept, anew = (prepare(images, PREPROCESS, memory_limit_bytes=limit) for limit in (1 << 20, 0))
    indices = np.array([2, 4, 1])
    np.testing.assert_array_equal(kept.augmented(indices, views), anew.augmented(indices, views))


def test_iterating_gives_every_sample_once_in_order(images: ImageSet) -> None:
    pixels = prepare(images, PREPROCESS)
    batches = list(pixels.iterate(5))
    assert [len(labels) for _, labels in batches] == [5, 5, 3]
    assert len(pixels) == 13
    np.testing.assert_array_equal(np.concatenate([inputs for inputs, _ in batches]), decoded_one_by_one(images))
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), images.labels)


def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the images that are decoded or resized from here on."""
    calls: list[int] = []
    real = cache_module._resized

    def counting(images: ImageSet, preprocess: Preprocess, index: int) -> NDArray[np.generic]:
        calls.append(index)
        return real(images, preprocess, index)

    monkeypatch.setattr(cache_module, "_resized", counting)
    return calls


def files(cache: Path) -> list[str]:
    return sorted(path.suffix for path in cache.iterdir())


def test_the_cache_is_reused(images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(images, PREPROCESS, cache=tmp_path / "cache")
    calls = decodings(monkeypatch)
    second = prepare(images, PREPROCESS, cache=tmp_path / "cache")
    assert calls == []
    assert files(tmp_path / "cache") == [".bin", ".json"]
    np.testing.assert_array_equal(first.batch(range(13)), second.batch(range(13)))


def test_mean_and_crop_do_not_need_another_cache_but_resizing_does(images: ImageSet, tmp_path: Path) -> None:
    prepare(images, PREPROCESS, cache=tmp_path / "cache")
    prepare(images, PREPROCESS.model_copy(update={"mean": (0.0, 0.0, 0.0), "size": (4, 4)}), cache=tmp_path / "cache")
    assert len(files(tmp_path / "cache")) == 2
    prepare(images, PREPROCESS.model_copy(update={"resize": 9}), cache=tmp_path / "cache")
    prepare(images, PREPROCESS.model_copy(update={"interpolation": "bicubic"}), cache=tmp_path / "cache")
    prepare(images.subset([1, 2]), PREPROCESS, cache=tmp_path / "cache")
    assert len(files(tmp_path / "cache")) == 8


@pytest.mark.parametrize("damage", ["truncate", "flip", "lengthen", "empty", "no note", "bad note"])
def test_a_damaged_cache_is_made_again(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    wanted = prepare(images, PREPROCESS).batch(range(13))
    prepare(images, PREPROCESS, cache=tmp_path / "cache")
    path = next((tmp_path / "cache").glob("*.bin"))
    data = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "flip":
        path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    elif damage == "lengthen":
        path.write_bytes(data + b"0")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no note":
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".json").write_text("[1")
    calls = decodings(monkeypatch)
    again = prepare(images, PREPROCESS, cache=tmp_path / "cache")
    assert sorted(calls) == list(range(13))
    assert path.read_bytes() == data
    np.testing.assert_array_equal(again.batch(range(13)), wanted)


def test_a_full_disk_is_found_before_decoding(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    calls = decodings(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(TlcError, match="not enough disk space"):
        prepare(images, PREPROCESS, cache=tmp_path / "cache")
    assert calls == []


def test_small_images_are_decoded_only_when_they_are_checked(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make({"ant": 5, "bee": 5})
    images = read_data(root).fit
    for path in root.rglob("*.png"):
        path.unlink()
    assert prepare(images, PREPROCESS).batch([0]).shape == (1, 3, 8, 8)


def test_an_image_that_grows_too_large_by_resizing_is_named(make: Make) -> None:
    root = make({"ant": 4, "bee": 4})
    Image.new("RGB", (5000, 1)).save(root / "bee/line.png")
    images = read_data(root)
    wide = next(part for part in (images.fit, images.holdout, images.evaluation) if "bee/line.png" in part.keys)
    with pytest.raises(TlcError, match=r"bee/line.png has 320,045,000 pixels after resizing, the limit is 90,000,000"):
        prepare(wide, Preprocess(size=(224, 224), resize=253, mean=(0.5,) * 3, std=(0.5,) * 3))


def floats(tmp_path: Path, channels: int) -> Pixels:
    values = np.random.default_rng(0).normal(size=(12, 8, 8, channels)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=values, y=np.arange(12) % 2)
    evaluation = read_data(tmp_path / "data.npz").evaluation
    preprocess = Preprocess(size=(8, 8), resize=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = prepare(evaluation, preprocess, cache=tmp_path / "cache")
    rows = [int(key[2:-1]) for key in evaluation.keys]
    wanted = np.broadcast_to(values[rows].transpose(0, 3, 1, 2), (len(rows), 3, 8, 8))
    np.testing.assert_array_equal(pixels.batch(np.arange(len(pixels))), wanted)
    return pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_floating_arrays_reach_the_model_unchanged(tmp_path: Path, channels: int) -> None:
    floats(tmp_path, channels)


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
def test_floating_arrays_can_be_augmented_but_not_in_colour(tmp_path: Path, crop: str) -> None:
    pixels = floats(tmp_path, 3)
    plain = Augment.model_validate({"crop": crop})
    assert pixels.augmented([0, 1], draw_views(plain, len(pixels), seed=0, view=0)).shape == (2, 3, 8, 8)
    with pytest.raises(TlcError, match="colour augmentation needs 8-bit images"):
        pixels.augmented([0], draw_views(plain.model_copy(update={"color": 0.1}), len(pixels), seed=0, view=0))


def test_gray_models_get_one_channel(images: ImageSet) -> None:
    gray = Preprocess(size=(8, 8), resize=10, mean=(0.5,), std=(0.5,), channels="gray")
    pixels = prepare(images, gray)
    assert pixels.batch([0, 1]).shape == (2, 1, 8, 8)
    for crop in ("pad", "resized", "none"):
        views = draw_views(Augment(crop=crop, color=0.1), 13, seed=0, view=0)
        assert pixels.augmented([0, 1], views).shape == (2, 1, 8, 8)


@pytest.mark.assets
def test_real_photographs_equal_torchvision(assets: Path) -> None:
    import torch
    from torchvision import transforms

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    evaluation = read_data(assets / "ants-bees/images.zip").evaluation.subset(range(0, 153, 12))
    ours = prepare(evaluation, Preprocess(size=(224, 224), resize=250, mean=mean, std=std)).batch(
        np.arange(len(evaluation))
    )
    steps = [transforms.Resize(250), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(mean, std)]
    theirs = torch.stack([transforms.Compose(steps)(evaluation.image(i)) for i in range(len(evaluation))])
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-6)
