"""Matching weights with an architecture: key prefixes, the number of classes, sizes, and what else could fit."""

import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from tlc.compress.arch import Architecture, accepts_num_classes, build, parse_arch, torchvision_names
from tlc.compress.formats import Checkpoint, is_counter
from tlc.compress.hf import renamed_state
from tlc.compress.hf_text import task_of
from tlc.runtime.errors import TlcError

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

_AUXILIARY = re.compile(r"(aux1|aux2|AuxLogits)\.")
"""googlenet's and inception_v3's heads that serve training only."""


@dataclass(frozen=True, slots=True)
class Matched:
    """An architecture with everything inferred, and the weights under its names."""

    arch: Architecture
    state: dict[str, torch.Tensor]
    notes: tuple[str, ...]


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the state_dict."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def built_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shapes that `arch` would have, without memory where its builder allows that."""
    try:
        return shapes_of(build(arch, device="meta"))
    except (NotImplementedError, RuntimeError):
        # The builder computes with values, which a meta tensor does not have: only parameters go there.
        from accelerate import init_empty_weights

        with init_empty_weights():
            return shapes_of(build(arch))


def match(arch: Architecture, checkpoint: Checkpoint, num_classes: int | None = None) -> Matched:
    """Match a file's weights with `arch`; prefixes are removed, classes and a ViT's image size read from the shapes.

    Raises TlcError showing the first keys and shapes that differ, in both directions.
    """
    notes: list[str] = []
    state = {key.replace("_orig_mod.", ""): value for key, value in checkpoint.state.items()}
    if arch.kind == "torchvision" and arch.name in ("googlenet", "inception_v3"):
        arch, state = _without_auxiliary(arch, state, notes)
    wanted = built_shapes(arch)
    if arch.kind == "hf":  # files hold the keys of transformers, without the wrapper's
        bare_wanted = {key.removeprefix("model."): shape for key, shape in wanted.items()}
        state = {f"model.{key}": value for key, value in _renamed(state, bare_wanted, notes).items()}
    else:
        state = _renamed(state, wanted, notes)
    if arch.kind == "hf" and set(state) != set(wanted):
        state = _without_unused(arch, state, wanted, notes)
        if set(state) != set(wanted):
            bare = {key.removeprefix("model."): value for key, value in state.items()}
            state = renamed_state(arch.config, bare) or state
    arch = _with_image_size(arch, state, wanted)
    classes = _inferred_classes(arch, state)
    if classes is not None and num_classes is not None and classes != num_classes:
        hint = f"Pass {classes} classes, or leave the number out."
        raise TlcError(f"{checkpoint.path} has {classes} outputs, not {num_classes}", hint=hint)
    if classes is not None:
        arch = arch.with_classes(classes)
    wanted = built_shapes(arch)
    state = {key: value for key, value in state.items() if key in wanted or not is_counter(key)}
    for key in wanted:
        if key not in state and is_counter(key):
            state[key] = torch.zeros(wanted[key], dtype=torch.int64)  # torch before 0.4.1 did not count
    _check(arch, {key: tuple(value.shape) for key, value in state.items()}, wanted, checkpoint)
    return Matched(arch, state, tuple(notes))


def _without_auxiliary(
    arch: Architecture, state: dict[str, torch.Tensor], notes: list[str]
) -> tuple[Architecture, dict[str, torch.Tensor]]:
    kept = {key: value for key, value in state.items() if not _AUXILIARY.search(key)}
    if len(kept) < len(state):
        notes.append("left out the auxiliary heads, which serve training only")
    if "transform_input" not in arch.options:
        notes.append("took transform_input=true, as torchvision does; ?transform_input=false if trained from scratch")
        arch = arch.with_options(transform_input=True)
    return arch, kept


def _without_unused(
    arch: Architecture, state: dict[str, torch.Tensor], wanted: Shapes, notes: list[str]
) -> dict[str, torch.Tensor]:
    """Return `state` without buffers that the network computes itself, and without a pooler that its head lacks."""
    computed = {name for name, _value in build(arch, device="meta").named_buffers()}
    kept = {key: value for key, value in state.items() if key in wanted or key not in computed}
    poolers = [key for key in kept if ".pooler." in key and key not in wanted]
    if poolers and task_of(arch.config) is not None:
        notes.append("left out the pooler, which this head does not use")
        kept = {key: value for key, value in kept.items() if key not in poolers}
    return kept


def _renamed(state: dict[str, torch.Tensor], wanted: Shapes, notes: list[str]) -> dict[str, torch.Tensor]:
    """Return `state` without the prefix (or with the one) that makes most keys match."""
    prefixes = {""} | {
        ".".join(key.split(".")[:depth]) + "." for key in state for depth in (1, 2, 3) if key.count(".") >= depth
    }
    added = {key.split(".")[0] + "." for key in wanted if "." in key}
    candidates: list[tuple[int, int, str, dict[str, torch.Tensor]]] = []
    for prefix in sorted(prefixes):
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        candidates.append((sum(key in wanted for key in inner), -len(prefix), prefix, inner))
    for prefix in sorted(added):
        outer = {prefix + key: value for key, value in state.items()}
        candidates.append((sum(key in wanted for key in outer), -len(prefix), f"+{prefix}", outer))
    matches, _length, prefix, renamed = max(candidates, key=lambda candidate: candidate[:2])
    if not matches or not prefix:
        return state
    outside = [
        key for key in state if not prefix.startswith("+") and not key.startswith(prefix) and not is_counter(key)
    ]
    if outside and set(wanted) - set(renamed):
        return state
    if not prefix.startswith("+"):
        notes.append(
            f"removed the prefix {prefix!r}" + (f", ignored {len(outside)} tensors outside it" if outside else "")
        )
    return renamed


def _with_image_size(arch: Architecture, state: Mapping[str, torch.Tensor], wanted: Shapes) -> Architecture:
    """Return a ViT with the image size that its position embedding (1, 1 + (size / patch)^2, D) tells."""
    for key, patch_key, option in (
        ("encoder.pos_embedding", "conv_proj.weight", "image_size"),
        ("pos_embed", "patch_embed.proj.weight", "img_size"),
    ):
        tokens = state[key].shape[1] if key in state and key in wanted and state[key].dim() == 3 else 0
        if not tokens or option in arch.options or tokens == wanted[key][1] or patch_key not in wanted:
            continue
        patch = wanted[patch_key][-1]
        side = round((tokens - 1) ** 0.5)
        if side * side == tokens - 1:
            return arch.with_options(**{option: side * patch})
    return arch


def _inferred_classes(arch: Architecture, state: Mapping[str, torch.Tensor]) -> int | None:
    """Return the classes at which shapes agree: sizes are linear in them, so two builds give slope and offset."""
    if not accepts_num_classes(arch):
        return None
    low, high = 7, 11
    small, large = built_shapes(arch.with_classes(low)), built_shapes(arch.with_classes(high))
    for key in small:
        if key not in large or key not in state or small[key] == large[key]:
            continue
        for axis, (first, second) in enumerate(zip(small[key], large[key], strict=True)):
            slope = (second - first) // (high - low)
            if slope > 0 and axis < state[key].dim():
                count, rest = divmod(state[key].shape[axis] - (first - slope * low), slope)
                if rest == 0 and count > 0:
                    return int(count)
    return None


def _check(arch: Architecture, found: Shapes, wanted: Shapes, checkpoint: Checkpoint) -> None:
    missing = [key for key in wanted if key not in found]
    unknown = [key for key in found if key not in wanted]
    other = [key for key in wanted if key in found and found[key] != wanted[key]]
    if not missing and not unknown and not other:
        return
    lines = [f"{checkpoint.path} does not fit --arch {arch.text}:"]
    if missing:
        lines.append(f"  {len(missing)} of {len(wanted)} tensors are missing: {_shown(missing, wanted)}")
    if unknown:
        lines.append(f"  {len(unknown)} of {len(found)} tensors are unknown to it: {_shown(unknown, found)}")
    if other:
        pairs = ", ".join(f"{key} {_shape(found[key])} instead of {_shape(wanted[key])}" for key in other[:3])
        lines.append(f"  {len(other)} have other shapes: {pairs}" + (", ..." if len(other) > 3 else ""))
    close = suggest(found) if arch.kind != "hf" else ()
    hint = f"The keys fit {close[0]}; pass --arch {close[0]}." if close else "Pass the --arch that made these weights."
    if arch.kind == "hf":
        hint = "Give the weights and the config.json that were saved together."
    raise TlcError("\n".join(lines), hint=hint)


def _shown(keys: list[str], shapes: Shapes) -> str:
    return ", ".join(f"{key} {_shape(shapes[key])}" for key in keys[:3]) + (", ..." if len(keys) > 3 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


_SUGGESTED_TIMM = (
    "resnet18", "resnet34", "resnet50", "resnet26", "vit_tiny_patch16_224", "vit_small_patch16_224",
    "vit_base_patch16_224",
    "deit_tiny_patch16_224", "efficientnet_b0", "efficientnet_lite0", "mobilenetv2_100", "mobilenetv3_small_100",
    "mobilenetv3_large_100", "convnext_atto", "convnext_tiny", "regnety_002", "swin_tiny_patch4_window7_224",
)  # fmt: skip


def suggest(found: Shapes) -> tuple[str, ...]:
    """Return the `--arch` values whose keys and shapes are these, apart from prefixes and the number of classes."""
    wanted = _normal(found)
    fitting = [name for name in _torchvision_candidates(wanted) if _fits(name, wanted)]
    if fitting or importlib.util.find_spec("timm") is None:
        return tuple(fitting)
    return tuple(name for name in (f"timm:{name}" for name in _SUGGESTED_TIMM) if _fits(name, wanted))


def _torchvision_candidates(wanted: Shapes) -> Iterator[str]:
    """Yield the models of every family whose first member has the same top-level parts."""
    for tops, names in _torchvision_families():
        if tops == _tops(wanted):
            yield from (f"torchvision:{name}" for name in names)


@functools.cache
def _torchvision_families() -> tuple[tuple[frozenset[str], tuple[str, ...]], ...]:
    import torchvision

    families: dict[str, list[str]] = {}
    for name in torchvision_names():
        families.setdefault(torchvision.models.get_model_builder(name).__module__, []).append(name)
    shapes = (built_shapes(Architecture(kind="torchvision", name=names[0])) for names in families.values())
    return tuple((_tops(_normal(first)), tuple(names)) for first, names in zip(shapes, families.values(), strict=True))


def _tops(shapes: Shapes) -> frozenset[str]:
    return frozenset(key.partition(".")[0] for key in shapes)


def _normal(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    keys = {key.replace("_orig_mod.", ""): shape for key, shape in shapes.items() if not is_counter(key)}
    while keys and len({key.split(".")[0] for key in keys}) == 1 and all("." in key for key in keys):
        keys = {key.partition(".")[2]: shape for key, shape in keys.items()}
    return {key: shape for key, shape in keys.items() if not _AUXILIARY.match(key)}


def _fits(text: str, wanted: dict[str, tuple[int, ...]]) -> bool:
    try:
        arch = parse_arch(text)
        built = _normal(built_shapes(arch))
    except (ImportError, TlcError, RuntimeError):
        return False
    if set(built) != set(wanted):
        return False
    # The head differs with the number of classes: at most its weight and bias, in one dimension.
    differing = [key for key in built if built[key] != wanted[key]]
    return len(differing) <= 2 and all(built[key][1:] == wanted[key][1:] for key in differing)
