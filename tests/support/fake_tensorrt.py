"""A stand-in for the Python module `tensorrt`, with the names of one release and no others.

Classes, attributes and enumerations come from tests/data/tensorrt_names.json: what a release lacks raises
AttributeError here as there. Networks run in ONNX Runtime. What it imitates beside names: the refusal of Q/DQ without
the INT8 flag, of plans of other releases, and of shapes outside the profile; the header of plans from 10 on; both forms
of the inspector's JSON; and, by TLC_FAKE_FAILURE, how builders fail:

    kill_above:MIB     SIGKILL when the workspace is larger, as when memory runs out
    no_kernel:MIB      "Could not find any implementation" when it is smaller
    segv               SIGSEGV
    unreadable         the parser refuses the second node
    stuck              never ends

Plans name the ONNX file that they run; one without weights, and one that got new ones, carries its network itself.
"""

import base64
import ctypes
import enum
import json
import os
import re
import signal
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort

TABLES = json.loads((Path(__file__).parent.parent / "data" / "tensorrt_names.json").read_text(encoding="utf-8"))
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_NUMPY = {"FLOAT": "f4", "HALF": "f2", "INT8": "i1", "INT32": "i4", "INT64": "i8", "BOOL": "?", "UINT8": "u1"}
_WEIGHTED = ("Conv", "Gemm", "MatMul", "ConvTranspose")


def names(version: str) -> dict[str, Any]:
    """Return the module's content for a release of the table."""
    table = TABLES[version]
    module: dict[str, Any] = {"__version__": version}
    make: Any = enum.IntEnum
    for enumeration, members in table["enums"].items():
        if "." not in enumeration:
            module[enumeration] = make(enumeration, members, start=0)
    severity = make("Severity", table["enums"]["ILogger.Severity"], start=0)
    for name, attributes in table["classes"].items():
        module[name] = _class(name, set(attributes), module, version)
        if "Severity" in attributes:
            module[name].Severity = severity
    if "init_libnvinfer_plugins" in table["module"]:
        module["init_libnvinfer_plugins"] = lambda logger, namespace: True
    return {name: value for name, value in module.items() if name in table["module"] or name == "__version__"}


def _class(name: str, allowed: set[str], module: dict[str, Any], version: str) -> type:
    """Return a class with the release's attributes, from the implementations here; others cannot be set or read."""

    def set_attribute(self: Any, attribute: str, value: Any) -> None:
        if attribute not in allowed and not attribute.startswith("_"):
            raise AttributeError(f"{name} of TensorRT {version} has no {attribute}")
        object.__setattr__(self, attribute, value)

    source = IMPLEMENTATIONS.get(name, type(name, (), {}))
    body = {
        key: value
        for key, value in vars(source).items()
        if key in allowed or (key.startswith("_") and key not in ("__dict__", "__weakref__"))
    }
    if source.__module__ == __name__ and "report_layer_time" not in allowed and "log" not in allowed:
        body["__setattr__"] = set_attribute
    return type(name, (), {**body, "_trt": module, "_version": version})


class _Double:
    """What `_class` adds: the module `_trt` and the release `_version`; the rest is set by the makers."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...


class Builder(_Double):
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:
        kinds = self._trt["NetworkDefinitionCreationFlag"]
        network = self._trt["INetworkDefinition"]()
        explicit = getattr(kinds, "EXPLICIT_BATCH", None)
        assert explicit is None or self._version[0] == "1" or flags & (1 << explicit), "implicit batch"
        typed = getattr(kinds, "STRONGLY_TYPED", None)
        network._typed = typed is not None and (bool(flags & (1 << typed)) or explicit is None)
        return network

    def create_builder_config(self) -> Any:
        config = self._trt["IBuilderConfig"]()
        config._flags, config._pools, config._profiles, config._cache = set(), {}, [], None
        if "max_aux_streams" in TABLES[self._version]["classes"]["IBuilderConfig"]:
            config.builder_optimization_level, config.max_aux_streams = 3, -1
            config.hardware_compatibility_level = None
        return config

    def create_optimization_profile(self) -> Any:
        profile = self._trt["IOptimizationProfile"]()
        profile._shapes = {}
        return profile

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        workspace = config._pools.get("WORKSPACE", getattr(config, "max_workspace_size", 1 << 40)) >> 20
        kind, _, limit = os.environ.get("TLC_FAKE_FAILURE", "").partition(":")
        if kind == "segv" or (kind == "kill_above" and workspace > int(limit)):
            os.kill(os.getpid(), signal.SIGSEGV if kind == "segv" else signal.SIGKILL)
        if kind == "stuck":
            time.sleep(600)
        error = self._trt["ILogger"].Severity.ERROR
        if kind == "no_kernel" and workspace < int(limit):
            self._logger.log(error, "10: Could not find any implementation for node conv.")
            return None
        quantized = any(node.op_type == "QuantizeLinear" for node in network._model.graph.node)
        flags = {flag.name for flag in config._flags}
        if network._typed and flags & {"FP16", "INT8"}:
            self._logger.log(error, "3: strongly typed networks take no precision flags")
            return None
        if quantized and not network._typed and "INT8" not in flags:
            self._logger.log(error, "4: Q/DQ layers need INT8 to be enabled")
            return None
        is_open = any(dim < 0 for index in range(network.num_inputs) for dim in network.get_input(index).shape)
        if is_open and not config._profiles:
            self._logger.log(error, "4: network has dynamic or shape inputs, but no optimization profile")
            return None
        self._logger.log(self._trt["ILogger"].Severity.WARNING, "a warning of the builder")
        body = {
            "version": self._version,
            "path": network._path,
            "flags": sorted(flags),
            "typed": network._typed,
            "profile": config._profiles[0]._shapes if config._profiles else {},
            "detailed": config.profiling_verbosity == self._trt["ProfilingVerbosity"].DETAILED,
            "level": getattr(config, "builder_optimization_level", None),
            "dla": getattr(config, "DLA_core", None),
        }
        if "STRIP_PLAN" in flags:
            body["network"] = _text(_without_weights(network._model))
        if config._cache is not None:
            config._cache._content = b"timings"
        return _plan(body)


class INetworkDefinition(_Double):
    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input)

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    def get_layer(self, index: int) -> Any:
        layer = self._trt["ILayer"]()
        layer._op_type = self._model.graph.node[index].op_type
        return layer

    def get_input(self, index: int) -> Any:
        tensor = self._trt["ITensor"]()
        value = self._model.graph.input[index]
        tensor.name = value.name
        tensor.shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]
        return tensor


class ITensor(_Double):
    is_shape_tensor = False


class OnnxParser(_Double):
    num_errors = 0

    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network

    def parse_from_file(self, model: str) -> bool:
        self._network._path, self._network._model = model, onnx.load(model)
        if os.environ.get("TLC_FAKE_FAILURE") == "unreadable":
            object.__setattr__(self, "num_errors", 1)
        return self.num_errors == 0

    def get_error(self, index: int) -> Any:
        assert index == 0
        return self._trt["ParserError"]()


class ParserError(_Double):
    def node(self) -> int:
        return 1

    def desc(self) -> str:
        return "No importer registered for op: Relu"

    def node_name(self) -> str:
        return "relu"


class IBuilderConfig(_Double):
    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool.name] = pool_size

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def can_run_on_DLA(self, layer: Any) -> bool:  # noqa: N802
        return layer._op_type in _WEIGHTED

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        cache = self._trt["ITimingCache"]()
        cache._content = serialized_timing_cache
        return cache

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        accepted = cache._content in (b"", b"timings")
        if accepted:
            self._cache = cache
        return accepted

    def get_timing_cache(self) -> Any:
        return self._cache


class ITimingCache(_Double):
    def serialize(self) -> bytes:
        return bytes(self._content)


class IOptimizationProfile(_Double):
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
        self._shapes[input] = [list(min), list(opt), list(max)]


class ILogger(_Double):
    def __init__(self) -> None:
        """As the real one, called by subclasses."""

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class IProfiler(_Double):
    def __init__(self) -> None:
        """As the real one, called by subclasses."""

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


class Runtime(_Double):
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        if "engine_host_code_allowed" in TABLES[self._version]["classes"]["Runtime"]:
            self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        body = json.loads(serialized_engine[28:])
        compatible = "VERSION_COMPATIBLE" in body["flags"]
        if body["version"] != self._version and not compatible:
            text = f"expecting library version {self._version} got {body['version']}, please rebuild"
            self._logger.log(self._trt["ILogger"].Severity.ERROR, text)
            return None
        if compatible and not self.engine_host_code_allowed:
            self._logger.log(self._trt["ILogger"].Severity.ERROR, "host code is not allowed")
            return None
        return self._trt["ICudaEngine"]._of(body)


class ICudaEngine(_Double):
    device_memory_size = 4096
    device_memory_size_v2 = 8192

    @classmethod
    def _of(cls, body: dict[str, Any]) -> Any:
        engine = cls()
        engine._body = body
        content = base64.b64decode(body["network"]) if "network" in body else body["path"]
        engine._session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        engine._io = [*engine._session.get_inputs(), *engine._session.get_outputs()]
        return engine

    @property
    def refittable(self) -> bool:
        return bool({"REFIT", "REFIT_IDENTICAL"} & set(self._body["flags"]))

    def create_serialization_config(self) -> Any:
        config = self._trt["ISerializationConfig"]()
        flag = self._trt["SerializationFlag"].EXCLUDE_WEIGHTS
        config._flags = {flag} if "STRIP_PLAN" in self._body["flags"] else set()
        return config

    def serialize_with_config(self, config: Any) -> bytes:
        names = {flag.name for flag in config._flags}
        dropped = set() if "EXCLUDE_WEIGHTS" in names else {"STRIP_PLAN"}
        if hasattr(self._trt["SerializationFlag"], "INCLUDE_REFIT") and "INCLUDE_REFIT" not in names:
            dropped |= {"REFIT", "REFIT_IDENTICAL"}
        model = _network(self._body)
        network = _text(_without_weights(model) if "EXCLUDE_WEIGHTS" in names else model)
        flags = [flag for flag in self._body["flags"] if flag not in dropped]
        return _plan({**self._body, "network": network, "flags": flags})

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    @property
    def num_bindings(self) -> int:
        return len(self._io)

    def get_tensor_name(self, index: int) -> str:
        return str(self._io[index].name)

    def get_tensor_shape(self, name: str) -> list[int]:
        value = next(value for value in self._io if value.name == name)
        return [dim if isinstance(dim, int) else -1 for dim in value.shape]

    def get_tensor_dtype(self, name: str) -> Any:
        kind = next(value.type for value in self._io if value.name == name)
        plain = {
            "float": "FLOAT",
            "float16": "HALF",
            "int8": "INT8",
            "int32": "INT32",
            "bool": "BOOL",
            "uint8": "UINT8",
        }
        int64 = "INT64" if hasattr(self._trt["DataType"], "INT64") else "INT32"
        return self._trt["DataType"][{**plain, "int64": int64}[re.sub(r"tensor\((\w+)\)", r"\1", kind)]]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self._trt["TensorIOMode"]
        return modes.INPUT if name in [value.name for value in self._session.get_inputs()] else modes.OUTPUT

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
        shape = self.get_tensor_shape(name)
        return self._body["profile"].get(name, [shape, shape, shape])

    def get_binding_name(self, index: int) -> str:
        return str(self._io[index].name)

    def get_binding_shape(self, index: int) -> list[int]:
        return ICudaEngine.get_tensor_shape(self, self._io[index].name)

    def get_binding_dtype(self, index: int) -> Any:
        return ICudaEngine.get_tensor_dtype(self, self._io[index].name)

    def binding_is_input(self, index: int) -> bool:
        return index < len(self._session.get_inputs())

    def get_profile_shape(self, profile_index: int, binding: int) -> Any:
        shape = self.get_binding_shape(binding)
        return self._body["profile"].get(self._io[binding].name, [shape, shape, shape])

    def create_execution_context(self) -> Any:
        context = self._trt["IExecutionContext"]()
        context._engine, context._shapes, context._addresses = self, {}, {}
        context._callbacks = {}
        object.__setattr__(context, "profiler", None)
        return context

    def create_engine_inspector(self) -> Any:
        inspector = self._trt["EngineInspector"]()
        inspector._engine = self
        return inspector


class ISerializationConfig(_Double):
    def set_flag(self, flag: Any) -> bool:
        self._flags.add(flag)
        return True

    def clear_flag(self, flag: Any) -> bool:
        self._flags.discard(flag)
        return True


class Refitter(_Double):
    """Takes new weights for an engine: all of them, as one without weights needs them."""

    def __init__(self, engine: Any, logger: Any) -> None:
        self._engine = engine
        self._weights: dict[str, onnx.TensorProto] = {}
        assert engine.refittable, "TypeError: pybind11::init(): factory function returned nullptr"

    def get_missing_weights(self) -> list[str]:
        return [tensor.name for tensor in _weights(_network(self._engine._body)) if tensor.name not in self._weights]

    def refit_cuda_engine(self) -> bool:
        if self.get_missing_weights():
            return False
        model = _network(self._engine._body)
        for tensor in _weights(model):
            tensor.CopyFrom(self._weights[tensor.name])
        self._engine._body["network"] = _text(model)
        return True


class OnnxParserRefitter(_Double):
    num_errors = 0

    def __init__(self, refitter: Any, logger: Any) -> None:
        self._refitter = refitter

    def refit_from_file(self, model: str) -> bool:
        shapes = {tensor.name: list(tensor.dims) for tensor in _weights(_network(self._refitter._engine._body))}
        for tensor in _weights(onnx.load(model)):
            if shapes.get(tensor.name) == list(tensor.dims):
                self._refitter._weights[tensor.name] = tensor
        if os.environ.get("TLC_FAKE_FAILURE") == "unreadable":
            object.__setattr__(self, "num_errors", 1)
        return self.num_errors == 0

    def get_error(self, index: int) -> Any:
        assert index == 0
        return self._trt["ParserError"]()


class EngineInspector(_Double):
    def get_engine_information(self, format: Any) -> str:  # noqa: A002
        assert format == self._trt["LayerInformationFormat"].JSON
        body, is_new = self._engine._body, self._version.startswith("11")
        layers = [_layer(node, kind, is_new) for node, kind in _layers(body)]
        if not body["detailed"]:
            return json.dumps({"Layers": [layer["Name"] for layer in layers]})
        names = [value.name for value in self._engine._io]
        tail = {"I/O Tensors": [{"Name": name} for name in names]} if is_new else {"Bindings": names}
        return json.dumps({"Layers": layers, **tail})


class IExecutionContext(_Double):
    profiler = None

    def set_input_shape(self, name: str, shape: Any) -> bool:
        smallest, _, largest = ICudaEngine.get_tensor_profile_shape.__get__(self._engine)(name, 0) if hasattr(
            self._engine, "get_tensor_profile_shape"
        ) else self._engine.get_profile_shape(0, self._engine_index(name))  # fmt: skip
        if not all(low <= dim <= high for dim, low, high in zip(shape, smallest, largest, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shape(name)

    def set_tensor_address(self, name: str, memory: int) -> None:
        self._addresses[name] = memory

    def execute_async_v3(self, stream_handle: int) -> bool:
        return self._enqueue(dict(self._addresses), stream_handle)

    def set_binding_shape(self, binding: int, shape: Any) -> bool:
        return IExecutionContext.set_input_shape(self, self._engine._io[binding].name, shape)

    def get_binding_shape(self, binding: int) -> tuple[int, ...]:
        return self._shape(self._engine._io[binding].name)

    def execute_async_v2(self, bindings: list[int], stream_handle: int) -> bool:
        names = [value.name for value in self._engine._io]
        return self._enqueue(dict(zip(names, bindings, strict=True)), stream_handle)

    def _engine_index(self, name: str) -> int:
        return [value.name for value in self._engine._io].index(name)

    def _shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return tuple(self._shapes[name])
        first = next(iter(self._shapes.values()))
        shape = next(value.shape for value in self._engine._io if value.name == name)
        return tuple(dim if isinstance(dim, int) else first[0] for dim in shape)

    def _enqueue(self, addresses: dict[str, int], stream: int) -> bool:
        if len(addresses) < len(self._engine._io) or not all(addresses.values()):
            return False
        key = tuple(addresses.items())

        def work(_data: Any) -> None:
            session = self._engine._session
            feeds = {value.name: self._memory(value, addresses).copy() for value in session.get_inputs()}
            for value, result in zip(session.get_outputs(), session.run(None, feeds), strict=True):
                np.copyto(self._memory(value, addresses), result)

        self._callbacks.setdefault(key, _CALLBACK(work))  # kept alive for graphs
        cudart = ctypes.CDLL(os.environ["TLC_CUDART"])
        if self.profiler is not None:
            for node, _ in _layers(self._engine._body):
                self.profiler.report_layer_time(node.name, 0.25)
        return int(cudart.cudaLaunchHostFunc(ctypes.c_void_p(stream), self._callbacks[key], ctypes.c_void_p())) == 0

    def _memory(self, value: Any, addresses: dict[str, int]) -> Any:
        shape = self._shape(value.name)
        dtype = np.dtype({"tensor(float)": "f4", "tensor(float16)": "f2", "tensor(int64)": "i8"}[value.type])
        memory = (ctypes.c_char * (int(np.prod(shape)) * dtype.itemsize)).from_address(addresses[value.name])
        return np.frombuffer(memoryview(memory), dtype).reshape(shape)


class IHostMemory(_Double):
    pass


class ILayer(_Double):
    pass


IMPLEMENTATIONS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Builder, INetworkDefinition, ITensor, OnnxParser, ParserError, IBuilderConfig, ITimingCache,
        IOptimizationProfile, ILogger, IProfiler, Runtime, ICudaEngine, EngineInspector, IExecutionContext,
        IHostMemory, ILayer, ISerializationConfig, OnnxParserRefitter, Refitter,
    )
}  # fmt: skip


def _plan(body: dict[str, Any]) -> bytes:
    """Return a plan: from 10 on with the release in its header."""
    version = body["version"]
    numbers = [*(int(part) for part in version.split(".")), 0][:4] if version[0] == "1" else [0] * 4
    return b"ftrt" + struct.pack("<I", 0) + bytes(16) + bytes(numbers) + json.dumps(body).encode()


def _network(body: dict[str, Any]) -> onnx.ModelProto:
    """Return the network that a plan runs."""
    if "network" in body:
        return onnx.load_from_string(base64.b64decode(body["network"]))
    return onnx.load(body["path"])


def _text(model: onnx.ModelProto) -> str:
    return base64.b64encode(model.SerializeToString()).decode()


def _weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the float initialisers, which stripping leaves out and refitting puts in."""
    return [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in _weights(copy):
        zeros = np.zeros(list(tensor.dims), np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
    return copy


def _layers(body: dict[str, Any]) -> list[tuple[Any, str]]:
    """Return the nodes that stay as layers, and what each runs in."""
    graph = _network(body).graph
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    found = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            found.append((node, "reformat"))
        elif node.op_type != "DequantizeLinear":
            is_int8 = node.op_type in _WEIGHTED and node.input[0] in dequantized
            found.append((node, "Int8" if is_int8 else "FP16" if "FP16" in body["flags"] else "FP32"))
    return found


def _layer(node: Any, kind: str, is_new: bool) -> dict[str, Any]:
    text = "FP32" if kind == "reformat" else kind
    words = {"Int8": "Row major Int8 format", "FP16": "Row major linear FP16 format", "FP32": "Row major linear FP32"}
    types = {"Int8": "Int8", "FP16": "Half", "FP32": "Float"}
    split = {"Format": "kLINEAR", "DataType": types[text]}
    tensor = {"Name": "t", "Dimensions": [1], **(split if is_new else {"Format/Datatype": words[text]})}
    weighted = {"Weights": {"Type": types[text], "Count": 1}} if node.op_type in _WEIGHTED else {}
    layer_type = "Reformat" if kind == "reformat" else f"Cask{node.op_type}"
    return {"Name": node.name, "LayerType": layer_type, "Inputs": [tensor], "Outputs": [tensor], **weighted}
