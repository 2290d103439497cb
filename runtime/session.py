"""A model ready to run: `Session` is the role, `OrtSession` plays it with ONNX Runtime."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _ort_errors

from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.target import PROVIDERS, Provider
from tlc.runtime.tensor import TensorSpec

S = TypeVar("S", bound="Session")

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
_START_ERRORS: tuple[type[Exception], ...] = (*_ORT_ERRORS, RuntimeError)  # TensorRT's plug-ins raise the latter
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in ("float16", "int8", "int16", "int32", "int64", "bool")},
    **{f"tensor({name})": name for name in ("uint8", "uint16", "uint32", "uint64")},
}
_NO_DATA_FILE = ("External data", "cannot get file size")
_WHAT_IS_MISSING = "What it printed above names what is missing; `tlc doctor` shows what this machine has."
_NOT_ONNX = ("Protobuf parsing failed", "No graph was found", "ModelProto does not have a graph")
_UNKNOWN_OP = ("No Op registered", "not a registered function/op", "is under development", "No opset import")


class Session(ABC):
    """Runs a model whose inputs and outputs are numpy arrays. Closes at the end of a `with`."""

    _inputs: tuple[TensorSpec, ...]
    _outputs: tuple[TensorSpec, ...]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of every input that `run` needs, in the file's order; "?" is an unnamed open size."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of every output that `run` returns, in the file's order."""
        return self._outputs

    @property
    @abstractmethod
    def runtime(self) -> str:
        """What runs the model, with its version: `onnxruntime 1.31.1`."""

    @abstractmethod
    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return all outputs by name for `feeds`, one array per input name."""

    @abstractmethod
    def close(self) -> None:
        """Free the model, which cannot run afterwards; a second call does nothing."""

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class OrtSession(Session):
    """An ONNX file in ONNX Runtime: all graph optimisations, one operator after the other.

    `threads` work on one operator. `provider` runs every node: where it does not, because its libraries did not load or
    it has no kernel, ONNX Runtime would run the rest on the CPU and say nothing; here that is an error, unless
    `allow_cpu_nodes`. Numbers are those of the file: float32 is not computed in bfloat16 or TF32.
    With `profile`, every node is timed, and `end_profiling` writes a file whose name begins so.

    Raises UsageError below one thread and TlcError for a file that is missing, broken, or needs what this ONNX Runtime
    does not have, for a provider that this ONNX Runtime lacks or cannot start, and for nodes left to the CPU.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        provider: Provider = "cpu",
        allow_cpu_nodes: bool = False,
        profile: Path | None = None,
    ) -> None:
        check_file(path, threads)
        self._path = path
        self._provider = provider
        self._session: Any = _opened(path, threads, provider, allow_cpu_nodes, profile)
        self._placement = _placement(self._session)
        self._inputs = tuple(_spec(path, "input", arg) for arg in self._session.get_inputs())
        self._outputs = tuple(_spec(path, "output", arg) for arg in self._session.get_outputs())
        self._output_names = [spec.name for spec in self._outputs]
        # What the check before each run compares with, made once: it is inside every latency that is measured.
        self._expected = expected_feeds(self._inputs)

    @property
    def runtime(self) -> str:
        """Version, and the provider where it is not the CPU: `onnxruntime 1.31.1, cuda`."""
        return f"onnxruntime {ort.__version__}{'' if self._provider == 'cpu' else f', {self._provider}'}"

    @property
    def placement(self) -> dict[str, int] | None:
        """Nodes of the file by the provider that runs them; None for the CPU, and before ONNX Runtime 1.24."""
        return None if self._placement is None else dict(self._placement)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return all outputs by name.

        Raises TlcError when a name, dtype or shape in `feeds` is not the model's, and when the model fails on it.
        """
        if self._session is None:
            raise RuntimeError(f"the session of {self._path} is closed")
        check_feeds(self._path, self._inputs, self._expected, feeds)
        try:
            values = self._session.run(self._output_names, feeds)
        except _ORT_ERRORS as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise TlcError(
                f"{self._path} failed on {shapes}: {_detail(error)}",
                hint="Try a batch of 1; a file exported for another batch size has to be exported again.",
            ) from error
        return dict(zip(self._output_names, values, strict=True))

    def end_profiling(self) -> Path:
        """Return the file with the times of all runs so far; for a session with `profile`, once."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self._session = None


Expected = dict[str, tuple[np.dtype[Any], TensorSpec]]


def check_file(path: Path, threads: int) -> None:
    """Raise UsageError below one thread, and TlcError where there is no file."""
    if threads < 1:
        raise UsageError(f"threads must be at least 1, got {threads}", hint="Give the number of cores to use.")
    if not path.is_file():
        raise TlcError(f"no model file at {path}", hint="Check the path.")


def expected_feeds(inputs: Sequence[TensorSpec]) -> Expected:
    """Return what `check_feeds` compares with, by input name."""
    return {spec.name: (np.dtype(spec.dtype), spec) for spec in inputs}


def check_feeds(
    path: Path, inputs: Sequence[TensorSpec], expected: Expected, feeds: Mapping[str, NDArray[Any]]
) -> None:
    """Raise TlcError when a name, dtype or shape in `feeds` is not what the model at `path` takes."""
    if feeds.keys() != expected.keys():
        raise TlcError(
            f"{path} takes {_listed(inputs)}, got {', '.join(feeds) or 'nothing'}",
            hint="Feed exactly these inputs by name.",
        )
    for name, (dtype, spec) in expected.items():
        array = feeds[name]
        if array.dtype != dtype or not _fits(array.shape, spec.shape):
            raise TlcError(
                f"{path}: {_listed((spec,))} expected, got {array.dtype} {list(array.shape)}",
                hint="Prepare the input with the preprocessing that is recorded beside the model.",
            )


def zero_feeds(inputs: Sequence[TensorSpec], sizes: Mapping[str, int] | None = None) -> dict[str, NDArray[Any]]:
    """Return zeros for every input: a batch of one, with 1 for each symbolic dimension that `sizes` does not name."""
    known = sizes or {}
    return {
        spec.name: np.zeros(
            [dim if isinstance(dim, int) else known.get(dim, 1) for dim in spec.shape], np.dtype(spec.dtype)
        )
        for spec in inputs
    }


def sample_feeds(
    inputs: Sequence[TensorSpec],
    *,
    batch: int = 1,
    sizes: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> dict[str, NDArray[Any]]:
    """Return feeds to measure with, where there are no real ones: normal noise, zeros as tokens, and masks of ones.

    An open first dimension is the batch; `sizes` says how long other open ones are by name, 1 if it does not, and
    `shapes` is the whole shape of an input, by its name.

    Raises UsageError for a name or shape that no input has, and for another batch than a file was exported for.
    """
    known, given = sizes or {}, shapes or {}
    rng = np.random.default_rng(seed)
    _require_known(inputs, known, given)
    feeds: dict[str, NDArray[Any]] = {}
    for spec in inputs:
        shape = tuple(given.get(spec.name) or _sized(spec, batch, known))
        if not _fits(shape, spec.shape):
            raise UsageError(
                f"input {_listed((spec,))} cannot have shape {'x'.join(map(str, shape))}",
                hint="Give as many sizes as it has, and its own where they are fixed; --batch is the first.",
            )
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            feeds[spec.name] = rng.standard_normal(shape).astype(dtype)
        else:
            feeds[spec.name] = np.full(shape, dtype == np.bool_ or "mask" in spec.name, dtype)
    return feeds


def assumed_sizes(
    inputs: Sequence[TensorSpec], sizes: Mapping[str, int], shapes: Mapping[str, Sequence[int]]
) -> list[str]:
    """Return the open dimensions, the batch aside, that `sample_feeds` takes to be 1 because nothing says otherwise."""
    own = [spec.shape[1:] for spec in inputs if spec.name not in shapes]
    return sorted({dim for shape in own for dim in shape if isinstance(dim, str) and dim not in sizes})


def _sized(spec: TensorSpec, batch: int, sizes: Mapping[str, int]) -> list[int]:
    return [
        dim
        if isinstance(dim, int) and not (place == 0 and batch > 1)
        else sizes.get(str(dim), batch if place == 0 else 1)
        for place, dim in enumerate(spec.shape)
    ]


def _require_known(inputs: Sequence[TensorSpec], sizes: Mapping[str, int], shapes: Mapping[str, Sequence[int]]) -> None:
    names = {spec.name for spec in inputs}
    dims = {dim for spec in inputs for dim in spec.shape if isinstance(dim, str)}
    unknown = sorted((set(sizes) - dims) | (set(shapes) - names))
    if unknown:
        raise UsageError(
            f"the model has no input or open dimension {', '.join(unknown)}: it takes {_listed(inputs)}",
            hint="Give shapes by the name of an input, and sizes by that of an open dimension.",
        )


def _opened(path: Path, threads: int, provider: Provider, allow_cpu_nodes: bool, profile: Path | None) -> Any:
    name, package = PROVIDERS[provider]
    if name not in ort.get_available_providers():
        raise TlcError(
            f"this ONNX Runtime {ort.__version__} has no {name}, only {', '.join(ort.get_available_providers())}",
            hint=f"Put the build that has it in its place: pip uninstall onnxruntime, then pip install {package}.",
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Errors come as exceptions; ONNX Runtime would print them to stderr as well.
    options.log_severity_level = 4
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    # Workers stop spinning when a run returns, so they cannot steal time from the next session in an interleaved run.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if provider == "cpu":
        return _loaded_by_cpu(path, options, name)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not allow_cpu_nodes and not _RECORDS_PLACEMENT:
        # Makes a session with a node on the CPU an error, in fewer words than a count of them has.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = _loaded(path, options, [(name, _provider_options(path, provider, threads))])
    if name not in session.get_providers():
        raise TlcError(
            f"ONNX Runtime {ort.__version__} could not start {name}, and would run {path} on the CPU instead",
            hint=_WHAT_IS_MISSING,
        )
    left = [node.op_type for part in _parts(session) if part.ep_name != name for node in part.get_nodes()]
    if left and not allow_cpu_nodes:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(left).most_common(5))
        total = sum(len(part.get_nodes()) for part in _parts(session))
        raise TlcError(
            f"{name} leaves {len(left)} of {total} nodes of {path} to the CPU: {kinds}",
            hint="A latency of that mixture is not the provider's; choose another target, or export without them.",
        )
    return session


_RECORDS_PLACEMENT = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")
"""From ONNX Runtime 1.24 on."""


def _loaded_by_cpu(path: Path, options: ort.SessionOptions, name: str) -> Any:
    """Load the file; without fusing Q/DQ pairs where that fails.

    With float16 scales ONNX Runtime (1.31) fuses some pairs to integer operators that it does not have for float16, and
    then refuses its own graph. Such files are made for GPUs; unfused, the same numbers come out, only slower.
    """
    try:
        return _loaded(path, options, [name])
    except TlcError as error:
        if not _FUSED_HALF.search(error.message):
            raise
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return _loaded(path, options, [name])


_FUSED_HALF = re.compile(r"tensor\(float16\).* of operator \(QLinear")


def _loaded(path: Path, options: ort.SessionOptions, providers: list[Any]) -> Any:
    try:
        # Without enable_fallback=0, a provider that fails while it starts is replaced by the CPU.
        return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except _START_ERRORS as error:
        detail = _detail(error)
        raise TlcError(f"ONNX Runtime {ort.__version__} cannot load {path}: {detail}", hint=_hint(detail)) from error


def _provider_options(path: Path, provider: Provider, threads: int) -> dict[str, str]:
    """Return what makes a provider compute in the file's own precisions, on the threads given.

    https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#use_tf32
    https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html
    https://onnxruntime.ai/docs/execution-providers/OpenVINO-ExecutionProvider.html
    """
    if provider == "cuda":
        return {"use_tf32": "0"}
    if provider == "tensorrt":
        # TensorRT reads Q/DQ nodes only with INT8 enabled. Operator names stand in the file as they are.
        return {"trt_int8_enable": "1"} if b"DequantizeLinear" in path.read_bytes() else {}
    return {"device_type": "CPU", "precision": "FP32", "num_of_threads": str(threads), "num_streams": "1"}


def _parts(session: Any) -> list[Any]:
    return list(session.get_provider_graph_assignment_info()) if _RECORDS_PLACEMENT else []


def _placement(session: Any) -> dict[str, int] | None:
    if session.get_providers() == ["CPUExecutionProvider"] or not _RECORDS_PLACEMENT:
        return None
    counts: Counter[str] = Counter()
    for part in _parts(session):
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)


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
    if "assigned to the default CPU EP" in detail:
        return "The provider did not start, or lacks some of its operators: see `tlc doctor`, or choose another target."
    if "GPU requirements" in detail:
        return _WHAT_IS_MISSING
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
