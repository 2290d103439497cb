"""Data sets are read in every form they come in, and refused with a true sentence when they are wrong."""

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlc.calibration.data import ImageSet, Splits, read_data
from tlc.runtime.errors import TlcError, UsageError

Make = Callable[[Mapping[str, int]], Path]
Encode = Callable[..., bytes]

SPLIT = {"train/ant": 6, "train/bee": 8, "val/ant": 3, "val/bee": 2}


def refusal(path: Path, **options: object) -> TlcError:
    with pytest.raises(TlcError) as caught:
        read_data(path, **options)  # type: ignore[arg-type]
    assert caught.value.hint
    return caught.value


def pixels(images: ImageSet) -> list[bytes]:
    return [np.asarray(images.image(i)).tobytes() for i in range(len(images))]


def same(one: Splits, other: Splits) -> bool:
    parts = ("fit", "holdout", "evaluation")
    return one.digest == other.digest and all(pixels(getattr(one, p)) == pixels(getattr(other, p)) for p in parts)


def zipped(root: Path, *, top: str = "") -> Path:
    path = root.parent / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for item in sorted(root.rglob("*")):
            file.write(item, f"{top}{item.relative_to(root)}")
    return path


def tarred(root: Path, suffix: str, *, top: str = ".") -> Path:
    path = root.parent / f"data{suffix}"
    with tarfile.open(path, "w" if suffix == ".tar" else "w:gz") as file:
        file.add(root, top)
    return path


def test_train_and_val_folders_become_splits(make: Make) -> None:
    splits = read_data(make(SPLIT))
    assert splits.classes == ("ant", "bee")
    assert (len(splits.fit), len(splits.holdout), len(splits.evaluation)) == (12, 2, 5)
    assert splits.evaluation.labels.tolist() == [0, 0, 0, 1, 1]
    assert splits.evaluation.keys[0] == "val/ant/000.png"
    assert sorted(splits.holdout.labels.tolist()) == [0, 1]
    assert not set(splits.fit.keys) & set(splits.holdout.keys)


def test_an_image_set_gives_the_stored_pixels_and_subsets_keep_them(make: Make) -> None:
    root = make(SPLIT)
    evaluation = read_data(root).evaluation
    part = evaluation.subset([4, 1])
    assert part.keys == ("val/bee/001.png", "val/ant/001.png")
    assert part.labels.tolist() == [1, 0]
    with Image.open(root / "val/bee/001.png") as image:
        np.testing.assert_array_equal(np.asarray(part.image(0)), np.asarray(image))
    assert part.digest != evaluation.digest


@pytest.mark.parametrize("name", ["val", "validation", "valid", "test", "Val"])
def test_the_evaluation_folder_has_several_names(make: Make, name: str) -> None:
    splits = read_data(make({"train/a": 4, "train/b": 4, f"{name}/a": 1, f"{name}/b": 2}))
    assert len(splits.evaluation) == 3


def test_val_is_preferred_to_test(make: Make) -> None:
    splits = read_data(make(SPLIT | {"test/ant": 1, "test/bee": 1}))
    assert len(splits.evaluation) == 5


def test_one_folder_of_classes_is_split_in_proportion_and_by_the_seed(make: Make) -> None:
    root = make({"ant": 20, "bee": 40})
    splits, again, other = read_data(root), read_data(root), read_data(root, seed=1)
    assert np.bincount(splits.evaluation.labels).tolist() == [4, 8]
    assert same(splits, again)
    assert set(splits.evaluation.keys) != set(other.evaluation.keys)
    everything = splits.fit.keys + splits.holdout.keys + splits.evaluation.keys
    assert len(set(everything)) == len(everything) == 60


def test_a_train_folder_alone_is_split(make: Make) -> None:
    assert len(read_data(make({"train/ant": 10, "train/bee": 10})).evaluation) == 4


def test_classes_may_be_called_train_and_test(make: Make) -> None:
    assert read_data(make({"bus": 5, "train": 5, "test": 5})).classes == ("bus", "test", "train")


def test_copies_never_end_up_on_both_sides_of_our_own_split(make: Make) -> None:
    root = make({"ant": 10, "bee": 10})
    for number in range(10):
        shutil.copy(root / f"ant/{number:03d}.png", root / f"ant/copy{number}.png")
    splits = read_data(root)
    parts = [set(part.digests) for part in (splits.fit, splits.holdout, splits.evaluation)]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]


@pytest.mark.parametrize("top", ["", "flowers/", "a/b/"])
def test_a_zip_is_read_like_the_folder(make: Make, top: str) -> None:
    root = make(SPLIT)
    splits = read_data(zipped(root, top=top))
    assert splits.digest == read_data(root).digest
    assert pixels(splits.fit) == pixels(read_data(root).fit)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
@pytest.mark.parametrize("top", [".", "flowers"])
def test_a_tar_is_read_like_the_folder(make: Make, suffix: str, top: str) -> None:
    root = make(SPLIT)
    assert read_data(tarred(root, suffix, top=top)).digest == read_data(root).digest


def test_large_images_are_read_from_archives_when_asked_for(make: Make, encode: Encode) -> None:
    root = make(SPLIT)
    for name in ("train/ant/big.jpg", "val/bee/big.jpg"):
        (root / name).write_bytes(encode(len(name), (300, 200), "JPEG"))
    for path in (root, zipped(root), tarred(root, ".tar"), tarred(root, ".tgz")):
        evaluation = read_data(path).evaluation
        index = evaluation.keys.index("val/bee/big.jpg")
        assert evaluation.sizes[index].tolist() == [300, 200]
        assert np.asarray(evaluation.image(index)).shape == (200, 300, 3)


def test_files_of_the_operating_system_are_ignored(make: Make) -> None:
    root = make(SPLIT)
    plain = read_data(root)
    (root / "__MACOSX/train/ant").mkdir(parents=True)
    (root / "__MACOSX/train/ant/._000.png").write_bytes(b"x")
    (root / "train/.hidden").mkdir()
    (root / "train/ant/._000.png").write_bytes(b"x")
    (root / "train/ant/Thumbs.db").write_bytes(b"x")
    assert same(read_data(root), plain)
    assert read_data(zipped(root)).digest == plain.digest


def test_class_order_follows_the_model(make: Make) -> None:
    splits = read_data(make(SPLIT), classes=("bee", "ant"))
    assert splits.classes == ("bee", "ant")
    assert splits.evaluation.labels.tolist() == [1, 1, 1, 0, 0]
    assert splits.evaluation.keys[0] == "val/ant/000.png"


def test_exif_orientation_is_ignored_as_torchvision_does(make: Make) -> None:
    root = make(SPLIT)
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn by 90 degrees.
    Image.new("RGB", (100, 80)).save(root / "val/bee/turned.jpg", exif=exif)
    evaluation = read_data(root).evaluation
    image = evaluation.image(evaluation.keys.index("val/bee/turned.jpg"))
    assert isinstance(image, Image.Image)
    assert image.size == (100, 80)


def test_a_cameras_multi_picture_jpeg_is_an_image(make: Make) -> None:
    root = make(SPLIT)
    picture = Image.new("RGB", (100, 80), (200, 10, 10))
    picture.save(root / "val/bee/camera.jpg", "MPO", save_all=True, append_images=[picture])
    assert len(read_data(root).evaluation) == 6


def test_a_class_folder_missing_in_one_split_is_named(make: Make) -> None:
    error = refusal(make({"train/ant": 2, "train/bee": 2, "val/ant": 2}))
    assert "val/ has no folder for bee (1 of 2 classes)" in error.message


def test_an_empty_class_is_named(make: Make) -> None:
    root = make(SPLIT | {"val/cow": 0, "train/cow": 2})
    assert "cow in val/ holds no images" in refusal(root).message
    assert "cow in val/ holds no images" in refusal(zipped(root)).message
    assert "cow in val/ holds no images" in refusal(tarred(root, ".tar")).message


def test_no_images_at_all(tmp_path: Path) -> None:
    (tmp_path / "data/train/ant").mkdir(parents=True)
    (tmp_path / "data/train/ant/notes.txt").write_text("hello")
    assert refusal(tmp_path / "data").message.endswith("holds no images")


def test_evaluation_without_train(make: Make) -> None:
    assert "has val/ but no train/ folder" in refusal(make({"val/ant": 2, "val/bee": 2, "other/x": 1})).message


def test_a_single_class_is_refused(make: Make) -> None:
    assert "has 1 class (ant), at least 2 are needed" in refusal(make({"train/ant": 4, "val/ant": 2})).message


def test_a_class_too_small_to_split_is_named(make: Make) -> None:
    error = refusal(make({"ant": 5, "bee": 1}))
    assert "1 of 2 classes have fewer than 2 readable samples in the data: bee" in error.message


def test_a_class_of_copies_cannot_be_split(make: Make) -> None:
    root = make({"ant": 5, "bee": 1})
    shutil.copy(root / "bee/000.png", root / "bee/001.png")
    assert "fewer than 1 readable samples in the evaluation split: bee" in refusal(root).message


def test_class_count_unlike_the_models_shows_both_and_the_names(make: Make) -> None:
    error = refusal(make(SPLIT), num_classes=10)
    assert "has 2 classes (ant, bee), the model has 10" in error.message


def test_class_count_is_compared_before_any_image_is_read(make: Make) -> None:
    root = make(SPLIT)
    for file in root.rglob("*.png"):
        file.write_bytes(b"x")
    assert "the model has 3" in refusal(root, num_classes=3).message
    assert "19 of 19 images cannot be read" in refusal(root, num_classes=2).message


def test_other_class_names_than_the_models_are_shown(make: Make) -> None:
    error = refusal(make(SPLIT), classes=("ant", "wasp"))
    assert "classes that the model does not know: bee; the model's that have no data: wasp" in error.message


@pytest.mark.parametrize("pack", [lambda root: root, zipped, lambda root: tarred(root, ".tgz")])
def test_unreadable_images_are_counted_and_named(make: Make, encode: Encode, pack: Callable[[Path], Path]) -> None:
    root = make(SPLIT)
    jpeg = encode(1, (300, 200), "JPEG")
    (root / "train/ant/cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (root / "val/bee/empty.png").write_bytes(b"")
    (root / "val/bee/text.png").write_text("hello")
    path = pack(root)
    error = refusal(path)
    assert "3 of 22 images cannot be read" in error.message
    assert "train/ant/cut.jpg: " in error.message
    assert "val/bee/text.png: not an image of a known format" in error.message
    assert "--skip-bad" in error.hint
    splits = read_data(path, skip_bad=True)
    assert [line.split(":")[0] for line in splits.skipped] == [
        "train/ant/cut.jpg",
        "val/bee/empty.png",
        "val/bee/text.png",
    ]
    assert len(splits.fit) + len(splits.holdout) + len(splits.evaluation) == 19


def test_a_class_whose_images_are_all_bad_is_named_even_when_skipping(make: Make) -> None:
    root = make(SPLIT)
    for file in (root / "val/bee").iterdir():
        file.write_bytes(b"x")
    error = refusal(root, skip_bad=True)
    assert "1 of 2 classes have fewer than 1 readable samples in the evaluation split: bee" in error.message


def test_a_decompression_bomb_is_not_decoded(make: Make) -> None:
    root = make(SPLIT)
    header = b"P5 40000 40000 255\n"
    (root / "val/bee/bomb.pgm").write_bytes(header + bytes(100))
    error = refusal(root)
    assert "val/bee/bomb.pgm: " in error.message
    assert "exceeds limit" in error.message
    (root / "val/bee/bomb.pgm").write_bytes(b"P5 10000 9500 255\n" + bytes(100))
    with pytest.warns(Image.DecompressionBombWarning):
        error = refusal(root)
    assert "10,000 x 9,500 pixels are more than the limit of 90,000,000" in error.message


def test_postscript_is_never_interpreted(make: Make) -> None:
    root = make(SPLIT)
    (root / "val/bee/evil.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    assert "evil.png: not an image of a known format" in refusal(root).message


def test_samples_in_both_train_and_evaluation_are_refused_by_content(make: Make) -> None:
    root = make(SPLIT)
    shutil.copy(root / "train/ant/003.png", root / "val/bee/innocent.png")
    error = refusal(root)
    assert "1 of 6 evaluation samples are also in train" in error.message
    assert "train/ant/003.png = val/bee/innocent.png" in error.message
    assert error.hint.startswith("Remove them from train")


def test_paths_that_leave_the_archive_are_refused(tmp_path: Path, encode: Encode) -> None:
    for name in ("../evil.png", "/evil.png", "train/../../evil.png"):
        with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
            file.writestr(name, encode(0))
        assert "a path outside the archive" in refusal(tmp_path / "bad.zip").message
    assert not (tmp_path / "evil.png").exists()
    assert not (tmp_path.parent / "evil.png").exists()


def test_links_in_a_tar_are_refused(make: Make) -> None:
    root = make(SPLIT)
    (root / "val/bee/link.png").symlink_to("/etc/passwd")
    error = refusal(tarred(root, ".tar"))
    assert "val/bee/link.png', which is a link or a special file" in error.message


def test_a_truncated_archive_is_refused(make: Make) -> None:
    root = make(SPLIT)
    for path in (zipped(root), tarred(root, ".tgz")):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        message = refusal(path).message
        assert str(path) in message
        assert "cannot be read" in message or "cut short" in message


def test_a_damaged_member_of_a_zip_is_a_bad_image(make: Make) -> None:
    path = zipped(make(SPLIT))
    with zipfile.ZipFile(path) as file:
        member = file.getinfo("val/bee/001.png")
    data = bytearray(path.read_bytes())
    data[member.header_offset + 200] ^= 0xFF
    path.write_bytes(data)
    assert "1 of 19 images cannot be read" in refusal(path).message


def test_an_encrypted_zip_is_refused(make: Make) -> None:
    path = zipped(make(SPLIT))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        offsets = [member.header_offset for member in file.infolist()]
    for offset in offsets:
        data[offset + 6] |= 1
    position = data.find(b"PK\x01\x02")
    while position >= 0:
        data[position + 8] |= 1
        position = data.find(b"PK\x01\x02", position + 4)
    path.write_bytes(data)
    assert "encrypted" in refusal(path).message


@pytest.mark.parametrize(("name", "content"), [("data.csv", b"a,b\n"), ("data.pt", b"\x80\x02"), ("data", b"")])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path / name)
    assert "is not a data set" in error.message
    assert ".npz" in error.hint


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere").message


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_named(make: Make) -> None:
    root = make(SPLIT)
    (root / "train/ant").chmod(0)
    try:
        assert "cannot list" in refusal(root).message
    finally:
        (root / "train/ant").chmod(0o700)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 0.6, float("nan")])
def test_a_ratio_outside_its_range_is_a_usage_error(make: Make, ratio: float) -> None:
    root = make(SPLIT)
    with pytest.raises(UsageError, match=r"must be above 0 and at most 0\.5"):
        read_data(root, holdout_ratio=ratio)
    with pytest.raises(UsageError, match=r"must be above 0 and at most 0\.5"):
        read_data(root, evaluation_ratio=ratio)


def test_a_file_changed_during_the_run_is_named(make: Make, encode: Encode) -> None:
    root = make(SPLIT)
    (root / "val/bee/big.jpg").write_bytes(encode(1, (300, 200), "JPEG"))
    evaluation = read_data(root).evaluation
    (root / "val/bee/big.jpg").unlink()
    with pytest.raises(TlcError, match=r"val/bee/big\.jpg can no longer be read"):
        evaluation.image(evaluation.keys.index("val/bee/big.jpg"))


def test_an_oversized_file_is_a_bad_image(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(SPLIT)
    monkeypatch.setattr("tlc.calibration.archive.MAX_FILE_BYTES", 100)
    for path in (root, zipped(root), tarred(root, ".tar")):
        message = refusal(path).message
        assert "19 of 19 images cannot be read" in message
        assert "bytes are more than the limit of 100" in message


def test_a_gzip_bomb_stops_before_the_disk_is_full(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tarred(make(SPLIT), ".tgz")
    usage = shutil.disk_usage(path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    assert "unpacks to more than the 9,000 bytes" in refusal(path).message


@pytest.mark.assets
def test_ants_and_bees(assets: Path) -> None:
    splits = read_data(assets / "ants-bees/images.zip", num_classes=2)
    assert splits.classes == ("ants", "bees")
    assert (len(splits.fit) + len(splits.holdout), len(splits.evaluation)) == (245, 153)
    assert len(splits.holdout) == 49
    image = splits.fit.image(0)
    assert isinstance(image, Image.Image)
    assert min(image.size) == 256
    with (
        zipfile.ZipFile(assets / "ants-bees/images.zip") as file,
        Image.open(io.BytesIO(file.read(splits.fit.keys[0]))) as stored,
    ):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(stored))


@pytest.mark.assets
@pytest.mark.slow
def test_cifar10(assets: Path) -> None:
    splits = read_data(assets / "cifar10/images.zip", num_classes=10)
    assert (len(splits.fit), len(splits.holdout), len(splits.evaluation)) == (47_500, 2_500, 10_000)
    assert np.bincount(splits.holdout.labels).tolist() == [250] * 10
    assert np.bincount(splits.evaluation.labels).tolist() == [1_000] * 10
