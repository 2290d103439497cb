"""A tree of modules as plain values: what a network is, apart from its numbers.

    node = {class, attributes, parameters: {name: shape | null}, buffers: {name: persistent | null},
            modules: {name: node | null}}

Values that JSON lacks are tagged: {"tuple": [...]}, {"function": NAME}; what cannot be written is {"opaque": NAME} and
may only stand where a base architecture provides it again.
"""

import functools
import hashlib
import importlib
import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from pydantic import JsonValue
from torch import nn

from tlc.compress.pickles import FUNCTIONS, Record, module_class
from tlc.runtime.errors import TlcError

Node: TypeAlias = dict[str, Any]
"""JSON object; see the module's docstring."""

_INTERNAL = frozenset(vars(nn.Module())) | {"_is_full_backward_hook", "_compiled_call_impl", "_version"}
_REGISTERS = ("_modules", "_parameters", "_buffers")
_HOOKS = tuple(name for name in _INTERNAL if name.endswith("_hooks"))


def describe(module: nn.Module) -> Node:
    """Return the tree of `module`; a module that stands in two places is written as {"same": path} the second time."""
    return _node(module, "", {})


def _node(module: Any, path: str, seen: dict[int, str]) -> Node:
    if id(module) in seen:
        return {"same": seen[id(module)]}
    seen[id(module)] = path
    if isinstance(module, Record):
        name, state = module.global_name, module.state
    else:
        name, state = class_name(type(module)), vars(module)
    transient = state.get("_non_persistent_buffers_set", ())
    children = state["_modules"].items()
    return {
        "class": name,
        "attributes": {key: encode(value) for key, value in state.items() if key not in _INTERNAL},
        "parameters": {
            key: None if value is None else list(value.shape) for key, value in state["_parameters"].items()
        },
        "buffers": {key: None if value is None else key not in transient for key, value in state["_buffers"].items()},
        "modules": {key: None if child is None else _node(child, join(path, key), seen) for key, child in children},
    }


def check_module_state(record: object, path: str) -> None:
    """Raise TlcError unless `record` and all below hold what a pickled nn.Module holds, and no hooks."""
    place = path or "the top"
    if not isinstance(record, Record):
        raise TlcError(f"the pickle holds a {type(record).__name__} at {place}, no module", hint="Save its state_dict.")
    state = record.state
    if not isinstance(state, dict) or not all(isinstance(state.get(key), dict) for key in _REGISTERS):
        raise TlcError(
            f"the pickled {record.global_name} at {place} holds no module state", hint="Save its state_dict."
        )
    if any(state.get(hook) for hook in _HOOKS):
        hint = "Remove its hooks (weight_norm, spectral_norm, ...) before saving, or save its state_dict."
        raise TlcError(f"the pickled {record.global_name} at {place} carries hooks", hint=hint)
    for name, child in state["_modules"].items():
        if child is not None:
            check_module_state(child, join(path, str(name)))


def join(path: str, name: str) -> str:
    """Return the dotted path of child `name`."""
    return f"{path}.{name}" if path else name


def class_name(cls: type) -> str:
    """Return the full name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def encode(value: Any) -> JsonValue:
    """Return `value` as JSON, with tags for what JSON lacks."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple) and type(value) in (tuple, torch.Size):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, Mapping):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, set | frozenset):
        return {"set": sorted((encode(item) for item in value), key=repr)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.Tensor):
        return {"opaque": f"a tensor {hashlib.sha256(value.detach().cpu().float().numpy().tobytes()).hexdigest()[:16]}"}
    return _encode_callable(value)


def _encode_callable(value: Any) -> JsonValue:
    if isinstance(value, functools.partial):
        return _partial(value.func, value.args, value.keywords)
    if isinstance(value, Record):
        if value.global_name == "functools.partial" and isinstance(value.state, tuple) and len(value.state) == 4:
            return _partial(*value.state[:3])
        return {"opaque": value.global_name}
    if isinstance(value, type) and issubclass(value, Record):
        name = value.global_name
    else:
        name = f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', None)}"
        if name == "torch.nn.functional.gelu" or value is torch._C._nn.gelu:
            name = "torch._C._nn.gelu"
        if name.startswith("None."):
            name = f"torch.{name.removeprefix('None.')}" if value in (torch.relu, torch.tanh) else name
    if name in FUNCTIONS:
        return {"function": name}
    if module_class(name) is not None:
        return {"class": name}
    is_callable = isinstance(value, type) or hasattr(value, "__qualname__")
    return {"opaque": name if is_callable else class_name(type(value))}


def _partial(function: Any, arguments: Any, keywords: Any) -> JsonValue:
    return {"partial": [encode(function), encode(list(arguments or ())), encode(dict(keywords or {}))]}


def decode(value: Any, where: str) -> Any:
    """Return the value that `encode` wrote; TlcError names `where` for one that cannot be rebuilt."""
    if isinstance(value, list):
        return [decode(item, where) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise _unreadable(where, value)
    (tag, content), *_ = value.items()
    match tag:
        case "tuple" | "set":
            items = [decode(item, where) for item in content]
            return tuple(items) if tag == "tuple" else set(items)
        case "dict":
            return {decode(key, where): decode(item, where) for key, item in content}
        case "float":
            return float(content)
        case "dtype":
            dtype = getattr(torch, content, None)
            if isinstance(dtype, torch.dtype):
                return dtype
        case "function":
            if content in FUNCTIONS:
                place, _, name = content.rpartition(".")
                return getattr(torch._C._nn if place == "torch._C._nn" else importlib.import_module(place), name)
        case "class":
            if (cls := module_class(content)) is not None:
                return cls
        case "partial":
            function, arguments, keywords = (decode(item, where) for item in content)
            return functools.partial(function, *arguments, **keywords)
        case _:
            pass
    raise _unreadable(where, value)


def _unreadable(where: str, value: object) -> TlcError:
    return TlcError(
        f"{where} cannot be written down without a pickle: {str(value)[:120]}",
        hint="Pass --arch FILE.py:FUNCTION, a function that builds the model, so that tlc can build it again.",
    )


def check_buildable(node: Node, path: str = "") -> None:
    """Raise TlcError for the first class or attribute that `build_skeleton` could not make."""
    if "same" in node:
        return
    if module_class(node["class"]) is None:
        raise TlcError(
            f"{path or 'the model'} is a {node['class']}, which is no layer of torch, torchvision or timm",
            hint="Pass --arch FILE.py:FUNCTION, a function that builds the model, so that tlc can build it again.",
        )
    for key, value in node["attributes"].items():
        decode(value, f"{path or 'the model'}.{key}")
    for key, child in node["modules"].items():
        if child is not None:
            check_buildable(child, join(path, key))


def build_skeleton(node: Any) -> nn.Module:
    """Build the tree with parameters and buffers of the recorded shapes, filled from the current generator."""
    if not isinstance(node, dict):
        raise TlcError("the checkpoint records no skeleton", hint="Save the model again with this version of tlc.")
    check_buildable(node)
    made: dict[str, nn.Module] = {}
    return _built(node, "", made)


def _built(node: Node, path: str, made: dict[str, nn.Module]) -> nn.Module:
    if "same" in node:
        return made[node["same"]]
    cls = module_class(node["class"])
    assert cls is not None
    module = object.__new__(cls)
    nn.Module.__init__(module)
    made[path] = module
    attributes = {key: decode(value, join(path, key)) for key, value in node["attributes"].items()}
    if clashes := (_INTERNAL | {"__class__", "__dict__"}) & set(attributes):
        raise _unreadable(join(path, min(clashes)), "an internal of torch.nn.Module")
    vars(module).update(attributes)
    for key, shape in node["parameters"].items():
        module._parameters[key] = None if shape is None else nn.Parameter(torch.randn(shape) * 0.02)
    for key, persistent in node["buffers"].items():
        # Their shapes are not recorded: values always come from the weights.
        module.register_buffer(key, None if persistent is None else torch.zeros(0), persistent=persistent is not False)
    for key, child in node["modules"].items():
        module._modules[key] = None if child is None else _built(child, join(path, key), made)
    return module


def record_tensors(record: Record, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter and buffer of a pickled module with its dotted name, non-persistent buffers too."""
    for kind in ("_parameters", "_buffers"):
        for key, value in record.state[kind].items():
            if isinstance(value, torch.Tensor):
                yield join(path, key), value
    for key, child in record.state["_modules"].items():
        if child is not None:
            yield from record_tensors(child, join(path, key))
