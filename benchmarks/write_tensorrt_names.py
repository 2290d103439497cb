"""Write tests/data/tensorrt_names.json: the names of TensorRT's Python module that tlc's modules could use.

    python benchmarks/write_tensorrt_names.py FOLDER

FOLDER holds one VERSION.json for each release, made by asking the real bindings for their classes, enumerations and
docstrings: {"version", "enums": {name: {member: value}}, "classes": {name: {attribute: "property …" | [signatures]}},
"functions": [names]}. Only names and parameters are kept. TensorRT 8.2, of which there is no wheel, is 8.4.1 without
memory pools (NvInfer.h at the tag 8.2.1 of NVIDIA/TensorRT has no setMemoryPoolLimit).
"""

import json
import sys
from pathlib import Path
from typing import Any

CLASSES = (
    "Builder", "EngineInspector", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "IHostMemory", "ILayer",
    "ILogger", "INetworkDefinition", "IOptimizationProfile", "IProfiler", "ISerializationConfig", "ITensor",
    "ITimingCache", "Logger", "OnnxParser", "OnnxParserRefitter", "ParserError", "Refitter", "Runtime",
)  # fmt: skip
ENUMS = (
    "BuilderFlag", "DataType", "DeviceType", "HardwareCompatibilityLevel", "ILogger.Severity", "LayerInformationFormat",
    "MemoryPoolType", "NetworkDefinitionCreationFlag", "ProfilingVerbosity", "SerializationFlag",
    "TensorIOMode",
)  # fmt: skip
OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "tensorrt_names.json"


def names(dump: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a dump that the tests need."""
    module = {*dump["classes"], *dump["functions"], *(name for name in dump["enums"] if "." not in name)}
    classes = {
        name: {
            attribute: facts if isinstance(facts, list) else []
            for attribute, facts in sorted(dump["classes"][name].items())
            if attribute == "add_optimization_profile" or not attribute.startswith(("_", "add_"))
        }
        for name in CLASSES
        if name in dump["classes"]
    }
    enums = {name: sorted(dump["enums"][name]) for name in ENUMS if name in dump["enums"]}
    return {"module": sorted(module), "classes": classes, "enums": enums}


def main() -> None:
    """Write the table of every dump, and the derived one of 8.2."""
    dumps = sorted(Path(sys.argv[1]).glob("*.json"), key=lambda path: [int(part) for part in path.stem.split(".")])
    tables = {path.stem: names(json.loads(path.read_text(encoding="utf-8"))) for path in dumps}
    old = json.loads(json.dumps(tables["8.4.1.5"]))
    for attribute in ("set_memory_pool_limit", "get_memory_pool_limit"):
        del old["classes"]["IBuilderConfig"][attribute]
    del old["enums"]["MemoryPoolType"]
    old["module"].remove("MemoryPoolType")
    tables = {"8.2.1": old, **tables}
    OUT.write_text(json.dumps(tables, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
