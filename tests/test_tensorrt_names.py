"""Every TensorRT name that tlc uses exists in every release that the code serves, or is asked for with care.

What cannot be run here is at least not misspelt. The tables are those of eleven releases' own bindings, and of 8.2
derived from them; see benchmarks/tensorrt_names.py.
"""

import ast
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_tensorrt import TABLES

REPOSITORY = Path(__file__).resolve().parent.parent
IO = {
    "engine": "ICudaEngine", "self._engine": "ICudaEngine", "context": "IExecutionContext",
    "self._context": "IExecutionContext", "runtime": "Runtime",
}  # fmt: skip
OBJECTS: dict[str, dict[str, str]] = {
    "runtime/tensorrt_io.py": IO,
    "runtime/tensorrt.py": {**IO, "inspector": "EngineInspector"},
    "runtime/inspector.py": {},
    "runtime/gpu.py": {},
    "export/engine_worker.py": {
        **IO, "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
        "profile": "IOptimizationProfile", "tensor": "ITensor", "error": "ParserError", "cache": "ITimingCache",
    },
}  # fmt: skip
"""Modules that use TensorRT, with what their variables are."""
NOT_TENSORRT = {("export/engine_worker.py", "main"), ("export/engine_worker.py", "build.tensor")}


def key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def served(scope: str, tables: dict[str, Any]) -> dict[str, Any]:
    """Return the releases that a class or function is for: inputs and outputs have names from 8.5 on."""
    if scope == "NamedIo":
        return {version: table for version, table in tables.items() if key(version) >= (8, 5)}
    if scope == "IndexedIo":
        return {version: table for version, table in tables.items() if key(version) < (8, 5)}
    return tables


def guarded(scope: ast.AST) -> set[str]:
    """Return the names that a function asks for with hasattr or getattr."""
    return {
        node.args[1].value
        for node in ast.walk(scope)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("hasattr", "getattr")
        and len(node.args) > 1
        and isinstance(node.args[1], ast.Constant)
        and isinstance(node.args[1].value, str)
    }


def scopes(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node


def problem(path: str, scope: str, node: ast.Attribute, careful: set[str], tables: dict[str, Any]) -> str | None:
    """Return a sentence when the attribute is TensorRT's and some served release lacks it."""
    place = f"{path}:{node.lineno}: "
    text = ast.unparse(node)
    owner = ast.unparse(node.value)
    kind = OBJECTS[path].get(owner)
    for version, table in served(scope, tables).items():
        if owner in ("trt", "tensorrt"):
            if node.attr not in table["module"] and not node.attr.startswith("__"):
                return f"{place}{text} is not in {version}" if node.attr not in careful else None
        elif owner.startswith("trt."):
            enumeration = owner.removeprefix("trt.")
            members = [*table["enums"].get(enumeration, []), *table["classes"].get(enumeration, {})]
            is_missing = node.attr not in members and not node.attr.startswith("__") and node.attr not in careful
            if enumeration in table["module"] and is_missing:
                return f"{place}{text} is not in {version}"
        elif kind is not None and node.attr not in table["classes"][kind]:
            if node.attr not in careful:
                return f"{place}{text}: {kind} of {version} has no {node.attr}"
            known = any(node.attr in other["classes"][kind] for other in tables.values())
            return None if known else f"{place}{text}: no release's {kind} has {node.attr}"
    return None


def call_problem(path: str, scope: str, node: ast.Call, tables: dict[str, Any]) -> str | None:
    """Return a sentence when a call's number of arguments, or a keyword, fits no signature of a served release."""
    if not isinstance(node.func, ast.Attribute):
        return None
    kind = OBJECTS[path].get(ast.unparse(node.func.value))
    for version, table in served(scope, tables).items():
        signatures = table["classes"].get(kind, {}).get(node.func.attr) if kind else None
        keywords = {keyword.arg for keyword in node.keywords}
        if signatures and not any(
            len(node.args) + len(keywords) <= len(signature)
            and len(node.args) + len(keywords) >= sum(not name.endswith("=") for name in signature)
            and keywords <= {name.rstrip("=") for name in signature}
            for signature in signatures
        ):
            return f"{path}:{node.lineno}: {ast.unparse(node)} fits none of {signatures} in {version}"
    return None


def problems(path: str, source: str, tables: dict[str, Any]) -> list[str]:
    found = []
    for scope, tree in scopes(ast.parse(source)):
        if (path, scope) in NOT_TENSORRT:
            continue
        careful = guarded(tree)
        for node in ast.walk(tree):
            sentence = None
            if isinstance(node, ast.Attribute) and f"{scope}.{ast.unparse(node.value)}" not in {
                name for module, name in NOT_TENSORRT if module == path
            }:
                sentence = problem(path, scope, node, careful, tables)
            elif isinstance(node, ast.Call):
                sentence = call_problem(path, scope, node, tables)
            found += [sentence] if sentence else []
    return found


@pytest.mark.parametrize("path", OBJECTS)
def test_every_name_exists_in_every_release_that_is_served(path: str) -> None:
    assert problems(path, (REPOSITORY / path).read_text(encoding="utf-8"), TABLES) == []


def test_all_modules_that_use_tensorrt_are_looked_at() -> None:
    found = set()
    for folder in ("runtime", "calibration", "export", "compress", "cli"):
        for path in (REPOSITORY / folder).glob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            imports = any(isinstance(node, ast.Import) and node.names[0].name == "tensorrt" for node in ast.walk(tree))
            takes = any(isinstance(node, ast.arg) and node.arg == "trt" and ast.unparse(node.annotation or node) == "Any" for node in ast.walk(tree))
            if imports or takes:
                found.add(str(path.relative_to(REPOSITORY)))

    assert found <= set(OBJECTS)
    assert found


def test_flags_that_are_looked_up_by_name_exist_somewhere() -> None:
    members = {
        member for table in TABLES.values() for members in table["enums"].values() for member in members
    }
    for path in ("export/engine_worker.py", "runtime/tensorrt_io.py"):
        tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
        words = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[A-Z][A-Z0-9_]+", node.value)
        }
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
    ("ProfilingVerbosity", "DETAILED"),
    ("TensorIOMode", "INPUT"),
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

    found = [text for path in OBJECTS for text in problems(path, (REPOSITORY / path).read_text(encoding="utf-8"), tables)]

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
