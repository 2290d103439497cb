"""Makes a device ready to be measured: looks what it is, and sends tlc-run and the runtime's library."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tlc.runtime.artifact import sha256_file
from tlc.runtime.device_facts import facts
from tlc.runtime.device_fit import find_runner, library_for, require_space
from tlc.runtime.device_host import DeviceHost
from tlc.runtime.device_place import base_folder
from tlc.runtime.errors import TlcError
from tlc.runtime.remote import Remote
from tlc.runtime.target import Target, load_target

REMOTE_DIR = "~/.cache/tlc"


@contextmanager
def open_device(
    host: str,
    target: Target | None,
    *,
    engines: bool = False,
    runner: Path | None = None,
    library: Path | None = None,
    remote_dir: str = REMOTE_DIR,
) -> Iterator[DeviceHost]:
    """Yield a device that models of `target` (None: ONNX Runtime on the CPU), or `engines`, can be measured on.

    `runner` is the tlc-run and `library` the libonnxruntime to send; see `tlc.runtime.device_fit` for what is taken
    where they are None. The connection ends with the context. Raises TlcError for a device that does not fit.
    """
    with Remote(host) as remote:
        base = base_folder(remote, remote_dir)
        found = facts(remote, base)
        program = find_runner(runner, found).path
        if engines and found.tensorrt is None:
            raise TlcError(
                f"{host} has no TensorRT, which engines run in", hint="Install it, or measure the ONNX file."
            )
        # Without a target, any that runs in ONNX Runtime will do.
        needed = None if engines else library_for(target or load_target("cpu-x86"), found, library)
        require_space(found, program.stat().st_size, base)
        there = f"{base}/bin/{sha256_file(program)[:16]}/tlc-run"
        remote.push(program, there)
        options: list[str] = []
        if needed is not None:
            place = needed.remote
            if needed.local is not None:
                place = f"{base}/lib/{sha256_file(needed.local)[:16]}/libonnxruntime.so.1"
                remote.push(needed.local, place)
            assert place is not None
            options = [needed.option, place]
        with DeviceHost(remote, there, base, options=options) as device:
            yield device
