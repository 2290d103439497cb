"""Every TensorRT name that tlc uses exists in every release that the code serves, or is asked for with care.

What cannot be run here is at least not misspelt. The tables are those of eleven releases' own bindings, and of 8.2
derived from them; see benchmarks/write_tensorrt_names.py.
"""

import ast
import copy
import re

import pytest
from fake_tensorrt import TABLES
from tensorrt_names import OBJECTS, REPOSITORY, problems


@pytest.mark.parametrize("path", OBJECTS)
def test_every_name_exists_in_every_release_that_is_served(path: str) -> None:
    assert problems(path, (REPOSITORY / path).read_text(encoding="utf-8"), TABLES) == []


def test_all_modules_that_use_tensorrt_are_looked_at() -> None:
    found = set()
    for folder in ("runtime", "calibration", "export", "compress", "cli"):
        for path in (REPOSITORY / folder).glob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            nodes = list(ast.walk(tree))
            imports = any(isinstance(node, ast.Import) and node.names[0].name == "tensorrt" for node in nodes)
            takes = any(isinstance(node, ast.arg) and ast.unparse(node) == "trt: Any" for node in nodes)
            if imports or takes:
                found.add(str(path.relative_to(REPOSITORY)))

    assert found <= set(OBJECTS)
    assert found


def test_flags_that_are_looked_up_by_name_exist_somewhere() -> None:
    members = {member for table in TABLES.values() for members in table["enums"].values() for member in members}
    for path in ("export/engine_worker.py", "runtime/tensorrt_io.py"):
        tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
        constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        words = {text for text in constants if isinstance(text, str) and re.fullmatch(r"[A-Z][A-Z0-9_]+", text)}
        assert words
        assert words <= members, words - members


USED = [
    ("module", "OnnxParser"),
    ("module", "init_libnvinfer_plugins"),
    ("Builder", "build_serialized_network"),
    ("IBuilderConfig", "set_flag"),
    ("IBuilderConfig", "set_timing_cache"),
    ("INetworkDefinition", "num_inputs"),
    ("OnnxParser", "parse_from_file"),
    ("ParserError", "desc"),
    ("Runtime", "deserialize_cuda_engine"),
    ("ICudaEngine", "create_execution_context"),
    ("ICudaEngine", "get_tensor_profile_shape"),
    ("IExecutionContext", "execute_async_v3"),
    ("EngineInspector", "get_engine_information"),
    ("DeviceType", "DLA"),
    ("ILogger.Severity", "WARNING"),
    ("ProfilingVerbosity", "DETAILED"),
    ("TensorIOMode", "INPUT"),
    ("ICudaEngine", "serialize_with_config"),
    ("ISerializationConfig", "clear_flag"),
    ("OnnxParserRefitter", "refit_from_file"),
    ("Refitter", "refit_cuda_engine"),
    ("SerializationFlag", "EXCLUDE_WEIGHTS"),
]


@pytest.mark.parametrize(("owner", "name"), USED)
def test_a_name_that_is_gone_from_a_release_is_found(owner: str, name: str) -> None:
    tables = copy.deepcopy(TABLES)
    table = tables["11.4.0.106"]
    if owner == "module":
        table["module"].remove(name)
    elif owner in table["enums"]:
        table["enums"][owner].remove(name)
    else:
        del table["classes"][owner][name]

    found = [
        text for path in OBJECTS for text in problems(path, (REPOSITORY / path).read_text(encoding="utf-8"), tables)
    ]

    assert any(name in text and "11.4.0.106" in text for text in found)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("builder.build_engine(network, config)", "Builder of 10.0.1 has no build_engine"),
        ("trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "is not in 11.0.0.114"),
        ("config.max_workspace_size = 1", "has no max_workspace_size"),
        ("config.set_memory_pool_limit(1, 2)", "of 8.2.1 has no set_memory_pool_limit"),
        ("config.set_timing_cache(cache=1, ignore=True)", "fits none of"),
        ("builder.create_builder_config(1)", "fits none of"),
        ("error.node_name()", "ParserError of 8.2.1 has no node_name"),
        ("hasattr(config, 'max_workspace_sise') and config.max_workspace_sise", "no release's IBuilderConfig"),
    ],
)
def test_a_planted_mistake_is_found(line: str, sentence: str) -> None:
    found = problems("export/engine_worker.py", f"def f():\n    {line}", TABLES)

    assert any(sentence in text for text in found), found


def test_a_guarded_name_is_not() -> None:
    line = "if hasattr(config, 'builder_optimization_level'): config.builder_optimization_level = 3"

    assert problems("export/engine_worker.py", f"def f():\n    {line}", TABLES) == []
