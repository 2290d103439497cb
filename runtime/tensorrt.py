"""`TensorRTSession`: an engine as a session. 8.2 to 11 by one code path, without the library at import.

Order matters in three places: the GPU is looked for before the library is touched (`tlc.runtime.gpu`), a graph is
captured only after one run with the same shapes, and the context goes before the engine, the engine before the runtime.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlc.runtime.cuda import Cuda, load_cuda
from tlc.runtime.errors import TlcError
from tlc.runtime.gpu import engine_host, require_gpu, require_tensorrt
from tlc.runtime.inspector import make_profiler
from tlc.runtime.plan import EngineRecord, ProfileShapes, TensorRecord, check_plan, plan_version, read_record
from tlc.runtime.session import Session
from tlc.runtime.tensor import TensorSpec
from tlc.runtime.tensorrt_io import EngineIo, engine_io, load_engine, said, trt_module


@dataclass(slots=True)
class _Buffer:
    """One tensor's memory on both sides."""

    device: int
    host: int
    size_bytes: int
    array: NDArray[Any]
    """The pinned CPU memory, in the tensor's present shape."""


class TensorRTSession(Session):
    """An engine written by `tlc build`, on the first GPU, with a stream of its own.

    Inputs are copied to pinned memory, to the GPU, the engine runs, and outputs come back the same way, all in `run`.
    `threads` has no meaning here. With `graph`, inference is captured once per shape as a CUDA graph, which takes the
    launching of many small kernels off the CPU; where an engine cannot be captured, `notes` says so and it runs
    without. Not for use from several threads.

    Raises TlcError without a GPU or TensorRT, and for a plan that is missing, broken, without sidecar or weights, or
    does not fit this machine.
    """

    def __init__(self, path: Path, *, graph: bool = True) -> None:
        plan_version(path)  # no plan at all: say so before anything is looked for
        host = engine_host()
        gpu = require_gpu(host)
        self._runtime_name = f"tensorrt {require_tensorrt(host)} on {gpu.name}"
        self.record: EngineRecord = read_record(path)
        check_plan(path, self.record, host)
        if self.record.stripped:
            raise TlcError(
                f"{path} was built with --strip: it has no weights, and its outputs would mean nothing",
                hint="Put them in: "
                f"tlc build {self.record.onnx} --target {self.record.target} --into {path} -o model.plan",
            )
        self._path = path
        self._notes: list[str] = []
        self._wants_graph = graph
        self._graph: int | None = None
        self._shapes: tuple[tuple[int, ...], ...] = ()
        self._buffers: dict[str, _Buffer] = {}
        self._gpu_ms: float | None = None
        self._runtime, self._engine = load_engine(
            path.read_bytes(),
            str(path),
            allow_host_code=self.record.version_compatible,
            dla_core=self.record.dla_core,
        )
        self._context: Any = self._engine.create_execution_context()
        if self._context is None:
            raise TlcError(
                f"TensorRT cannot make an execution context of {path}",
                hint="GPU memory is the usual reason: stop what else uses it.",
            )
        self._cuda: Cuda = load_cuda()
        self._io: EngineIo | None = engine_io(trt_module(), self._engine, self._context)
        self._profiles = {tensor.name: self._io.profile(tensor.name) for tensor in self._io.inputs}
        self._inputs = tuple(_spec(tensor) for tensor in self._io.inputs)
        self._outputs = tuple(_spec(tensor) for tensor in self._io.outputs)
        self._stream = self._cuda.create_stream()
        self._events = (self._cuda.create_event(), self._cuda.create_event())

    @property
    def runtime(self) -> str:
        """Version of TensorRT, and the GPU: `tensorrt 10.3.0 on Orin`."""
        return self._runtime_name

    @property
    def profiles(self) -> dict[str, ProfileShapes]:
        """Smallest, best and largest shape of each input."""
        return self._profiles

    @property
    def last_gpu_ms(self) -> float | None:
        """GPU time of the last run without the copies, by CUDA events; None before the first."""
        return self._gpu_ms

    @property
    def uses_graph(self) -> bool:
        """Whether the last run was one launch of a CUDA graph."""
        return self._graph is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not as asked for, such as a CUDA graph that could not be captured."""
        return tuple(self._notes)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return all outputs by name.

        Raises TlcError when a name, dtype or shape in `feeds` is not the engine's, and when inference fails.
        """
        io = self._open()
        self._check(feeds)
        shapes = tuple(feeds[spec.name].shape for spec in self._inputs)
        if shapes != self._shapes:
            self._prepare(io, shapes)
        for spec in self._inputs:
            buffer = self._buffers[spec.name]
            np.copyto(buffer.array, feeds[spec.name])
            self._cuda.copy_to_device(buffer.device, buffer.host, buffer.array.nbytes, self._stream)
        start, end = self._events
        self._cuda.record(start, self._stream)
        if self._graph is None:
            self._enqueue(io)
        else:
            self._cuda.launch(self._graph, self._stream)
        self._cuda.record(end, self._stream)
        for spec in self._outputs:
            buffer = self._buffers[spec.name]
            self._cuda.copy_to_host(buffer.host, buffer.device, buffer.array.nbytes, self._stream)
        self._cuda.synchronize(self._stream)
        self._gpu_ms = self._cuda.elapsed_ms(start, end)
        return {spec.name: self._buffers[spec.name].array.copy() for spec in self._outputs}

    def inspect(self) -> str:
        """Return the engine inspector's JSON."""
        trt = trt_module()
        self._open()
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def layer_times_ms(self, feeds: Mapping[str, NDArray[Any]], *, runs: int = 20) -> dict[str, float]:
        """Return each layer's median time over `runs` runs, by the layer's name.

        A profiler measures layer by layer, so the sum is more than `last_gpu_ms`. It stays in the context: close the
        session afterwards.
        """
        io = self._open()
        self.run(feeds)
        self._drop_graph()
        profiler = make_profiler(trt_module())
        self._context.profiler = profiler
        for _ in range(runs):
            # Emitted by the enqueue itself, which then waits for the GPU: a capture would not do that.
            self._enqueue(io)
            self._cuda.synchronize(self._stream)
        return {name: float(np.median(times)) for name, times in profiler.times_ms.items()}

    def close(self) -> None:
        """Free the engine and its memory; a second call does nothing."""
        if self._io is None:
            return
        self._cuda.synchronize(self._stream)
        self._drop_graph()
        for buffer in self._buffers.values():
            self._free(buffer)
        self._buffers.clear()
        for event in self._events:
            self._cuda.destroy_event(event)
        self._cuda.destroy_stream(self._stream)
        self._io = None
        self._context = None
        self._engine = None
        self._runtime = None

    def _open(self) -> EngineIo:
        if self._io is None:
            raise RuntimeError(f"the session of {self._path} is closed")
        return self._io

    def _prepare(self, io: EngineIo, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Choose shapes, size the buffers for them, and capture the graph."""
        self._drop_graph()
        self._shapes = ()
        for spec, shape in zip(self._inputs, shapes, strict=True):
            io.set_shape(spec.name, shape)
        for spec in (*self._inputs, *self._outputs):
            shape = io.shape(spec.name)
            if min(shape, default=1) < 0:
                raise TlcError(
                    f"{self._path}: the shape of output {spec.name} depends on the data: {list(shape)}",
                    hint="Leave such operators (NonZero, NonMaxSuppression) out of the exported graph.",
                )
            self._fit(spec, shape)
            io.bind(spec.name, self._buffers[spec.name].device)
        # Deferred work of a new shape must be done before a capture: TensorRT's guide, "CUDA Graphs".
        self._enqueue(io)
        self._cuda.synchronize(self._stream)
        self._shapes = shapes
        if self._wants_graph:
            self._graph = self._captured(io)

    def _fit(self, spec: TensorSpec, shape: tuple[int, ...]) -> None:
        dtype = np.dtype(spec.dtype)
        count = int(np.prod(shape, dtype=np.int64))
        needed = max(1, count * dtype.itemsize)  # nothing can be allocated for no elements, but an address is needed
        old = self._buffers.get(spec.name)
        if old is None or old.size_bytes < needed:
            if old is not None:
                self._free(self._buffers.pop(spec.name))
            device = self._cuda.malloc(needed)
            old = _Buffer(device, self._cuda.malloc_host(needed), needed, np.empty(0, dtype))
            self._buffers[spec.name] = old
        memory = (ctypes.c_char * old.size_bytes).from_address(old.host)
        old.array = np.frombuffer(memoryview(memory), dtype, count).reshape(shape)

    def _captured(self, io: EngineIo) -> int | None:
        graph = 0
        try:
            self._cuda.begin_capture(self._stream)
            try:
                self._enqueue(io)
            finally:
                graph = self._cuda.end_capture(self._stream)
            return self._cuda.instantiate(graph)
        except TlcError as error:
            self._notes.append(f"No CUDA graph, every kernel is launched on its own: {error.message}")
            return None
        finally:
            if graph:
                self._cuda.destroy_graph(graph)

    def _enqueue(self, io: EngineIo) -> None:
        if not io.enqueue(self._stream):
            shapes = ", ".join(f"{spec.name} {list(io.shape(spec.name))}" for spec in self._inputs)
            raise TlcError(
                f"{self._path} failed on {shapes}{said()}",
                hint="GPU memory is the usual reason: stop what else uses it.",
            )

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._cuda.destroy_executable(self._graph)
            self._graph = None

    def _free(self, buffer: _Buffer) -> None:
        self._cuda.free(buffer.device)
        self._cuda.free_host(buffer.host)

    def _check(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        if feeds.keys() != self._profiles.keys():
            raise TlcError(
                f"{self._path} takes {', '.join(map(_described, self._inputs))}, got {', '.join(feeds) or 'nothing'}",
                hint="Feed exactly these inputs by name.",
            )
        for spec in self._inputs:
            array, limits = feeds[spec.name], self._profiles[spec.name]
            if array.dtype != np.dtype(spec.dtype) or not _within(array.shape, limits):
                raise TlcError(
                    f"{self._path}: {_described(spec)} from {limits.min} to {limits.max} expected, "
                    f"got {array.dtype} {list(array.shape)}",
                    hint="Prepare the input with the preprocessing that is recorded in the sidecar, or build with "
                    "other --min-shape and --max-shape.",
                )


def _spec(tensor: TensorRecord) -> TensorSpec:
    return TensorSpec(tensor.name, tuple("?" if dim < 0 else dim for dim in tensor.shape), tensor.dtype)


def _within(shape: tuple[int, ...], limits: ProfileShapes) -> bool:
    return len(shape) == len(limits.min) and all(
        low <= dim <= high for dim, low, high in zip(shape, limits.min, limits.max, strict=True)
    )


def _described(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]"
