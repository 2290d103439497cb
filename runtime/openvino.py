"""OpenVINO on the CPU in the role of a `Session`. The package `openvino` is imported when a session opens."""

import re
from collections import Counter
from collections.abc import Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlc.runtime.errors import TlcError
from tlc.runtime.session import Session, check_feeds, check_file, expected_feeds
from tlc.runtime.tensor import TensorSpec

# Kinds that OpenVINO's executed graph gives to convolutions and matrix products.
_PRODUCTS = frozenset({"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul"})


class OpenVinoSession(Session):
    """An ONNX file in OpenVINO's CPU device: `threads` cores, one stream, tuned for latency, nothing cached on disk.

    Float32 is computed in float32: by default OpenVINO infers in bfloat16 on a CPU that has it, which changes outputs
    in the third digit and makes a comparison with another runtime one of number formats.
    https://docs.openvino.ai/2025/openvino-workflow/running-inference/optimize-inference/precision-control.html
    With `profile`, OpenVINO times every node: see `node_times_us`.

    Raises UsageError below one thread and TlcError where OpenVINO is missing or cannot read the file.
    """

    def __init__(self, path: Path, *, threads: int = 1, profile: bool = False) -> None:
        check_file(path, threads)
        self._path = path
        openvino = _imported()
        try:
            core = openvino.Core()
            model = core.read_model(path)
            # Compiled, an output may also bear the name of a tensor that merged with it, and any of them comes first.
            names = [[port.get_any_name() for port in ports] for ports in (model.inputs, model.outputs)]
            self._compiled: Any = core.compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_NUM_THREADS": threads,
                    "NUM_STREAMS": 1,
                    "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_PRECISION_HINT": "f32",
                    "PERF_COUNT": profile,
                },
            )
            self._request: Any = self._compiled.create_infer_request()
        except RuntimeError as error:
            detail = _detail(error)
            raise TlcError(f"OpenVINO {_release(openvino)} cannot load {path}: {detail}", hint=_hint(detail)) from error
        self._inputs = tuple(map(_spec, repeat(path), repeat("input"), names[0], self._compiled.inputs))
        self._outputs = tuple(map(_spec, repeat(path), repeat("output"), names[1], self._compiled.outputs))
        self._expected = expected_feeds(self._inputs)

    @property
    def runtime(self) -> str:
        """Its release."""
        return f"openvino {_release(_imported())}"

    @property
    def product_precisions(self) -> dict[str, int]:
        """Convolutions and matrix products of the graph that is executed, counted by the precision they compute in.

        "i8" and "u8" are integer kernels: proof that an INT8 file runs as one.
        """
        if self._request is None:
            raise RuntimeError(f"the session of {self._path} is closed")
        facts = [node.get_rt_info() for node in self._compiled.get_runtime_model().get_ordered_ops()]
        kinds = [(fact["layerType"].astype(str), fact["runtimePrecision"].astype(str)) for fact in facts]
        return dict(Counter(precision for kind, precision in kinds if kind in _PRODUCTS))

    def node_times_us(self) -> list[tuple[str, str, float]]:
        """Return name, kind and time of every node that was executed, in order, for a session with `profile`.

        The time is the mean over all runs so far, in whole microseconds, rounded down. The kind is OpenVINO's
        operator with the kernel that it chose.
        """
        found = [entry for entry in self._request.profiling_info if entry.status.name == "EXECUTED"]
        return [
            (entry.node_name, f"{entry.node_type}, {entry.exec_type}", entry.real_time.total_seconds() * 1e6)
            for entry in found
        ]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return all outputs by name.

        Raises TlcError when a name, dtype or shape in `feeds` is not the model's, and when the model fails on it.
        """
        if self._request is None:
            raise RuntimeError(f"the session of {self._path} is closed")
        # OpenVINO itself would convert another dtype without a word.
        check_feeds(self._path, self._inputs, self._expected, feeds)
        try:
            # The request reads the arrays where they are; outputs are copied, since the next run overwrites its own.
            values = self._request.infer(dict(feeds), share_inputs=True)
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise TlcError(
                f"{self._path} failed on {shapes}: {_detail(error)}",
                hint="Try a batch of 1; a file exported for another batch size has to be exported again.",
            ) from error
        return {spec.name: values[position] for position, spec in enumerate(self._outputs)}

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self._request = self._compiled = None


def _imported() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise TlcError(f"OpenVINO is not installed: {error}", hint="pip install openvino") from error
    return openvino


def _release(openvino: Any) -> str:
    """`"2026.4.1-22982-…"` is release 2026.4.1."""
    return str(openvino.__version__).partition("-")[0]


def _spec(path: Path, kind: str, name: str, port: Any) -> TensorSpec:
    shape = port.get_partial_shape()
    dims = tuple("?" if dim.is_dynamic else dim.get_length() for dim in shape)
    dtype = port.get_element_type().to_dtype()
    if not np.issubdtype(dtype, np.number) and dtype != np.bool_:
        raise TlcError(
            f"{path}: {kind} {name} is {port.get_element_type().get_type_name()}, "
            "and only numeric tensors are supported",
            hint="Export the model with tensors at its boundary.",
        )
    return TensorSpec(name, dims, str(np.dtype(dtype)))


def _detail(error: Exception) -> str:
    """Return OpenVINO's message without source locations, on one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not re.match(r"(Exception from|Check '.*' failed at) ", line)]
    return " ".join(kept).rstrip(".")


def _hint(detail: str) -> str:
    if "Unable to read the model" in detail:
        return "The file is not ONNX, or was cut short: export or copy it again."
    if "No conversion rule" in detail:
        return "Export with a lower opset and without custom operators, or upgrade openvino."
    return "Check the file with onnx.checker.check_model(path, full_check=True), and export it again."
