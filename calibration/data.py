"""Reading a data set: its layout, its class order, its splits, and everything that can be wrong with it."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tlc.calibration.archive import Archive, Folder, open_archive, tree
from tlc.calibration.arrays import read_arrays
from tlc.calibration.images import IMAGE_SUFFIXES, ImageSet, check_files
from tlc.calibration.splits import (
    EVALUATION_RATIO,
    HOLDOUT_RATIO,
    holdout_count,
    listed_lines,
    listed_names,
    require_ratio,
    stratified,
)
from tlc.runtime.artifact import sha256_json
from tlc.runtime.errors import TlcError

__all__ = ["ImageSet", "Splits", "read_data"]

EVALUATION_FOLDERS = ("val", "validation", "valid", "test")
"""Names of the evaluation folder beside `train`; the first that exists is used, the others are left alone."""


@dataclass(frozen=True, slots=True)
class Splits:
    """A data set's samples by what they may be used for."""

    fit: ImageSet
    """Trained and calibrated on."""
    holdout: ImageSet
    """Part of train that is never fitted: early stopping, and every choice that the pipeline makes."""
    evaluation: ImageSet
    """Measured once, at the end."""
    skipped: tuple[str, ...]
    """`name: reason` of each file left out because it cannot be read."""
    path: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return self.fit.classes

    @property
    def digest(self) -> str:
        """SHA-256 over every sample's split, content and label."""
        return sha256_json([part.digest for part in (self.fit, self.holdout, self.evaluation)])

    def for_model(self, num_classes: int, classes: tuple[str, ...]) -> "Splits":
        """Return the same samples with labels in the order of the model's `classes`, where it has names.

        Raises TlcError when the data's classes are not the model's.
        """
        _require_classes(self.path, self.classes, classes, num_classes)
        fit, holdout, evaluation = (_ordered(part, classes) for part in (self.fit, self.holdout, self.evaluation))
        return replace(self, fit=fit, holdout=holdout, evaluation=evaluation)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) in pixels where all images agree, else None."""
        sizes = np.unique(np.concatenate([part.sizes for part in (self.fit, self.holdout, self.evaluation)]), axis=0)
        return (int(sizes[0][1]), int(sizes[0][0])) if len(sizes) == 1 else None


def read_data(
    path: Path,
    *,
    classes: tuple[str, ...] = (),
    num_classes: int | None = None,
    holdout_ratio: float = HOLDOUT_RATIO,
    evaluation_ratio: float = EVALUATION_RATIO,
    seed: int = 0,
    skip_bad: bool = False,
) -> Splits:
    """Read a data set and split it. Every image is hashed and decoded once, so what is broken is found here.

    `path` is a folder, or a .zip, .tar, .tar.gz or .tgz of one, in torchvision's ImageFolder layout: `train/CLASS/*`
    and `val/CLASS/*` (or one of `EVALUATION_FOLDERS`), or `CLASS/*` alone, from which `evaluation_ratio` is split off;
    or an .npz, see `read_arrays`. Classes are sorted by name, or follow `classes`, the model's own order.
    `holdout_count` of the train samples are held out. All splitting is stratified and a function of `seed`.

    Raises TlcError for anything that would make training or measuring wrong: unreadable images (unless `skip_bad`),
    classes that are missing or empty or unlike the model's, and samples that are in both train and evaluation.
    """
    require_ratio("holdout_ratio", holdout_ratio)
    require_ratio("evaluation_ratio", evaluation_ratio)
    if path.suffix.lower() == ".npz" and path.is_file():
        train, evaluation = read_arrays(path, classes=classes)
        _require_classes(path, train.classes, classes, num_classes)
        skipped: tuple[str, ...] = ()
    else:
        archive = open_archive(path)
        folders = _layout(path, tree(archive))
        # Before anything is decoded: that takes minutes where there are many photographs.
        _require_classes(path, _class_folders(path, folders), classes, num_classes)
        train, evaluation, skipped = _read_folders(path, archive, folders, skip_bad=skip_bad)
    train = _ordered(train, classes)
    if evaluation is None:
        _require_every_class(path, train, "the data", at_least=2)
        mask = stratified(train.labels, train.digests, round(evaluation_ratio * len(train)), seed=seed)
        train, evaluation = train.subset(np.flatnonzero(~mask)), train.subset(np.flatnonzero(mask))
    else:
        evaluation = _ordered(evaluation, classes)
    _require_every_class(path, train, "train")
    _require_every_class(path, evaluation, "the evaluation split")
    _require_disjoint(path, train, evaluation)
    held = stratified(train.labels, train.digests, holdout_count(len(train), holdout_ratio), seed=seed)
    return Splits(
        fit=train.subset(np.flatnonzero(~held)),
        holdout=train.subset(np.flatnonzero(held)),
        evaluation=evaluation,
        skipped=skipped,
        path=path,
    )


def _read_folders(
    path: Path, archive: Archive, splits: dict[str, Folder], *, skip_bad: bool
) -> tuple[ImageSet, ImageSet | None, tuple[str, ...]]:
    """Return train, evaluation (None where there is one folder of classes) and what was skipped."""
    classes = _class_folders(path, splits)
    samples = [
        (name, part, label)
        for part, folder in enumerate(splits.values())
        for label, class_name in enumerate(classes)
        for name in _images(folder.folders[class_name])
    ]
    checked = check_files(archive, [name for name, _, _ in samples])
    if checked.bad and not skip_bad:
        raise TlcError(
            f"{path}: {len(checked.bad):,} of {len(samples):,} images cannot be read:\n  {listed_lines(checked.bad)}",
            hint="Repair or remove them, or go on without them with --skip-bad.",
        )
    good = set(checked.names)
    samples = [sample for sample in samples if sample[0] in good]
    everything = ImageSet(
        classes=classes,
        labels=np.array([label for _, _, label in samples], np.int64),
        keys=checked.names,
        digests=checked.digests,
        sizes=checked.sizes,
        reader=checked.reader,
        rows=np.arange(len(samples)),
    )
    part = np.array([part for _, part, _ in samples], np.int64)
    train = everything.subset(np.flatnonzero(part == 0))
    return train, everything.subset(np.flatnonzero(part == 1)) if len(splits) == 2 else None, checked.bad


def _layout(path: Path, root: Folder) -> dict[str, Folder]:
    """Return the folders of classes by name: train and evaluation, or a single one."""
    if not any(_is_image(name) for name in root.all_files()):
        raise TlcError(
            f"{path} holds no images",
            hint=f"Put one folder of images per class there; images are {', '.join(IMAGE_SUFFIXES)}.",
        )
    while len(root.folders) == 1 and not _images(root, deep=False):
        only = next(iter(root.folders.values()))
        if not only.folders:
            break
        root = only
    # A class may be called "train" too: a split has folders in it.
    splits = {name.lower(): folder for name, folder in root.folders.items() if folder.folders}
    evaluation = next((name for name in EVALUATION_FOLDERS if name in splits), None)
    if "train" in splits:
        return {"train": splits["train"]} | ({evaluation: splits[evaluation]} if evaluation else {})
    if evaluation:
        raise TlcError(
            f"{path} has {evaluation}/ but no train/ folder",
            hint="Add train/ with the same classes, or give a folder that holds the class folders themselves.",
        )
    return {path.name: root}


def _class_folders(path: Path, splits: dict[str, Folder]) -> tuple[str, ...]:
    """Return the sorted class names, the same in every split and none of them empty."""
    classes = sorted({name for folder in splits.values() for name in folder.folders})
    for split, folder in splits.items():
        missing = [name for name in classes if name not in folder.folders]
        if missing:
            raise TlcError(
                f"{path}: {split}/ has no folder for {listed_names(missing)} "
                f"({len(missing)} of {len(classes)} classes)",
                hint=f"Every class needs images in each of {' and '.join(splits)}.",
            )
        empty = [name for name in classes if not _images(folder.folders[name])]
        if empty:
            raise TlcError(
                f"{path}: {listed_names(empty)} in {split}/ holds no images",
                hint=f"Remove the folder or put images there: {', '.join(IMAGE_SUFFIXES)}.",
            )
    return tuple(classes)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _images(folder: Folder, *, deep: bool = True) -> list[str]:
    return [name for name in (folder.all_files() if deep else folder.files) if _is_image(name)]


def _ordered(images: ImageSet, classes: tuple[str, ...]) -> ImageSet:
    """Return the same samples with labels in the order of `classes`, if given."""
    if not classes or classes == images.classes:
        return images
    to_model = np.array([classes.index(name) for name in images.classes], np.int64)
    return replace(images, classes=classes, labels=to_model[images.labels])


def _require_classes(path: Path, found: tuple[str, ...], known: tuple[str, ...], num_classes: int | None) -> None:
    expected = num_classes or len(known) or None
    if expected is not None and len(found) != expected:
        raise TlcError(
            f"{path} has {len(found)} classes ({listed_names(found)}), the model has {expected}"
            + (f" ({listed_names(known)})" if known else ""),
            hint="Give the data that this model was fine-tuned on.",
        )
    if len(found) < 2:
        raise TlcError(
            f"{path} has {len(found)} class ({listed_names(found)}), at least 2 are needed",
            hint="Put one folder of images per class there, in train/ and val/ or without.",
        )
    if known and set(found) != set(known):
        raise TlcError(
            f"{path} has classes that the model does not know: {listed_names(sorted(set(found) - set(known)))}; "
            f"the model's that have no data: {listed_names(sorted(set(known) - set(found)))}",
            hint="Rename the class folders to the model's class names.",
        )


def _require_every_class(path: Path, images: ImageSet, where: str, *, at_least: int = 1) -> None:
    counts = Counter(images.labels.tolist())
    few = [name for label, name in enumerate(images.classes) if counts[label] < at_least]
    if few:
        raise TlcError(
            f"{path}: {len(few)} of {len(images.classes)} classes have fewer than {at_least} readable samples in "
            f"{where}: {listed_names(few)}",
            hint="Add samples of these classes, or remove the classes.",
        )


def _require_disjoint(path: Path, train: ImageSet, evaluation: ImageSet) -> None:
    by_digest = dict(zip(train.digests, train.keys, strict=True))
    pairs = [
        f"{by_digest[digest]} = {key}"
        for digest, key in zip(evaluation.digests, evaluation.keys, strict=True)
        if digest in by_digest
    ]
    if pairs:
        raise TlcError(
            f"{path}: {len(pairs):,} of {len(evaluation):,} evaluation samples are also in train:\n  "
            + listed_lines(pairs),
            hint="Remove them from train: accuracy on samples that were trained on proves nothing.",
        )
