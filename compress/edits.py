"""What differs between a network and its freshly built base architecture, and how to repeat that on another one.

    edit = {attributes: {name: value}, dropped: [names], parameters: [[name, present]],
            buffers: [[name, persistent | null]],
            modules: [[name, {"keep": true} | null | {"new": node} | {"base": path}]], inner: {name: edit}}

Only what differs is present. Numbers and shapes are not here: they come from the weights.
"""

import copy
from typing import Any, TypeAlias

import torch
from torch import nn

from tlc.compress.skeleton import Node, build_skeleton, check_buildable, decode, describe, join
from tlc.runtime.errors import TlcError

Edit: TypeAlias = dict[str, Any]


def edit_between(base: nn.Module, module: nn.Module) -> Edit:
    """Return the edit that turns `base` into `module`; {} if they differ in numbers and shapes alone.

    Raises TlcError naming the first part that cannot be written down.
    """
    tree, wanted = describe(base), describe(module)
    if tree["class"] != wanted["class"]:
        raise TlcError(
            f"the model is a {wanted['class']}, its architecture builds a {tree['class']}",
            hint="Pass --arch with the function that builds this model.",
        )
    return _edit(tree, wanted, "", tree)


def _edit(base: Node, wanted: Node, path: str, tree: Node) -> Edit:
    edit: Edit = {}
    if changed := _changed_attributes(base["attributes"], wanted["attributes"], path):
        edit["attributes"] = changed
    if dropped := sorted(set(base["attributes"]) - set(wanted["attributes"])):
        edit["dropped"] = dropped
    presence = {kind: [[key, value is not None] for key, value in wanted[kind].items()] for kind in ("parameters",)}
    if presence["parameters"] != [[key, value is not None] for key, value in base["parameters"].items()]:
        edit["parameters"] = presence["parameters"]
    if list(wanted["buffers"].items()) != list(base["buffers"].items()):
        edit["buffers"] = [list(item) for item in wanted["buffers"].items()]
    children = [[name, *_child(base, name, node, join(path, name), tree)] for name, node in wanted["modules"].items()]
    inner = {name: change for name, _source, change in children if change}
    modules = [[name, source] for name, source, _change in children]
    if modules != [[name, {"keep": True}] for name in base["modules"]]:
        edit["modules"] = modules
    if inner:
        edit["inner"] = inner
    return edit


def _child(base: Node, name: str, node: Node | None, path: str, tree: Node) -> tuple[Node | None, Edit]:
    """Return where the child `name` comes from, and what to change in it then."""
    before = base["modules"].get(name)
    if node is None or before == node:
        return ({"keep": True} if name in base["modules"] else None), {}
    if before is not None and before.get("class") == node.get("class") and "same" not in node:
        return {"keep": True}, _edit(before, node, path, tree)
    if node is not None and "same" in node:
        return {"same": node["same"]}, {}
    try:
        check_buildable(node, path)
    except TlcError:
        for twin_path, twin in _walk(tree, ""):
            if twin.get("class") == node["class"] and list(twin["modules"]) == list(node["modules"]):
                return {"base": twin_path}, _edit(twin, node, path, tree)
        raise
    return {"new": node}, {}


def _walk(node: Node, path: str) -> Any:
    yield path, node
    for name, child in node.get("modules", {}).items():
        if child is not None:
            yield from _walk(child, join(path, name))


def _changed_attributes(base: Node, wanted: Node, path: str) -> Node:
    changed = {key: value for key, value in wanted.items() if key not in base or base[key] != value}
    for key, value in changed.items():
        decode(value, f"{path or 'the model'}.{key}")
    return changed


def apply_edit(module: nn.Module, edit: Edit) -> nn.Module:
    """Repeat `edit` on a freshly built base, in place, and return it."""
    return _apply(module, edit, copy.deepcopy(module) if _needs_base(edit) else module, module)


def _needs_base(edit: Edit) -> bool:
    copied = any(source is not None and "base" in source for _name, source in edit.get("modules", []))
    return copied or any(_needs_base(inner) for inner in edit.get("inner", {}).values())


def _apply(module: nn.Module, edit: Edit, base: nn.Module, root: nn.Module) -> nn.Module:
    for key in edit.get("dropped", []):
        vars(module).pop(key, None)
    for key, value in edit.get("attributes", {}).items():
        if key.startswith("__") or key in vars(nn.Module()):
            raise TlcError(f"the checkpoint sets {key}, an internal of torch", hint="Save the model again with tlc.")
        vars(module)[key] = decode(value, key)
    if "parameters" in edit:
        present = {key: nn.Parameter(torch.zeros(0)) if there else None for key, there in edit["parameters"]}
        module._parameters.clear()
        module._parameters.update(present)
    if "buffers" in edit:
        module._buffers.clear()
        module._non_persistent_buffers_set.clear()
        for key, persistent in edit["buffers"]:
            value = None if persistent is None else torch.zeros(0)
            module.register_buffer(key, value, persistent=persistent is not False)
    if "modules" in edit:
        before = dict(module._modules)
        module._modules.clear()
        for name, source in edit["modules"]:
            module._modules[name] = _source(source, before.get(name), base, root)
    for name, inner in edit.get("inner", {}).items():
        child = module._modules[name]
        assert child is not None
        _apply(child, inner, base, root)
    return module


def _source(source: Node | None, before: nn.Module | None, base: nn.Module, root: nn.Module) -> nn.Module | None:
    if source is None or "keep" in source:
        return before if source else None
    if "base" in source:
        return copy.deepcopy(base.get_submodule(source["base"]))
    if "same" in source:
        return root.get_submodule(source["same"])
    return build_skeleton(source["new"])
