"""Finding uses of TensorRT in tlc's modules that some release does not have."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent
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
        "refitter": "Refitter", "reader": "OnnxParserRefitter", "settings": "ISerializationConfig",
    },
}  # fmt: skip
"""Modules that use TensorRT, with what their variables are."""
NOT_TENSORRT = {("export/engine_worker.py", "main"), ("export/engine_worker.py", "build.tensor")}


def key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def served(scope: str, tables: dict[str, Any]) -> dict[str, Any]:
    """Return the releases that a class or function is for.

    Inputs and outputs have names from 8.5 on; weights are put into plans from 10.0 on, and before there is a message.
    """
    if scope == "refit":
        return {version: table for version, table in tables.items() if key(version) >= (10, 0)}
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
            if enumeration in {*table["module"], *table["enums"]} and is_missing:
                return f"{place}{text} is not in {version}"
        elif kind is not None and node.attr not in table["classes"][kind]:
            if node.attr not in careful:
                return f"{place}{text}: {kind} of {version} has no {node.attr}"
            known = any(node.attr in other["classes"].get(kind, {}) for other in tables.values())
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
