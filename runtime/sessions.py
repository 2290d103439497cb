"""The session that a file and a target ask for."""

from contextlib import suppress
from importlib import import_module
from pathlib import Path

from tlc.runtime.errors import TlcError
from tlc.runtime.session import OrtSession, Session
from tlc.runtime.target import Target

ENGINES = (".plan", ".engine")
"""Suffixes of TensorRT engines."""


def open_session(path: Path, target: Target | None = None, *, threads: int = 1) -> Session:
    """Return `path` ready to run in the target's runtime, on `threads` threads.

    Without a target, an ONNX file runs in ONNX Runtime's CPU provider.
    Engines (`.plan`, `.engine`) always run in TensorRT. An ONNX file and a target whose runtime is TensorRT do not go
    together: the file becomes an engine first. Nothing falls back to another runtime.

    Raises TlcError for another suffix, and what the session itself raises.
    """
    suffix = path.suffix.lower()
    if suffix in ENGINES:
        from tlc.runtime.tensorrt import TensorRTSession

        return TensorRTSession(path)
    if suffix != ".onnx":
        raise TlcError(
            f"{path} is neither an ONNX file nor an engine: its name ends in {suffix or 'no suffix'}",
            hint="Give a file whose name ends in .onnx, .plan or .engine.",
        )
    if target is None:
        return OrtSession(path, threads=threads)
    if target.runtime == "openvino":
        from tlc.runtime.openvino import OpenVinoSession

        return OpenVinoSession(path, threads=threads)
    if target.runtime == "tensorrt":
        raise TlcError(
            f"{path} is ONNX, and target {target.name} runs engines",
            hint=f"Build one on the device: tlc build {path} --target {target.name}",
        )
    return OrtSession(path, threads=threads, provider=target.provider)


def import_runtime(path: Path, target: Target | None = None) -> None:
    """Import what `open_session` would, where that is there, so that a later call finds it loaded."""
    if path.suffix.lower() in ENGINES:
        _import_if_there("tensorrt")
    elif target is not None and target.runtime == "openvino":
        _import_if_there("openvino")


def _import_if_there(module: str) -> None:
    with suppress(ImportError):  # opening the session says so in its own words
        import_module(module)
