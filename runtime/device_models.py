"""Sends models to a device, each under the hash of its content, so that none is sent twice."""

from pathlib import Path

from tlc.runtime.artifact import sha256_file
from tlc.runtime.bundle import is_bundle, read_manifest
from tlc.runtime.errors import TlcError
from tlc.runtime.model_files import model_files, model_sha256
from tlc.runtime.plan import sidecar
from tlc.runtime.remote import Remote
from tlc.runtime.sessions import ENGINES


def place_model(remote: Remote, base: str, path: Path) -> str:
    """Send a model, or a file of inputs, with all that belongs to it, unless it is there; return its path there.

    `base` is the absolute path of tlc's folder. A bundle comes to lie where `tlc deploy` has it, beside its engine.
    Raises TlcError for a model with data outside of its folder.
    """
    if is_bundle(path):
        there = f"{base}/bundles/{sha256_file(path)[:16]}/{read_manifest(path).name}.tlc"
        remote.push(path, there)
        return there
    files, digest = model_files(path), model_sha256(path)
    if path.suffix in ENGINES and sidecar(path).is_file():
        files.append(sidecar(path))
        digest = sha256_file(sidecar(path))  # it holds the plan's own
    folder = f"{base}/models/{digest[:16]}"
    for file in files:
        name = file.relative_to(path.parent)
        if ".." in name.parts:
            raise TlcError(f"{path} keeps data outside of its folder: {name}", hint="Put all into one folder.")
        remote.push(file, f"{folder}/{name.as_posix()}")
    return f"{folder}/{path.name}"
