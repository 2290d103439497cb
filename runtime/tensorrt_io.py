"""Loading engines, and the two ways in which TensorRT takes inputs and outputs: by name from 8.5 on, by index before.

`trt` is the module `tensorrt`. Everything is asked for by name, never by an enumeration's number: numbers moved between
8, 10 and 11.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from tlc.runtime.errors import TlcError
from tlc.runtime.plan import ProfileShapes, TensorRecord

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


class EngineIo(Protocol):
    """Inputs and outputs of an engine and one execution context of it."""

    inputs: list[TensorRecord]
    outputs: list[TensorRecord]

    def profile(self, name: str) -> ProfileShapes:
        """Return what shapes of an input the first profile takes."""

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        """Choose the shape of an input."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that the context now gives a tensor; -1 where it is not decided."""

    def bind(self, name: str, address: int) -> None:
        """Say where a tensor lies in GPU memory."""

    def enqueue(self, stream: int) -> bool:
        """Queue one inference; False when TensorRT refuses."""


_LOG: list[str] = []
_LOGGERS: list[Any] = []


def process_logger(trt: Any) -> tuple[Any, list[str]]:
    """Return TensorRT's logger of this process, which prints nothing, and the lines that it keeps, emptied.

    TensorRT has one for the whole process: another one is only warned of. Lines begin with "error: " or "warning: ".
    """
    if not _LOGGERS:
        _LOGGERS.append(_make_logger(trt))
    _LOG.clear()
    return _LOGGERS[0], _LOG


def _make_logger(trt: Any) -> Any:
    kept = {
        trt.ILogger.Severity.INTERNAL_ERROR: "error",
        trt.ILogger.Severity.ERROR: "error",
        trt.ILogger.Severity.WARNING: "warning",
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            # pybind11 refuses a subclass whose constructor does not call that of its base directly.
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in kept:
                _LOG.append(f"{kept[severity]}: {msg}")

    return Logger()


def load_engine(
    plan: bytes, name: str, *, allow_host_code: bool = False, dla_core: int | None = None
) -> tuple[Any, Any]:
    """Return (runtime, engine) of a plan's bytes; the runtime must outlive the engine.

    `allow_host_code` is for version-compatible plans, which carry a runtime of their own and run it. A plan is trusted
    like a program: load only what you built. Raises TlcError with TensorRT's errors when it is refused. Call it only
    after `require_gpu`.
    """
    trt = trt_module()
    logger, _ = process_logger(trt)
    runtime = trt.Runtime(logger)
    if allow_host_code:
        if not hasattr(runtime, "engine_host_code_allowed"):
            raise TlcError(
                f"{name} is a version-compatible plan, and TensorRT {trt.__version__} cannot load one",
                hint="Version-compatible plans run from TensorRT 8.6 on: build without --version-compatible.",
            )
        runtime.engine_host_code_allowed = True
    if dla_core is not None:
        runtime.DLA_core = dla_core
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise TlcError(
            f"TensorRT {trt.__version__} refuses {name}{said()}",
            hint="Plans fit one release and one kind of GPU: build it again here with tlc build.",
        )
    return runtime, engine


def trt_module() -> Any:
    """Return the module `tensorrt`, imported when it is first wanted."""
    import tensorrt

    return tensorrt


def said() -> str:
    """Return TensorRT's latest errors for the end of a message: ": …", or nothing."""
    errors = [line.removeprefix("error: ") for line in _LOG if line.startswith("error: ")]
    return f": {'; '.join(errors[-3:])}" if errors else ""


def engine_io(trt: Any, engine: Any, context: Any) -> EngineIo:
    """Return the engine's inputs and outputs in the way that this TensorRT offers."""
    return NamedIo(trt, engine, context) if hasattr(engine, "num_io_tensors") else IndexedIo(trt, engine, context)


def numpy_dtype(trt: Any, dtype: Any, name: str) -> str:
    """Return numpy's name of a TensorRT type. Raises TlcError for one that numpy lacks."""
    for member, known in _DTYPES.items():
        if dtype == getattr(trt.DataType, member, None):
            return known
    raise TlcError(
        f"the engine's tensor {name} is {dtype}, and only {', '.join(_DTYPES.values())} are supported at its boundary",
        hint="Keep inputs and outputs in float32 when exporting.",
    )


class NamedIo:
    """TensorRT 8.5 and later."""

    def __init__(self, trt: Any, engine: Any, context: Any) -> None:
        self._engine, self._context = engine, context
        self.inputs: list[TensorRecord] = []
        self.outputs: list[TensorRecord] = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            shape = [int(dim) for dim in engine.get_tensor_shape(name)]
            record = TensorRecord(name=name, shape=shape, dtype=numpy_dtype(trt, engine.get_tensor_dtype(name), name))
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs).append(record)

    def profile(self, name: str) -> ProfileShapes:
        """Return what shapes of an input the first profile takes."""
        fixed = _fixed(self.inputs, name)
        return fixed or _profile(self._engine.get_tensor_profile_shape(name, 0))

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        """Choose the shape of an input."""
        _require(self._context.set_input_shape(name, tuple(shape)), name, shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that the context now gives a tensor."""
        return tuple(int(dim) for dim in self._context.get_tensor_shape(name))

    def bind(self, name: str, address: int) -> None:
        """Say where a tensor lies in GPU memory."""
        self._context.set_tensor_address(name, address)

    def enqueue(self, stream: int) -> bool:
        """Queue one inference."""
        return bool(self._context.execute_async_v3(stream))


class IndexedIo:
    """TensorRT before 8.5: tensors have numbers, and the addresses are a list."""

    def __init__(self, trt: Any, engine: Any, context: Any) -> None:
        self._engine, self._context = engine, context
        self._index: dict[str, int] = {}
        self.inputs: list[TensorRecord] = []
        self.outputs: list[TensorRecord] = []
        for index in range(engine.num_bindings):
            name = engine.get_binding_name(index)
            self._index[name] = index
            shape = [int(dim) for dim in engine.get_binding_shape(index)]
            record = TensorRecord(name=name, shape=shape, dtype=numpy_dtype(trt, engine.get_binding_dtype(index), name))
            (self.inputs if engine.binding_is_input(index) else self.outputs).append(record)
        self._addresses = [0] * len(self._index)

    def profile(self, name: str) -> ProfileShapes:
        """Return what shapes of an input the first profile takes."""
        fixed = _fixed(self.inputs, name)
        return fixed or _profile(self._engine.get_profile_shape(0, self._index[name]))

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        """Choose the shape of an input."""
        _require(self._context.set_binding_shape(self._index[name], tuple(shape)), name, shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that the context now gives a tensor."""
        return tuple(int(dim) for dim in self._context.get_binding_shape(self._index[name]))

    def bind(self, name: str, address: int) -> None:
        """Say where a tensor lies in GPU memory."""
        self._addresses[self._index[name]] = address

    def enqueue(self, stream: int) -> bool:
        """Queue one inference."""
        return bool(self._context.execute_async_v2(self._addresses, stream))


def _fixed(inputs: Sequence[TensorRecord], name: str) -> ProfileShapes | None:
    """Return the one shape of an input without open dimensions, which need not be in a profile; None for others."""
    shape = next(tensor.shape for tensor in inputs if tensor.name == name)
    return ProfileShapes(min=shape, opt=shape, max=shape) if min(shape, default=1) >= 0 else None


def _profile(shapes: Sequence[Sequence[int]]) -> ProfileShapes:
    smallest, best, largest = ([int(dim) for dim in shape] for shape in shapes)
    return ProfileShapes(min=smallest, opt=best, max=largest)


def _require(accepted: object, name: str, shape: Sequence[int]) -> None:
    if accepted is False:
        raise TlcError(
            f"TensorRT refuses shape {list(shape)} for input {name}",
            hint="Feed a shape within the engine's profile, or build with other --min-shape and --max-shape.",
        )
