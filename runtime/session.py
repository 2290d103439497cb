"""A model ready to run: `Session` is the role, `OrtSession` plays it with ONNX Runtime on the CPU."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _ort_errors

from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.tensor import TensorSpec

_ORT_ERRORS: tuple[type[Exception], ...] = (
    _ort_errors.EPFail,
    _ort_errors.EngineError,
    _ort_errors.Fail,
    _ort_errors.InvalidArgument,
    _ort_errors.InvalidGraph,
    _ort_errors.InvalidProtobuf,
    _ort_errors.ModelLoaded,
    _ort_errors.NoModel,
    _ort_errors.NoSuchFile,
    _ort_errors.NotImplemented,
    _ort_errors.RuntimeException,
)
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in ("float16", "int8", "int16", "int32", "int64", "bool")},
    **{f"tensor({name})": name for name in ("uint8", "uint16", "uint32", "uint64")},
}
_NO_DATA_FILE = ("External data", "cannot get file size")
_NOT_ONNX = ("Protobuf parsing failed", "No graph was found", "ModelProto does not have a graph")
_UNKNOWN_OP = ("No Op registered", "not a registered function/op", "is under development", "No opset import")


class Session(Protocol):
    """Runs a model whose inputs and outputs are numpy arrays."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Every input that `run` needs."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Every output that `run` returns."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return all outputs by name for `feeds`, one array per input name."""

    def close(self) -> None:
        """Free the model; it cannot run afterwards."""

    def __enter__(self) -> "Session": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class OrtSession:
    """An ONNX file in ONNX Runtime's CPU provider: all graph optimisations, one operator after the other.

    `threads` work on one operator. Raises UsageError below one thread and TlcError for a file that is missing, broken,
    or needs what this ONNX Runtime does not have.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}", hint="Give the number of cores to use.")
        if not path.is_file():
            raise TlcError(f"no model file at {path}", hint="Check the path.")
        self._path = path
        self._session: Any = _opened(path, threads)
        self._inputs = tuple(_spec(path, "input", arg) for arg in self._session.get_inputs())
        self._outputs = tuple(_spec(path, "output", arg) for arg in self._session.get_outputs())
        self._output_names = [spec.name for spec in self._outputs]
        # What the check before each run compares with, made once: it is inside every latency that is measured.
        self._expected = {spec.name: (np.dtype(spec.dtype), spec) for spec in self._inputs}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of each input, in the file's order; an empty shape can mean an unknown rank."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of each output, in the file's order."""
        return self._outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return all outputs by name.

        Raises TlcError when a name, dtype or shape in `feeds` is not the model's, and when the model fails on it.
        """
        if self._session is None:
            raise RuntimeError(f"the session of {self._path} is closed")
        self._check(feeds)
        try:
            values = self._session.run(self._output_names, feeds)
        except _ORT_ERRORS as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise TlcError(
                f"{self._path} failed on {shapes}: {_detail(error)}",
                hint="Try a batch of 1; a file exported for another batch size has to be exported again.",
            ) from error
        return dict(zip(self._output_names, values, strict=True))

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self._session = None

    def __enter__(self) -> "OrtSession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        if feeds.keys() != self._expected.keys():
            raise TlcError(
                f"{self._path} takes {_listed(self._inputs)}, got {', '.join(feeds) or 'nothing'}",
                hint="Feed exactly these inputs by name.",
            )
        for name, (dtype, spec) in self._expected.items():
            array = feeds[name]
            if array.dtype != dtype or not _fits(array.shape, spec.shape):
                raise TlcError(
                    f"{self._path}: {_listed((spec,))} expected, got {array.dtype} {list(array.shape)}",
                    hint="Prepare the input with the preprocessing that is recorded beside the model.",
                )


def zero_feeds(inputs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """Return zeros for every input, with 1 for each symbolic dimension: a batch of one."""
    return {
        spec.name: np.zeros([dim if isinstance(dim, int) else 1 for dim in spec.shape], np.dtype(spec.dtype))
        for spec in inputs
    }


def _opened(path: Path, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Errors come as exceptions; ONNX Runtime would print them to stderr as well.
    options.log_severity_level = 4
    # Workers stop spinning when a run returns, so they cannot steal time from the next session in an interleaved run.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _ORT_ERRORS as error:
        detail = _detail(error)
        raise TlcError(f"ONNX Runtime {ort.__version__} cannot load {path}: {detail}", hint=_hint(detail)) from error


def _detail(error: Exception) -> str:
    """Return ONNX Runtime's message without status code, file name and source location, on one line."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^Load model from .*? failed:", "", text)
    text = re.sub(r"^\S+\.(?:h|cc):\d+ .*?\) (?=[A-Z])", "", text)
    return text.strip().rstrip(".")


def _hint(detail: str) -> str:
    if any(sign in detail for sign in _NOT_ONNX):
        return "The file is not ONNX, or was cut short: export or copy it again."
    if any(sign in detail for sign in _UNKNOWN_OP):
        return "Export with a lower opset and without custom operators, or upgrade onnxruntime."
    if "Could not find an implementation" in detail:
        return "The CPU has no kernel for that operator at that type: keep it in float32, or upgrade onnxruntime."
    if any(sign in detail for sign in _NO_DATA_FILE):
        return "Put the model's data file beside it, under the name that it was saved with."
    return "Check the file with onnx.checker.check_model(path, full_check=True), and export it again."


def _spec(path: Path, kind: str, arg: Any) -> TensorSpec:
    if arg.type not in _DTYPES:
        raise TlcError(
            f"{path}: {kind} {arg.name} is {arg.type}, and only numeric tensors are supported",
            hint="Export the model with tensors at its boundary.",
        )
    return TensorSpec(arg.name, tuple("?" if dim is None else dim for dim in arg.shape), _DTYPES[arg.type])


def _fits(shape: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    # ONNX Runtime shows a tensor of unknown rank as (), like a scalar: it alone can tell.
    if not expected:
        return True
    if len(shape) != len(expected):
        return False
    for dim, want in zip(shape, expected, strict=True):  # noqa: SIM110 - a generator costs half a microsecond a run
        if dim != want and not isinstance(want, str):
            return False
    return True


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in specs)
