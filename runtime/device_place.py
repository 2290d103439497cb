"""What is sent to a device, and where it lies there: every file under the hash of its content, sent once."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tlc.runtime.artifact import sha256_file
from tlc.runtime.bundle_manifest import Manifest
from tlc.runtime.deploy_order import Order
from tlc.runtime.device_fit import RuntimeLibrary, engine_bytes
from tlc.runtime.device_job import script
from tlc.runtime.errors import TlcError
from tlc.runtime.remote import Remote

_LIBRARY = "libonnxruntime.so.1"

_BASE = 'mkdir -p "$1" 2>/dev/null && cd "$1" && pwd -P'
_THERE = 'for file; do if [ -e "$file" ]; then echo yes; else echo no; fi; done'
# Only folders of tlc's own: --remote-dir may hold anything else.
_REMOVE_FILES = 'cd "$1" && rm -rf bin lib bundles data models'
_REMOVE_FOLDER = 'cd "$1" && rm -f lock clocks.conf restore.log; cd / && rmdir "$1" 2>/dev/null; true'


@dataclass(frozen=True)
class Place:
    """The files of one deployment, here and on the device; paths there are absolute."""

    base: str
    order: Order
    manifest: Manifest
    bundle_sha256: str
    runner_sha256: str
    library: RuntimeLibrary | None
    library_sha256: str | None
    """Of one that is sent."""
    data: str | None
    """Labelled data; None without any."""

    @property
    def runner(self) -> str:
        """tlc-run."""
        return f"{self.base}/bin/{self.runner_sha256[:16]}/tlc-run"

    @property
    def sent_library(self) -> str:
        """Where a library that is sent comes to lie."""
        return f"{self.base}/lib/{(self.library_sha256 or '')[:16]}/{_LIBRARY}"

    @cached_property
    def library_words(self) -> list[str]:
        """Option of tlc-run and its value; empty where an engine is built."""
        return [] if self.library is None else [self.library.option, self.library.remote or self.sent_library]

    @property
    def folder(self) -> str:
        """Of the bundle; engine and steps are in it."""
        return f"{self.base}/bundles/{self.bundle_sha256[:16]}"

    @property
    def bundle(self) -> str:
        """The bundle."""
        return f"{self.folder}/{self.manifest.name}.tlc"

    def step(self, name: str) -> str:
        """Return the folder of a step."""
        return f"{self.folder}/steps/{name}"

    def missing_bytes(self, remote: Remote, runner: Path) -> int:
        """Return the space that sending takes, and building: of everything that is not there yet."""
        sizes = {
            self.runner: runner.stat().st_size,
            self.bundle: self.order.bundle.stat().st_size,
            f"{self.folder}/{self.manifest.name}.plan": engine_bytes(self.manifest),
        }
        if self.library is not None and self.library.local is not None:
            sizes[self.sent_library] = self.library.local.stat().st_size
        if self.order.data is not None:
            sizes[self.order.data.place(self.base)] = self.order.data.needed_bytes()
        there = remote.check(script(_THERE, *sizes)).split()
        return sum(size for size, found in zip(sizes.values(), there, strict=True) if found == "no")


def place_of(
    remote: Remote,
    base: str,
    order: Order,
    manifest: Manifest,
    bundle_sha256: str,
    runner: Path,
    library: RuntimeLibrary | None,
) -> Place:
    """Return where everything lies on a device whose folder of tlc is `base`."""
    sent = None if library is None or library.local is None else sha256_file(library.local)
    data = None if order.remote_data is None else _absolute(remote, order.remote_data)
    if order.data is not None:
        data = order.data.place(base)
    return Place(base, order, manifest, bundle_sha256, sha256_file(runner), library, sent, data)


def base_folder(remote: Remote, given: str) -> str:
    """Return tlc's folder on the device as an absolute path, made where it is missing; relative ones are in its home.

    Raises TlcError where it cannot be written.
    """
    wanted = _absolute(remote, given)
    done = remote.run(script(_BASE, wanted))
    if done.code:
        raise TlcError(f"{remote.host}: {wanted} cannot be written.", hint="Choose another with --remote-dir.")
    return done.stdout.decode().strip()


def _absolute(remote: Remote, given: str) -> str:
    if given.startswith("/"):
        return given
    return remote.check('printf %s "$HOME"') + "/" + given.removeprefix("~/")


def remove_files(remote: Remote, base: str) -> None:
    """Remove all that tlc has sent or made there; needs the lock."""
    remote.check(script(_REMOVE_FILES, base), timeout_s=600)


def remove_folder(remote: Remote, base: str) -> None:
    """Remove the folder itself, without the lock, unless something else is in it."""
    remote.check(script(_REMOVE_FOLDER, base))
