"""A bundle, NAME.tlc: one file with a model and all that a device needs to run, check and judge it.

docs/bundle.md has the format. `tlc.export.bundle` writes bundles; this module reads them, without torch and onnx.
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tlc.runtime.artifact import replacing_dir, sha256_file, write_bytes
from tlc.runtime.bundle_manifest import MANIFEST, SIGNATURE, TOKENIZER, Manifest
from tlc.runtime.errors import TlcError
from tlc.runtime.stored_zip import StoredZip
from tlc.runtime.target import written_target

__all__ = ["SUFFIX", "TARGET_FILE", "Bundle", "Manifest", "is_bundle", "read_manifest", "unpacked"]

SUFFIX = ".tlc"
TARGET_FILE = "target.toml"
"""The bundle's target, beside an unpacked model."""
_MOST_MANIFEST_BYTES = 1 << 24
_AGAIN = "It was damaged or altered: get the file again from its origin."


class Bundle:
    """An open bundle: its manifest is read and every member that it lists is there. Closes at the end of a `with`.

    Raises TlcError for a file that is no bundle, is of a later version, was altered in its layout, or has members that
    the manifest does not list or lacks some; hashes are checked as members are read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = StoredZip(path)
        try:
            self.manifest_bytes = self._manifest_bytes()
            self.manifest = _parsed(path, self.manifest_bytes)
            self._check_members()
        except BaseException:
            self.close()
            raise

    @property
    def signature(self) -> bytes | None:
        """The OpenSSH signature of the manifest; None where it is not signed."""
        return self._zip.read(SIGNATURE) if SIGNATURE in self._zip.names else None

    def read(self, member: str) -> bytes:
        """Return the content of a member. Raises TlcError where its SHA-256 is not the manifest's."""
        content = self._zip.read(member)
        self._require(member, hashlib.sha256(content).hexdigest())
        return content

    def array(self, member: str) -> NDArray[Any]:
        """Return the array of a .npy member; raises as `read`, and for what is no array."""
        try:
            array: NDArray[Any] = np.load(io.BytesIO(self.read(member)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise TlcError(f"{self.path}: {member} is no .npy: {error}", hint="Pack it again.") from error
        return array

    def verify(self) -> int:
        """Read every member in constant memory and return how many; TlcError for the first with another SHA-256."""
        for member in self.manifest.files:
            digest = hashlib.sha256()
            for chunk in self._zip.chunks(member):
                digest.update(chunk)
            self._require(member, digest.hexdigest())
        return len(self.manifest.files)

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def __enter__(self) -> "Bundle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require(self, member: str, found: str) -> None:
        wanted = self.manifest.files[member].sha256
        if found != wanted:
            raise TlcError(
                f"{self.path}: {member} has SHA-256 {found[:16]}…, the manifest says {wanted[:16]}…", hint=_AGAIN
            )

    def _manifest_bytes(self) -> bytes:
        names = self._zip.names
        if not names or names[0] != MANIFEST:
            raise TlcError(
                f"{self.path} is no bundle: it does not begin with {MANIFEST}",
                hint="Make one: tlc pack FOLDER -o NAME.tlc",
            )
        if self._zip.size_bytes(MANIFEST) > _MOST_MANIFEST_BYTES:
            size = self._zip.size_bytes(MANIFEST)
            raise TlcError(f"{self.path}: {MANIFEST} has {size:,} bytes, above {_MOST_MANIFEST_BYTES:,}", hint=_AGAIN)
        return self._zip.read(MANIFEST)

    def _check_members(self) -> None:
        listed = self.manifest.files
        ordered = [MANIFEST, *sorted(listed), *([SIGNATURE] if SIGNATURE in self._zip.names else [])]
        there = set(self._zip.names)
        if missing := set(ordered) - there:
            raise TlcError(f"{self.path}: the manifest lists {min(missing)}, which is not there", hint=_AGAIN)
        if unknown := there - set(ordered):
            raise TlcError(f"{self.path}: {min(unknown)} is not in the manifest's list", hint=_AGAIN)
        if list(self._zip.names) != ordered:
            raise TlcError(f"{self.path}: its members are in another order than sorted", hint=_AGAIN)
        for name, record in listed.items():
            if self._zip.size_bytes(name) != record.size_bytes:
                size = self._zip.size_bytes(name)
                raise TlcError(
                    f"{self.path}: {name} has {size:,} bytes, the manifest says {record.size_bytes:,}", hint=_AGAIN
                )
        if unlisted := [name for name in self.manifest.members_named if name not in listed]:
            raise TlcError(f"{self.path}: the manifest refers to {unlisted[0]}, which it does not list", hint=_AGAIN)


def _parsed(path: Path, content: bytes) -> Manifest:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise TlcError(f"{path}: {MANIFEST} is not JSON: {error}", hint=_AGAIN) from error
    if not isinstance(value, dict) or value.get("format") != "tlc-bundle":
        raise TlcError(
            f"{path} is no bundle: its manifest says so nowhere", hint="Make one: tlc pack FOLDER -o NAME.tlc"
        )
    if value.get("version") != 1:
        raise TlcError(
            f"{path} is a bundle of version {value.get('version')}; this tlc reads version 1",
            hint="Install a newer tlc.",
        )
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TlcError(f"{path}: {MANIFEST}: {where}: {first['msg']}", hint=_AGAIN) from error


def is_bundle(path: Path) -> bool:
    """Whether the name is that of a bundle."""
    return path.suffix.lower() == SUFFIX


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the bundle at `path`; TlcError as `Bundle`."""
    with Bundle(path) as bundle:
        return bundle.manifest


def unpacked(
    path: Path, *, member: Literal["model", "reference"] = "model", env: Mapping[str, str] = os.environ
) -> Path:
    """Return the ONNX file of the bundle at `path`, in a folder with its tokenizer and target, `TARGET_FILE`.

    The folder is in the user's cache, under $XDG_CACHE_HOME or ~/.cache; it is named by the manifest's SHA-256, and
    made anew where a file in it is not the bundle's. Raises TlcError as `Bundle`, and where there is no reference.
    """
    with Bundle(path) as bundle:
        manifest = bundle.manifest
        sources = {f"{manifest.name}.onnx": manifest.model}
        if manifest.reference is not None:
            sources[f"{manifest.name}-reference.onnx"] = manifest.reference
        if manifest.tokenizer is not None:
            sources[TOKENIZER] = manifest.tokenizer + TOKENIZER
        wanted = manifest.model if member == "model" else manifest.reference
        name = next((name for name, source in sources.items() if source == wanted), None)
        if name is None:
            raise TlcError(f"{path} holds no reference", hint="Pack it with --with-reference.")
        target = written_target(manifest.target).encode()
        digests = {file: manifest.files[source].sha256 for file, source in sources.items()}
        digests[TARGET_FILE] = hashlib.sha256(target).hexdigest()
        base = Path(env.get("XDG_CACHE_HOME") or Path(env.get("HOME", "~")).expanduser() / ".cache")
        folder = base / "tlc" / "bundles" / hashlib.sha256(bundle.manifest_bytes).hexdigest()[:16]
        if not _holds(folder, digests):
            _make_cache(folder.parent)
            try:
                with replacing_dir(folder) as new:
                    for file, source in sources.items():
                        write_bytes(new / file, bundle.read(source))
                    write_bytes(new / TARGET_FILE, target)
            except TlcError:
                if not _holds(folder, digests):  # another process may have been first
                    raise
    return folder / name


def _make_cache(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TlcError(
            f"cannot make {folder} to unpack bundles to: {error.strerror}",
            hint="Set XDG_CACHE_HOME to a folder that you can write.",
        ) from error


def _holds(folder: Path, digests: Mapping[str, str]) -> bool:
    return all((folder / name).is_file() and sha256_file(folder / name) == digest for name, digest in digests.items())
