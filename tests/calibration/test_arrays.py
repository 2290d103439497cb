"""Data sets of arrays."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tlc.calibration.data import read_data
from tlc.runtime.errors import TlcError

Arrays = dict[str, NDArray[np.generic]]


def save(tmp_path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def two_splits(dtype: type = np.uint8, shape: tuple[int, ...] = (6, 5, 3)) -> Arrays:
    rng = np.random.default_rng(0)
    values: NDArray[np.generic] = rng.integers(0, 256, (30, *shape)).astype(dtype)
    if dtype is np.float32:
        values = np.asarray(values, np.float32) / np.float32(255)
    labels = np.arange(30) % 3
    return {
        "x_train": values[:21],
        "y_train": labels[:21],
        "x_val": values[21:],
        "y_val": labels[21:],
    }


def refusal(tmp_path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> str:
    with pytest.raises(TlcError) as caught:
        read_data(save(tmp_path, arrays))
    assert caught.value.hint
    return caught.value.message


def test_arrays_with_two_splits(tmp_path: Path) -> None:
    arrays = two_splits()
    splits = read_data(save(tmp_path, arrays))
    assert splits.classes == ("0", "1", "2")
    assert (len(splits.fit), len(splits.holdout), len(splits.evaluation)) == (17, 4, 9)
    assert splits.evaluation.keys[1] == "x_val[1]"
    image = splits.evaluation.image(1)
    assert isinstance(image, Image.Image)
    assert image.size == (5, 6)
    np.testing.assert_array_equal(np.asarray(image), arrays["x_val"][1])


def test_one_split_is_split_by_class(tmp_path: Path) -> None:
    arrays = two_splits()
    splits = read_data(save(tmp_path, {"x": arrays["x_train"], "y": arrays["y_train"]}))
    assert (len(splits.fit), len(splits.holdout), len(splits.evaluation)) == (14, 3, 4)


def test_gray_images_may_leave_out_the_channel(tmp_path: Path) -> None:
    splits = read_data(save(tmp_path, two_splits(shape=(6, 5))))
    image = splits.fit.image(0)
    assert isinstance(image, Image.Image)
    assert image.mode == "L"


def test_floating_values_are_kept_as_they_are(tmp_path: Path) -> None:
    arrays = two_splits(np.float32)
    evaluation = read_data(save(tmp_path, arrays)).evaluation
    assert evaluation.floating
    np.testing.assert_array_equal(evaluation.image(2), arrays["x_val"][2])


def test_class_names_come_with_the_file_or_from_the_model(tmp_path: Path) -> None:
    arrays = two_splits()
    named = save(tmp_path, arrays | {"classes": np.array(["a", "b", "c"])})
    assert read_data(named).classes == ("a", "b", "c")
    swapped = read_data(named, classes=("c", "b", "a"))
    assert swapped.evaluation.labels.tolist() == (2 - read_data(named).evaluation.labels).tolist()
    assert read_data(save(tmp_path, arrays), classes=("x", "y", "z")).classes == ("x", "y", "z")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_val": None}, "holds x_train, y_train, y_val, not a data set"),
        ({"x_train": np.zeros((21, 6, 5, 3), np.float64)}, "x_train is float64"),
        ({"x_train": np.zeros((21, 3, 6, 5), np.uint8)}, "x_train has shape (21, 3, 6, 5)"),
        ({"x_train": np.zeros((21, 30), np.uint8)}, "x_train has shape (21, 30)"),
        ({"x_train": np.zeros((0, 6, 5, 3), np.uint8), "y_train": np.zeros(0, int)}, "x_train is empty"),
        ({"x_train": np.full((21, 6, 5, 3), np.nan, np.float32)}, "NaN or infinity in 21 of 21 samples, first at [0]"),
        ({"y_train": np.zeros(21)}, "y_train is float64; labels are integers"),
        ({"y_train": np.zeros((21, 1), int)}, "y_train has shape (21, 1); (N,) is needed"),
        ({"y_train": np.zeros(20, int)}, "y_train has 20 labels for 21 samples"),
        ({"y_train": np.arange(21) % 3 - 1}, "label -1 of x_train[0] is outside 0 to 2 (7 of 21 samples)"),
        ({"classes": np.array(["a", "b"])}, "label 2 of x_train[2] is outside 0 to 1"),
        ({"classes": np.array(["a", "a", "b"])}, "classes must be a list of different names"),
        ({"classes": np.array([1, 2, 3])}, "classes must be a list of different names"),
        ({"classes": np.array(["a", "b", "c", "d"])}, "1 of 4 classes have fewer than 1 readable samples in train: d"),
        (
            {"y_val": np.zeros(9, int)},
            "2 of 3 classes have fewer than 1 readable samples in the evaluation",
        ),
        ({"classes": np.array([object()])}, "is not a readable .npz file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, NDArray[np.generic] | None], message: str) -> None:
    changed = {key: value for key, value in {**two_splits(), **change}.items() if value is not None}
    assert message in refusal(tmp_path, changed)


def test_channels_first_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(TlcError) as caught:
        read_data(save(tmp_path, two_splits() | {"x_train": np.zeros((21, 3, 6, 5), np.uint8)}))
    assert "transpose(0, 2, 3, 1)" in caught.value.hint


def test_overlap_of_arrays_is_found(tmp_path: Path) -> None:
    arrays = two_splits()
    arrays["x_val"][4] = arrays["x_train"][7]
    message = refusal(tmp_path, arrays)
    assert "1 of 9 evaluation samples are also in train" in message
    assert "x_train[7] = x_val[4]" in message


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"hello"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(TlcError, match=r"is not a readable \.npz file"):
        read_data(tmp_path / "data.npz")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, two_splits())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TlcError, match=r"is not a readable \.npz file"):
        read_data(path)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.array([{"a": 1}]), allow_pickle=True)
    (tmp_path / "array.npy").rename(tmp_path / "data.npz")
    with pytest.raises(TlcError, match=r"is not a readable \.npz file"):
        read_data(tmp_path / "data.npz")
