"""What tlc needs of the CUDA runtime library, by ctypes.

Not the cuda-python package: its wheels begin at CUDA 11.5 and bind one CUDA release each, while JetPack 4.6 to 7 carry
CUDA 10.2 to 13. The functions here have had one signature since CUDA 10.2, except graph instantiation (see
`Cuda.instantiate`). https://docs.nvidia.com/cuda/cuda-runtime-api/

No call makes sense without a GPU and a driver: ask `tlc.runtime.gpu` first, which looks in a process of its own.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlc.runtime.errors import TlcError

_NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so.10.2")
_WHEELS = ("nvidia/cu13/lib", "nvidia/cuda_runtime/lib")
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2  # cudaMemcpyKind
_MAJOR, _MINOR, _INTEGRATED = (
    75,
    76,
    18,
)  # cudaDeviceAttr: compute capability, and whether memory is shared with the CPU
_NON_BLOCKING = 1  # cudaStreamNonBlocking: no implicit waiting for the default stream
_THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal: other threads may go on using CUDA
# cudaDeviceProp begins with the name in every release; the rest differs in layout and grows, so it is not read.
_NAME_BYTES, _PROPERTIES_BYTES = 256, 16384


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as the CUDA runtime describes it."""

    name: str
    sm: str
    """Compute capability, such as "8.7"."""
    integrated: bool
    """Whether its memory is the CPU's, as on a Jetson."""
    free_bytes: int
    """On an integrated GPU the page cache counts as used: /proc/meminfo's MemAvailable says more."""
    total_bytes: int


class Cuda:
    """A loaded libcudart; every method raises TlcError with CUDA's own words when a call fails.

    Memory is an address as an int; streams, events and graphs are handles as ints.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def devices(self) -> list[Device]:
        """Return the GPUs in CUDA's order; raises where there is no driver or none of them works."""
        count = c_int()
        self._call("cudaGetDeviceCount", byref(count))
        return [self._device(index) for index in range(count.value)]

    def runtime_version(self) -> str:
        """Return the library's CUDA release, such as "12.6"."""
        value = c_int()
        self._call("cudaRuntimeGetVersion", byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"

    def free_bytes(self) -> tuple[int, int]:
        """Return (free, total) bytes of the current GPU's memory."""
        free, total = c_size_t(), c_size_t()
        self._call("cudaMemGetInfo", byref(free), byref(total))
        return free.value, total.value

    def malloc(self, size_bytes: int) -> int:
        """Return the address of new GPU memory."""
        address = c_void_p()
        self._call("cudaMalloc", byref(address), c_size_t(size_bytes))
        return int(address.value or 0)

    def free(self, address: int) -> None:
        """Give GPU memory back."""
        self._call("cudaFree", c_void_p(address))

    def malloc_host(self, size_bytes: int) -> int:
        """Return the address of new pinned CPU memory, which copies to and from the GPU need to run asynchronously."""
        address = c_void_p()
        self._call("cudaMallocHost", byref(address), c_size_t(size_bytes))
        return int(address.value or 0)

    def free_host(self, address: int) -> None:
        """Give pinned CPU memory back."""
        self._call("cudaFreeHost", c_void_p(address))

    def copy_to_device(self, device: int, host: int, size_bytes: int, stream: int) -> None:
        """Queue a copy from pinned CPU memory."""
        self._copy(device, host, size_bytes, _HOST_TO_DEVICE, stream)

    def copy_to_host(self, host: int, device: int, size_bytes: int, stream: int) -> None:
        """Queue a copy to pinned CPU memory."""
        self._copy(host, device, size_bytes, _DEVICE_TO_HOST, stream)

    def create_stream(self) -> int:
        """Return a stream that does not wait for the default one."""
        stream = c_void_p()
        self._call("cudaStreamCreateWithFlags", byref(stream), c_uint(_NON_BLOCKING))
        return int(stream.value or 0)

    def synchronize(self, stream: int) -> None:
        """Wait until all that was queued is done."""
        self._call("cudaStreamSynchronize", c_void_p(stream))

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""
        self._call("cudaStreamDestroy", c_void_p(stream))

    def create_event(self) -> int:
        """Return an event with a time stamp."""
        event = c_void_p()
        self._call("cudaEventCreate", byref(event))
        return int(event.value or 0)

    def record(self, event: int, stream: int) -> None:
        """Queue the taking of the event's time stamp."""
        self._call("cudaEventRecord", c_void_p(event), c_void_p(stream))

    def elapsed_ms(self, start: int, end: int) -> float:
        """Return the time between two events that have happened, with a resolution of about 0.5 µs."""
        value = c_float()
        self._call("cudaEventElapsedTime", byref(value), c_void_p(start), c_void_p(end))
        return value.value

    def destroy_event(self, event: int) -> None:
        """Give an event back."""
        self._call("cudaEventDestroy", c_void_p(event))

    def begin_capture(self, stream: int) -> None:
        """Record what this thread queues from now on instead of running it."""
        self._call("cudaStreamBeginCapture", c_void_p(stream), c_int(_THREAD_LOCAL))

    def end_capture(self, stream: int) -> int:
        """Return the graph of what was queued since `begin_capture`."""
        graph = c_void_p()
        self._call("cudaStreamEndCapture", c_void_p(stream), byref(graph))
        return int(graph.value or 0)

    def instantiate(self, graph: int) -> int:
        """Return the executable form of a graph.

        cudaGraphInstantiate changed its parameters in CUDA 12; cudaGraphInstantiateWithFlags, from 11.4 on, did not.
        """
        executable = c_void_p()
        if hasattr(self._library, "cudaGraphInstantiateWithFlags"):
            self._call("cudaGraphInstantiateWithFlags", byref(executable), c_void_p(graph), c_ulonglong(0))
        else:
            self._call("cudaGraphInstantiate", byref(executable), c_void_p(graph), c_void_p(), c_void_p(), c_size_t(0))
        return int(executable.value or 0)

    def launch(self, executable: int, stream: int) -> None:
        """Queue an executable graph."""
        self._call("cudaGraphLaunch", c_void_p(executable), c_void_p(stream))

    def destroy_graph(self, graph: int) -> None:
        """Give a graph back."""
        self._call("cudaGraphDestroy", c_void_p(graph))

    def destroy_executable(self, executable: int) -> None:
        """Give an executable graph back."""
        self._call("cudaGraphExecDestroy", c_void_p(executable))

    def _device(self, index: int) -> Device:
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._call("cudaGetDeviceProperties", properties, c_int(index))
        self._call("cudaSetDevice", c_int(index))
        free, total = self.free_bytes()
        return Device(
            name=properties.raw[:_NAME_BYTES].split(b"\0")[0].decode(errors="replace"),
            sm=f"{self._attribute(_MAJOR, index)}.{self._attribute(_MINOR, index)}",
            integrated=bool(self._attribute(_INTEGRATED, index)),
            free_bytes=free,
            total_bytes=total,
        )

    def _attribute(self, attribute: int, device: int) -> int:
        value = c_int()
        self._call("cudaDeviceGetAttribute", byref(value), c_int(attribute), c_int(device))
        return value.value

    def _copy(self, to: int, source: int, size_bytes: int, kind: int, stream: int) -> None:
        self._call(
            "cudaMemcpyAsync", c_void_p(to), c_void_p(source), c_size_t(size_bytes), c_int(kind), c_void_p(stream)
        )

    def _call(self, name: str, *arguments: Any) -> None:
        status = int(getattr(self._library, name)(*arguments))
        if status:
            describe = self._library.cudaGetErrorString
            describe.restype = c_char_p
            text = (describe(c_int(status)) or b"?").decode(errors="replace")
            raise TlcError(f"CUDA: {name}: {text} (error {status})", hint=_hint(text))


def load_cuda() -> Cuda:
    """Return the CUDA runtime library: $TLC_CUDART, or the first that loads and finds a GPU.

    A library that is newer than the driver loads and then fails, so the next one is tried. Raises TlcError with the
    first failure when none works.
    """
    named = os.environ.get("TLC_CUDART")
    failures: list[str] = []
    for name in [named] if named else _candidates():
        try:
            cuda = Cuda(ctypes.CDLL(name))
            cuda.devices()
        except OSError as error:
            failures.append(str(error))
        except TlcError as error:
            failures.insert(0, error.message)
        else:
            return cuda
    raise TlcError(
        f"no usable CUDA runtime library: {failures[0] if failures else 'none found'}",
        hint="Install the NVIDIA driver and CUDA runtime, or name the library: TLC_CUDART=/path/to/libcudart.so.12",
    )


def _candidates() -> Iterator[str]:
    yield from _NAMES
    for folder in ("/usr/local/cuda/lib64", *(f"{path}/{wheel}" for path in sys.path for wheel in _WHEELS)):
        yield from (str(path) for path in sorted(Path(folder).glob("libcudart.so*")))


def _hint(text: str) -> str:
    if "out of memory" in text:
        return "Stop what else uses the GPU's memory, or run a smaller batch."
    if "driver" in text or "no CUDA-capable device" in text:
        return (
            "Check the driver with nvidia-smi; in a container, pass the GPU through (--gpus all, or --runtime nvidia)."
        )
    return "Check that the GPU works: nvidia-smi, or on a Jetson tegrastats."
