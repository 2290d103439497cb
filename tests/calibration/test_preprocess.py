"""Preprocessing gives what torchvision's transforms give."""

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision import transforms

from tlc.calibration.preprocess import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def torchvision_input(image: Image.Image, resize: int | list[int], crop: int, *, gray: bool = False) -> torch.Tensor:
    image = image.convert("RGB")
    steps = [transforms.Resize(resize), transforms.CenterCrop(crop), transforms.ToTensor()]
    if gray:
        steps = [transforms.Grayscale(), *steps, transforms.Normalize((0.5,), (0.25,))]
    else:
        steps = [*steps, transforms.Normalize(MEAN, STD)]
    result: torch.Tensor = transforms.Compose(steps)(image)
    return result


@pytest.mark.parametrize("size", [(61, 47), (47, 61), (64, 64), (33, 200), (101, 40), (40, 40), (39, 41)])
@pytest.mark.parametrize(("resize", "crop"), [(40, 32), (40, 33), (32, 32), (36, 40)])
def test_input_equals_torchvisions_for_odd_sizes(size: tuple[int, int], resize: int, crop: int) -> None:
    image = picture(*size)
    ours = Preprocess(size=(crop, crop), resize=resize, mean=MEAN, std=STD)(image)
    np.testing.assert_allclose(ours[0], torchvision_input(image, resize, crop).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_images_of_other_modes_become_rgb_as_in_torchvision(mode: str) -> None:
    image = picture(61, 47, mode)
    ours = Preprocess(size=(32, 32), resize=40, mean=MEAN, std=STD)(image)
    np.testing.assert_allclose(ours[0], torchvision_input(image, 40, 32).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_gray_equals_torchvisions_grayscale(mode: str) -> None:
    image = picture(61, 47, mode)
    ours = Preprocess(size=(32, 32), resize=40, mean=(0.5,), std=(0.25,), channels="gray")(image)
    np.testing.assert_allclose(ours[0], torchvision_input(image, 40, 32, gray=True).numpy(), rtol=0, atol=1e-6)


def test_bgr_reverses_channels_and_takes_means_in_the_models_order() -> None:
    image = picture(61, 47)
    rgb = Preprocess(size=(32, 32), resize=40, mean=MEAN, std=STD)(image)
    bgr = Preprocess(size=(32, 32), resize=40, mean=MEAN[::-1], std=STD[::-1], channels="bgr")(image)
    np.testing.assert_array_equal(bgr, rgb[:, ::-1])


def test_exact_resize_squeezes_as_torchvision() -> None:
    image = picture(61, 47)
    ours = Preprocess(size=(32, 32), resize=(32, 32), mean=MEAN, std=STD)(image)
    np.testing.assert_allclose(ours[0], torchvision_input(image, [32, 32], 32).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_every_filter_is_pillows(interpolation: str) -> None:
    image = picture(61, 47)
    preprocess = Preprocess.model_validate(
        {"size": (40, 51), "resize": 40, "interpolation": interpolation, "mean": MEAN, "std": STD}
    )
    wanted = np.asarray(image.resize((51, 40), getattr(Image.Resampling, interpolation.upper())))
    np.testing.assert_array_equal(preprocess.resized(image), wanted)


def test_resized_size_is_the_size_that_resized_gives() -> None:
    for size in [(61, 47), (47, 61), (255, 256), (1, 7), (640, 333)]:
        preprocess = Preprocess(size=(8, 8), resize=30, mean=MEAN, std=STD)
        assert preprocess.resized(picture(*size)).shape[1::-1] == preprocess.resized_size(*size)


def test_floating_values_are_resized_as_images_and_not_divided_by_255() -> None:
    image = picture(61, 47)
    preprocess = Preprocess(size=(32, 32), resize=40, mean=MEAN, std=STD)
    values = preprocess.resized_values(np.asarray(image, np.float32) / np.float32(255))
    ours = preprocess.normalised(preprocess.cropped(values)[None])
    # 8-bit images are rounded after each of two resizing passes: at most 1/255 of the range, over the smallest std.
    np.testing.assert_allclose(ours, preprocess(image), rtol=0, atol=1.01 / 255 / 0.224)


def test_floating_gray_and_colour_are_converted_to_what_the_model_takes() -> None:
    colour = Preprocess(size=(4, 4), resize=None, mean=MEAN, std=STD)
    gray = Preprocess(size=(4, 4), resize=None, mean=(0.5,), std=(0.5,), channels="gray")
    assert colour.resized_values(np.ones((4, 4, 1), np.float32)).shape == (4, 4, 3)
    np.testing.assert_allclose(gray.resized_values(np.ones((4, 4, 3), np.float32)), np.ones((4, 4, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mean": (0.5,)}, "rgb needs 3 means and stds, got 1 and 3"),
        ({"std": (0.1, 0.0, 0.1)}, "std must be > 0, got 0.0"),
        ({"size": (0, 4)}, "size must be at least 1x1"),
        ({"typo": 1}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {"size": (4, 4), "resize": None, "mean": MEAN, "std": STD}
    with pytest.raises(ValidationError, match=message):
        Preprocess.model_validate(settings | wrong)
