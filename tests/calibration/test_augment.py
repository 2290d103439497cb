"""Augmentation is repeatable, stays inside the image, and does what its name says."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms import functional

from tlc.calibration.augment import Augment, Views, _boxes, augmented_batch, draw_views
from tlc.calibration.preprocess import Preprocess


def small(size: tuple[int, int] = (8, 8)) -> Preprocess:
    return Preprocess(size=size, resize=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def noise(count: int, height: int = 8, width: int = 8) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(1, 256, (count, height, width, 3), dtype=np.uint8)


def views_of(augment: Augment, count: int, **columns: float) -> Views:
    """Return views whose numbers are all 0.5 (no change) but for those named."""
    names = ("top", "left", "scale", "ratio", "flip", "brightness", "contrast", "saturation")
    uniform = np.tile([[columns.get(name, 0.5) for name in names]], (count, 1))
    return Views(augment, uniform)


def test_a_view_is_a_function_of_seed_view_and_sample_alone() -> None:
    augment = Augment(crop="pad")
    views = draw_views(augment, 100, seed=3, view=7)
    np.testing.assert_array_equal(views.uniform, draw_views(augment, 100, seed=3, view=7).uniform)
    np.testing.assert_array_equal(views.uniform[:40], draw_views(augment, 40, seed=3, view=7).uniform)
    for seed, view in ((3, 8), (4, 7), (7, 3)):
        assert (views.uniform != draw_views(augment, 100, seed=seed, view=view).uniform).any()


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
def test_a_sample_is_the_same_in_every_batch(crop: str) -> None:
    augment = Augment.model_validate({"crop": crop, "color": 0.3, "padding": 2})
    samples, views = noise(20), draw_views(augment, 20, seed=0, view=0)
    together = augmented_batch(samples, np.arange(20), views, small())
    alone = np.concatenate([augmented_batch(samples[i : i + 1], np.array([i]), views, small()) for i in range(20)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    assert together.dtype == np.float32


def test_samples_are_not_written_to() -> None:
    samples = noise(20)
    copy = samples.copy()
    for crop in ("pad", "resized", "none"):
        augmented_batch(samples, np.arange(20), draw_views(Augment(crop=crop, color=0.3), 20, seed=0, view=0), small())
    np.testing.assert_array_equal(samples, copy)


def test_pad_crop_and_flip_equal_the_naive_form() -> None:
    augment, samples = Augment(crop="pad", padding=3), noise(50)
    views = draw_views(augment, 50, seed=1, view=0)
    out = augmented_batch(samples, np.arange(50), views, small())
    padded = np.pad(samples, [(0, 0), (3, 3), (3, 3), (0, 0)])
    for i, (top, left, flip) in enumerate(views.uniform[:, [0, 1, 4]]):
        t, x = int(top * 7), int(left * 7)
        wanted = padded[i, t : t + 8, x : x + 8]
        wanted = wanted[:, ::-1] if flip < 0.5 else wanted
        np.testing.assert_allclose(out[i], wanted.transpose(2, 0, 1) / 255, atol=1e-6)


def test_pad_crop_reaches_every_shift() -> None:
    image = np.zeros((1, 8, 8, 3), np.uint8)
    image[0, 4, 4] = 255
    augment = Augment(crop="pad", padding=2, flip=False)
    views = draw_views(augment, 500, seed=0, view=0)
    out = augmented_batch(np.repeat(image, 500, axis=0), np.arange(500), views, small())
    places = {tuple(int(v) for v in np.argwhere(sample[0])[0]) for sample in out}
    assert places == {(row, column) for row in range(2, 7) for column in range(2, 7)}


def test_without_flip_nothing_is_mirrored_and_with_it_half() -> None:
    samples = noise(400)
    for flip, low, high in ((False, 0, 0), (True, 160, 240)):
        views = draw_views(Augment(crop="none", flip=flip), 400, seed=0, view=0)
        out = augmented_batch(samples, np.arange(400), views, small())
        mirrored = (out == samples[:, :, ::-1].transpose(0, 3, 1, 2) * np.float32(1 / 255)).all(axis=(1, 2, 3)).sum()
        assert low <= mirrored <= high


def test_no_augmentation_is_the_evaluation_crop() -> None:
    samples, preprocess = noise(5, 13, 11), small()
    views = draw_views(Augment(crop="none", flip=False), 5, seed=0, view=0)
    wanted = preprocess.normalised(preprocess.cropped(samples))
    np.testing.assert_array_equal(augmented_batch(samples, np.arange(5), views, preprocess), wanted)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (7, 300), (1, 1)])
def test_random_parts_stay_inside_and_have_the_asked_for_area_and_ratio(shape: tuple[int, int]) -> None:
    samples = [np.zeros((*shape, 3), np.uint8)] * 2000
    views = draw_views(Augment(crop="resized", scale=(0.3, 0.9)), 2000, seed=0, view=0)
    top, left, height, width = _boxes(samples, np.arange(2000), views).T
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height <= shape[0]).all()
    assert (left + width <= shape[1]).all()
    if min(shape) >= 40:
        area, ratio = height * width / (shape[0] * shape[1]), width / height
        whole = (height < shape[0]) & (width < shape[1])
        assert 0.28 <= area[whole].min() <= 0.35
        assert 0.8 <= area.max() <= 0.92
        assert 0.72 <= ratio[whole].min() <= 0.8
        assert 1.25 <= ratio[whole].max() <= 1.4
        assert abs(np.log(ratio[whole]).mean()) < 0.06


def test_the_whole_image_is_resized_when_scale_is_one_and_ratio_fits() -> None:
    samples = noise(1, 40, 40)
    views = views_of(Augment(crop="resized", scale=(1.0, 1.0)), 1)
    out = augmented_batch(samples, np.array([0]), views, small((16, 20)))
    wanted = np.asarray(Image.fromarray(samples[0]).resize((20, 16), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(out[0], wanted.transpose(2, 0, 1) / 255, atol=1e-6)


def test_a_random_part_equals_torchvisions_resized_crop() -> None:
    samples = noise(30, 50, 70)
    augment = Augment(crop="resized", flip=False)
    views = draw_views(augment, 30, seed=0, view=0)
    out = augmented_batch(samples, np.arange(30), views, small((24, 24)))
    for i, (top, left, height, width) in enumerate(_boxes(samples, np.arange(30), views).tolist()):
        theirs = functional.resized_crop(Image.fromarray(samples[i]), top, left, height, width, [24, 24])
        np.testing.assert_allclose(out[i], functional.to_tensor(theirs).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "adjust"),
    [
        ("brightness", functional.adjust_brightness),
        ("contrast", functional.adjust_contrast),
        ("saturation", functional.adjust_saturation),
    ],
)
@pytest.mark.parametrize("uniform", [0.0, 0.2, 0.5, 0.999])
def test_each_colour_change_equals_torchvisions(name: str, adjust: object, uniform: float) -> None:
    samples = noise(3)
    out = augmented_batch(
        samples, np.arange(3), views_of(Augment(crop="none", flip=False, color=0.4), 3, **{name: uniform}), small()
    )
    inputs = torch.from_numpy(samples.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    theirs = adjust(inputs, 1 + 0.4 * (2 * uniform - 1))  # type: ignore[operator]
    # torchvision's gray of float tensors uses 0.2989, 0.587, 0.114, whose sum is 0.9999.
    np.testing.assert_allclose(out, theirs.numpy(), rtol=0, atol=2e-4)


def test_colour_changes_stay_in_range_and_happen() -> None:
    samples = noise(50)
    out = augmented_batch(
        samples, np.arange(50), draw_views(Augment(crop="none", flip=False, color=0.9), 50, seed=0, view=0), small()
    )
    assert out.min() >= 0
    assert out.max() <= 1
    assert (np.abs(out - samples.transpose(0, 3, 1, 2) / 255).mean(axis=(1, 2, 3)) > 0.001).all()


@pytest.mark.parametrize(
    ("size", "crop", "padding"),
    [((8, 8), "pad", 1), ((28, 28), "pad", 3), ((32, 32), "pad", 4), ((96, 96), "resized", 4)],
)
def test_defaults_follow_the_input_size(size: tuple[int, int], crop: str, padding: int) -> None:
    augment = Augment.for_input(size)
    assert (augment.crop, augment.padding, augment.mixup, augment.color) == (crop, padding, 0.0, 0.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale must be two rising numbers above 0 and at most 1"),
        ({"scale": (0.9, 0.5)}, "scale must be two rising numbers"),
        ({"color": 1.0}, "less than 1"),
        ({"padding": -1}, "greater than or equal to 0"),
        ({"crop": "random"}, "'pad', 'resized' or 'none'"),
        ({"rotate": 3}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Augment.model_validate({"crop": "pad"} | wrong)
