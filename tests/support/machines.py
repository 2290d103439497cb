"""Machines as `tlc.runtime.capability.probe` would describe them."""

from collections.abc import Sequence
from typing import Any

from tlc.runtime.capability import Gpu, Machine
from tlc.runtime.probes import Package, Tool

PC_GPU = (Gpu(name="RTX 4090", sm="8.9", memory_bytes=2**34),)


def machine(packages: Sequence[Package] = (), **changes: Any) -> Machine:
    """Everything that compression needs, and neither GPU nor TensorRT."""
    names = ("onnxruntime", "openvino", "tensorrt", "onnx", "torch", "nncf", "torchvision", "torch-pruning")
    known = {name: Package(name=name, version="1.0") for name in (*names, "onnxscript", "onnxslim", "accelerate")}
    known["onnxruntime"] = Package(name="onnxruntime", version="1.31.1", providers=("CPUExecutionProvider",))
    known["tensorrt"] = Package(name="tensorrt")
    facts: dict[str, Any] = {
        "python": "3.11.1",
        "executable": "/bin/python",
        "packages": known | {package.name: package for package in packages},
        "gpus": (),
        "driver": Tool(name="NVIDIA driver", error="there is no libcuda.so.1"),
        "cuda": Tool(name="CUDA runtime"),
        "trtexec": Tool(name="trtexec"),
        "system_tensorrt": Tool(name="TensorRT of the system's Python"),
        "jetson": None,
        "cpu": "Some CPU",
        "memory_total_bytes": 2**34,
        "memory_available_bytes": 2**33,
        "disk_free_bytes": 2**36,
    }
    return Machine.model_validate(facts | changes)


def pc(packages: Sequence[Package] = (), **changes: Any) -> Machine:
    """A PC with a GPU of SM 8.9, TensorRT 10.13 and everything that compression needs."""
    tensorrt = Package(name="tensorrt", version="10.13.3.9")
    gpu = {
        "gpus": PC_GPU,
        "driver": Tool(name="NVIDIA driver", version="580.1"),
        "cuda": Tool(name="CUDA runtime", version="13.0"),
    }
    return machine([tensorrt, *packages], **(gpu | changes))
