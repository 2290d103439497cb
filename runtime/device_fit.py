"""Whether a device can take a bundle, and what has to go along with it: decided from facts, before anything is sent."""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tlc.runtime.bundle_manifest import Manifest
from tlc.runtime.device_facts import DeviceFacts
from tlc.runtime.elf import Program, read_program, require_fitting
from tlc.runtime.errors import TlcError
from tlc.runtime.plan import version_key
from tlc.runtime.target import Target

_CLONE = Path(__file__).resolve().parent.parent
_HOW_TO_BUILD = "Build tlc-run for it (docs/cross.md) and name it with --runner."
_ENGINE_SPARE_BYTES = 64 << 20
_WORKSPACE_RATIO = 0.25
"""Share of the memory available that an engine's workspace may take: TensorRT's own default is all of it."""


@dataclass(frozen=True, slots=True)
class RuntimeLibrary:
    """The library that runs the model on a device without an engine."""

    option: str
    """Of tlc-run."""
    local: Path | None
    """To be sent; None: it is there already."""
    remote: str | None
    """Where it is there; None: it is sent."""


def find_runner(given: Path | None, facts: DeviceFacts, *, clone: Path = _CLONE) -> Program:
    """Return the tlc-run to send: the one that was `given`, else one that was built in this clone and fits the device.

    Raises TlcError where it does not run there, and says how to build one.
    """
    if given is not None:
        program = read_program(given)
        require_fitting(program, host=facts.host, machine=facts.machine, glibc=facts.glibc, hint=_HOW_TO_BUILD)
        return program
    built = [read_program(path) for path in sorted(clone.glob("build/*/tlc-run"))]
    fitting = [program for program in built if program.machine == facts.machine]
    if not fitting:
        there = ", ".join(f"{program.path} for {program.machine}" for program in built)
        raise TlcError(
            f"{facts.host} is {facts.machine}, and there is no tlc-run for it in {clone / 'build'}"
            + (f", only {there}." if there else "."),
            hint=_HOW_TO_BUILD,
        )
    # The one that asks for the oldest C library runs where any of them does.
    program = min(fitting, key=lambda one: one.glibc or (0, 0))
    require_fitting(program, host=facts.host, machine=facts.machine, glibc=facts.glibc, hint=_HOW_TO_BUILD)
    return program


def find_library(manifest: Manifest, facts: DeviceFacts, given: Path | None) -> RuntimeLibrary | None:
    """Return the library that runs the bundle's model, as `library_for` its target."""
    return library_for(manifest.target, facts, given)


def library_for(target: Target, facts: DeviceFacts, given: Path | None) -> RuntimeLibrary | None:
    """Return the library that runs the target's models: the `given` one, else the device's own, else this machine's.

    None where an engine is built. Raises TlcError where there is none that fits the device.
    """
    runtime = target.runtime
    if runtime == "tensorrt":
        return None
    option = "--ort-lib" if runtime == "onnxruntime" else "--openvino-lib"
    there = facts.libraries.get(runtime, ())
    if runtime == "openvino":  # its library loads others that lie beside it
        if not there:
            raise TlcError(
                f"{facts.host} has no OpenVINO, which the target {target.name} runs in.",
                hint="Install it there (libopenvino_c.so), or choose another target.",
            )
        return RuntimeLibrary(option, None, there[0].path)
    how = (
        f"Take libonnxruntime.so of the wheel for {facts.machine} (`pip download onnxruntime --no-deps "
        f"--only-binary :all: --platform manylinux_2_28_{facts.machine}`; capi/ in it) and name it with --ort-lib."
    )
    if given is not None:
        require_fitting(read_program(given), host=facts.host, machine=facts.machine, glibc=facts.glibc, hint=how)
        return RuntimeLibrary(option, given, None)
    if there:
        return RuntimeLibrary(option, None, there[0].path)
    here = _own_onnxruntime()
    if here is not None and read_program(here).machine == facts.machine:
        require_fitting(read_program(here), host=facts.host, machine=facts.machine, glibc=facts.glibc, hint=how)
        return RuntimeLibrary(option, here, None)
    raise TlcError(f"{facts.host} has no ONNX Runtime, and this machine none for {facts.machine}.", hint=how)


def require_tensorrt(manifest: Manifest, facts: DeviceFacts) -> None:
    """Raise TlcError unless the device can build the engine that the bundle's target asks for."""
    wanted = manifest.target.tensorrt
    if manifest.target.runtime != "tensorrt" or wanted is None:
        return
    if facts.tensorrt is None:
        raise TlcError(
            f"{facts.host} has no TensorRT, the bundle is for {manifest.target.name} with TensorRT {wanted.version}.",
            hint="On a Jetson: sudo apt install tensorrt (it is part of JetPack); elsewhere install that release.",
        )
    if version_key(facts.tensorrt)[:2] < version_key(wanted.version)[:2]:
        jetpack = f" (JetPack {facts.jetpack})" if facts.jetpack else ""
        raise TlcError(
            f"{facts.host} has TensorRT {facts.tensorrt}{jetpack}, too old for a bundle made for {wanted.version}.",
            hint="Update the device, or pack the model for a target with its release: tlc targets",
        )


def require_backend(manifest: Manifest, host: str, info: bytes) -> None:
    """Raise TlcError unless tlc-run on the device, which printed `info` as JSON, can run what the bundle is for."""
    runtime = manifest.target.runtime
    try:
        backend = json.loads(info)["backends"].get(runtime)
        problem = "" if backend is None else str(backend["problem"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TlcError(
            f"tlc-run on {host} does not say what it can run: {info[:100]!r}",
            hint="Send a tlc-run of this tlc: --runner.",
        ) from error
    if backend is None:
        raise TlcError(f"this tlc-run was built without {runtime}, which the bundle is for.", hint=_HOW_TO_BUILD)
    if problem:
        raise TlcError(
            f"{runtime} does not work on {host}: {problem}", hint="Put that right there, and run this again."
        )


def require_space(facts: DeviceFacts, needed_bytes: int, folder: str) -> None:
    """Raise TlcError unless `needed_bytes` more fit into `folder` on the device."""
    free = facts.disk_free_bytes
    if free is not None and free < needed_bytes:
        raise TlcError(
            f"{facts.host} has not enough space for {folder}: {needed_bytes:,} bytes needed, {free:,} bytes free.",
            hint="Free some there, or choose a folder on another disk with --remote-dir.",
        )


def engine_bytes(manifest: Manifest) -> int:
    """Return the space to keep for an engine; 0 where none is built."""
    if manifest.target.runtime != "tensorrt":
        return 0
    return manifest.files[manifest.model].size_bytes + _ENGINE_SPARE_BYTES


def workspace_bytes(manifest: Manifest, facts: DeviceFacts) -> int:
    """Return the largest workspace that an engine may be built with: the bundle's, within what the device has."""
    wanted = manifest.target.tensorrt
    limit = manifest.build.workspace_bytes or (wanted.workspace_bytes if wanted is not None else 1 << 30)
    available = facts.memory_available_bytes
    return limit if available is None else min(limit, int(_WORKSPACE_RATIO * available))


def _own_onnxruntime() -> Path | None:
    found = find_spec("onnxruntime")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "capi"
    return next(iter(sorted(folder.glob("libonnxruntime.so*"))), None)
