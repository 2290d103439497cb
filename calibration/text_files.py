"""Where labelled texts lie: one table, a table for each split, or a folder of text files for each class."""

import codecs
import re
from pathlib import Path

from tlc.calibration.archive import Archive, Folder, open_archive, tree
from tlc.calibration.splits import listed_names
from tlc.calibration.tables import TABLE_SUFFIXES, not_utf8, read_table
from tlc.calibration.text_rows import Columns, RawTexts, samples_of_table
from tlc.calibration.text_set import Task
from tlc.runtime.errors import TlcError

_VALIDATION = ("val", "validation", "valid", "dev")
_SHARD = re.compile(r"(.+?)-\d+-of-\d+")


def read_samples(path: Path, task: Task, columns: Columns) -> dict[str, RawTexts]:
    """Return the samples of "train" and, where there are, "val" and "test"; one file or folder of classes is train.

    Raises TlcError for everything that is not a data set of texts, and for columns and splits that cannot be found.
    """
    if path.is_file() and path.name.lower().endswith(TABLE_SUFFIXES):
        return {"train": samples_of_table(read_table(path.name, file_bytes(path)), task, columns)}
    if path.is_file() and not path.name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz")):
        raise TlcError(
            f"{path} is not a table of texts",
            hint=f"Give {', '.join(TABLE_SUFFIXES)}, a folder of these, or a folder of .txt files for each class.",
        )
    archive = open_archive(path)
    root = tree(archive)
    while len(root.folders) == 1 and not _tables(root):  # Beside it may lie a README.
        only = next(iter(root.folders.values()))
        if not only.folders and not _tables(only):
            break
        root = only
    if not _tables(root):
        return _text_files(path, archive, root, task)
    parts: dict[str, RawTexts] = {}
    for split, names in _table_splits(path, _tables(root)).items():
        samples = [
            samples_of_table(read_table(name, member_bytes(path, archive, name)), task, columns) for name in names
        ]
        parts[split] = _concatenated(path, samples)
    return parts


def _tables(folder: Folder) -> list[str]:
    return [name for name in folder.files if name.lower().endswith(TABLE_SUFFIXES)]


def _table_splits(path: Path, names: list[str]) -> dict[str, list[str]]:
    """Return the files of train, val and test; a split may be in numbered shards, `train-00000-of-00002.parquet`."""
    by_stem: dict[str, list[str]] = {}
    for name in names:
        stem = name.rpartition("/")[2].rpartition(".")[0].lower()
        shard = _SHARD.fullmatch(stem)
        by_stem.setdefault(shard[1] if shard else stem, []).append(name)
    if len(by_stem) == 1 and "train" not in by_stem:
        by_stem = {"train": next(iter(by_stem.values()))}
    splits = _known_splits(path, by_stem, "files")
    for stem, files in splits.items():
        if len(files) > 1 and not all(_SHARD.search(name.rpartition("/")[2]) for name in files):
            raise TlcError(f"{path} has {stem} {len(files)} times: {listed_names(files)}", hint="Remove all but one.")
    return splits


def _known_splits(path: Path, found: dict[str, list[str]], what: str) -> dict[str, list[str]]:
    """Return what is called train, val (or another name for it) and test."""
    if "train" not in found:
        raise TlcError(
            f"{path} has the {what} {listed_names(sorted(found))}, but none is called train",
            hint="Call them train, val and test, or give one file.",
        )
    validation = next((name for name in _VALIDATION if name in found), None)
    splits = {"train": found["train"]}
    if validation:
        splits["val"] = found[validation]
    if "test" in found:
        splits["test"] = found["test"]
    return splits


def _text_files(path: Path, archive: Archive, root: Folder, task: Task) -> dict[str, RawTexts]:
    """Return the samples of folders of .txt files, one folder for each class."""
    if task != "sequence-classification":
        raise TlcError(f"{path} has no tables", hint=f"{task} takes {', '.join(TABLE_SUFFIXES)}, or a folder of these.")
    inner = {name.lower(): folder for name, folder in root.folders.items() if folder.folders}
    folders = {"train": root}
    if inner:
        chosen = _known_splits(path, {name: [name] for name in inner}, "folders")
        folders = {split: inner[name] for split, (name,) in chosen.items()}
    names = sorted({name for folder in folders.values() for name in folder.folders})
    parts = {split: RawTexts(task) for split in folders}
    for split, folder in folders.items():
        for class_name in names:
            files = folder.folders[class_name].all_files() if class_name in folder.folders else []
            files = [name for name in files if name.lower().endswith(".txt")]
            if not files:
                raise TlcError(
                    f"{path}: {split} has no .txt files of class {class_name!r}",
                    hint="Give a table, or a folder for each class with a .txt file for each text, in every split.",
                )
            for name in files:
                _add_file(parts[split], name, member_bytes(path, archive, name), class_name)
    if not names:
        raise TlcError(
            f"{path} has no tables of texts and no folders",
            hint=f"Put {' or '.join(TABLE_SUFFIXES)} there, or a folder for each class with .txt files.",
        )
    return parts


def _add_file(samples: RawTexts, name: str, data: bytes, label: str) -> None:
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode().strip()
    except UnicodeDecodeError as error:
        samples.bad.append(f"{name}: {not_utf8(error)}")
        return
    if not text:
        samples.bad.append(f"{name}: empty")
        return
    samples.keys.append(name)
    samples.texts.append(text)
    samples.labels.append(label)


def _concatenated(path: Path, shards: list[RawTexts]) -> RawTexts:
    first = shards[0]
    for shard in shards[1:]:
        if shard.paired != first.paired:
            raise TlcError(f"{path}: some shards have pairs of texts, others single ones", hint="Write them alike.")
        for name in ("keys", "texts", "pairs", "labels", "words", "tags", "answers", "bad"):
            getattr(first, name).extend(getattr(shard, name))
    return first


def file_bytes(path: Path) -> bytes:
    """Return the file's content. Raises TlcError when it cannot be had."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlcError(
            f"{path} cannot be read: {error.strerror}", hint="Check that it is there and readable."
        ) from error


def member_bytes(path: Path, archive: Archive, name: str) -> bytes:
    """Return the content of file `name` of the archive at `path`. Raises TlcError when it cannot be had."""
    try:
        return archive.read(name)
    except OSError as error:
        raise TlcError(f"{path}: {name} cannot be read: {error}", hint="Repair or remove it.") from error
