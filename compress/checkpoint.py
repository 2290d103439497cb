"""A model on disk without a pickle: `model.json` says what it is, `model.safetensors` holds the numbers.

A text model's folder also holds its `tokenizer.json`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import nn

from tlc.calibration.preprocess import Preprocess
from tlc.calibration.tokens import TextInput
from tlc.compress.arch import Architecture, build, parse_arch
from tlc.compress.edits import apply_edit, edit_between
from tlc.compress.hf import config_changes
from tlc.compress.model import Model
from tlc.compress.skeleton import describe
from tlc.runtime.artifact import replacing_dir
from tlc.runtime.errors import TlcError

JSON_NAME = "model.json"
WEIGHTS_NAME = "model.safetensors"


class SavedModel(BaseModel):
    """The content of model.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["tlc-model/1"] = "tlc-model/1"
    architecture: Architecture
    edit: dict[str, JsonValue] = Field(default_factory=dict)
    """What differs from the architecture as it is built; see `tlc.compress.edits`."""
    tied: dict[str, str] = Field(default_factory=dict)
    """Parameter or buffer -> the one whose tensor it shares."""
    channels_last: tuple[str, ...] = ()
    """Tensors kept in channels-last order: it decides which kernel runs, and so the last bits of the outputs."""
    preprocess: Preprocess | None = None
    """How images are fed; None for a text model."""
    text: TextInput | None = None
    """How texts are fed; None for an image classifier."""
    num_classes: int
    classes: tuple[str, ...]
    history: tuple[str, ...]


def is_saved(directory: Path) -> bool:
    """Whether `directory` holds a model that `save_model` wrote."""
    return (directory / JSON_NAME).is_file()


def save_model(model: Model, directory: Path) -> None:
    """Write model.json and model.safetensors, replacing `directory` as a whole; the same model gives the same bytes.

    Raises TlcError before writing if a part of the network cannot be written down without a pickle.
    """
    saved = SavedModel(
        architecture=model.arch,
        preprocess=model.preprocess,
        num_classes=model.num_classes,
        classes=model.classes,
        history=model.history,
    )
    write_saved(saved, model.module, directory)


def write_saved(
    described: SavedModel, module: nn.Module, directory: Path, files: Mapping[str, str] | None = None
) -> None:
    """Write what is `described`, completed by what `module` is, its numbers, and further `files` by name.

    Raises TlcError before writing if a part of the network cannot be written down without a pickle.
    """
    arch = described.architecture
    edit: dict[str, JsonValue] = {}
    if arch.kind == "pickle":
        arch = arch.model_copy(update={"skeleton": describe(module)})
        build(arch, device="meta")
    else:
        base = build(arch)
        if changed := config_changes(base, module):
            raise TlcError(
                f"the network runs by another {', '.join(changed)} than its architecture records",
                hint="Report this as a bug of tlc.",
            )
        edit = edit_between(base, module)
    tensors, tied = _tensors(module)
    channels_last = tuple(name for name, tensor in tensors.items() if _is_channels_last(tensor))
    found = {"architecture": arch, "edit": edit, "tied": tied, "channels_last": channels_last}
    saved = described.model_copy(update=found)
    _check_repeats(saved, tensors)
    absent = {name for name in ("preprocess", "text") if getattr(saved, name) is None}
    with replacing_dir(directory) as folder:
        (folder / JSON_NAME).write_text(saved.model_dump_json(indent=1, exclude=absent) + "\n", encoding="utf-8")
        safetensors.torch.save_file({name: _own(tensor) for name, tensor in tensors.items()}, folder / WEIGHTS_NAME)
        for name, content in (files or {}).items():
            (folder / name).write_text(content, encoding="utf-8", newline="")


def load_saved(directory: Path, *, arch: str | None = None) -> Model:
    """Build the saved model again, outputs bit-equal; a model built by a FILE.py needs the same `arch` again.

    Raises TlcError if files are missing or damaged, or if FILE.py is not given or has changed.
    """
    saved = read_saved(directory)
    if saved.preprocess is None:
        raise TlcError(
            f"{directory} holds a text model; images cannot be fed to it", hint="Give texts, or an image classifier."
        )
    architecture = _owned(saved.architecture, arch, directory)
    return Model(
        module=rebuilt(saved, architecture, directory),
        arch=architecture,
        preprocess=saved.preprocess,
        num_classes=saved.num_classes,
        classes=saved.classes,
        history=saved.history,
    )


def rebuilt(saved: SavedModel, arch: Architecture, directory: Path) -> nn.Module:
    """Return the network that `directory` holds, in eval mode; TlcError if its files are damaged or do not fit."""
    tensors = read_weights(directory / WEIGHTS_NAME)
    try:
        return _rebuilt(arch, saved, tensors)
    except (KeyError, AttributeError, AssertionError, TypeError, ValueError, RuntimeError) as error:
        hint = "Copy both files again, or make them again with tlc."
        raise TlcError(f"{directory}: {JSON_NAME} and {WEIGHTS_NAME} do not fit: {error}", hint=hint) from error


def read_saved(directory: Path) -> SavedModel:
    """Read and check model.json alone."""
    path = directory / JSON_NAME
    try:
        return SavedModel.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise TlcError(
            f"{directory} holds no {JSON_NAME}", hint="Give the folder that tlc wrote the model to."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = f"{path} is not a model of this version of tlc: {place}: {first['msg']}"
        raise TlcError(message, hint="Make it again with tlc, or use the version of tlc that wrote it.") from error


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a safetensors file; TlcError if it is missing or damaged.

    They are copied out of the file's own memory, where they lie anywhere: on some processors the last bit of a product
    of matrices depends on whether they lie at multiples of 16 bytes.
    """
    try:
        return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    except FileNotFoundError as error:
        raise TlcError(f"{path} is missing", hint="Copy the whole folder.") from error
    except (safetensors.SafetensorError, json.JSONDecodeError, KeyError) as error:
        message = f"{path} is not a whole safetensors file ({path.stat().st_size:,} bytes): {error}"
        raise TlcError(message, hint="Copy or download it again.") from error


def _owned(recorded: Architecture, given: str | None, directory: Path) -> Architecture:
    """Return the recorded architecture with the user's FILE.py in place: a checkpoint never says which file to run."""
    if recorded.kind != "file":
        return recorded
    hint = "Pass --arch FILE.py:FUNCTION, the one the model was made with."
    if given is None:
        raise TlcError(
            f"the model in {directory} is built by {recorded.name}, which tlc runs only if you name it", hint=hint
        )
    arch = parse_arch(given)
    if arch.kind != "file" or arch.name.rpartition(":")[2] != recorded.name.rpartition(":")[2]:
        raise TlcError(f"the model in {directory} is built by {recorded.name}, not by {given}", hint=hint)
    if arch.source_sha256 != recorded.source_sha256:
        raise TlcError(
            f"{given} has changed since the model in {directory} was made: sha256 {arch.source_sha256[:12]}, "
            f"then {recorded.source_sha256[:12]}",
            hint="Pass --arch with the file as it was then.",
        )
    return recorded.model_copy(update={"name": arch.name})


def named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter and buffer with its name, tied and non-persistent ones too."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def identity(tensor: torch.Tensor) -> object:
    """Return what two tensors have in common that are the same numbers in the same memory."""
    if tensor.numel() == 0 or tensor.is_meta:
        return id(tensor)
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _tensors(module: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the distinct tensors by name, and the names that share the tensor of another."""
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, value in named_tensors(module):
        owner = first.setdefault(identity(value), name)
        if owner == name:
            tensors[name] = value.detach()
        else:
            tied[name] = owner
    return tensors, tied


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in memory of its own, as safetensors wants it: a view of a larger one is copied."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _rebuilt(arch: Architecture, saved: SavedModel, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Build, edit and fill; shapes are those of the tensors."""
    module = apply_edit(build(arch, device="meta" if arch.kind == "pickle" else "cpu"), saved.edit)
    owners = {**{name: name for name in tensors}, **saved.tied}
    wanted = {name for name, _tensor in named_tensors(module)}
    if wanted != set(owners):
        raise KeyError(f"{min(wanted ^ set(owners))} is in only one of them")
    made: dict[str, torch.Tensor] = {}
    for name, owner in sorted(owners.items()):
        value = tensors[owner]
        if owner in saved.channels_last:
            value = value.contiguous(memory_format=torch.channels_last)
        parent_name, _, leaf = name.rpartition(".")
        parent = module.get_submodule(parent_name)
        if leaf in parent._parameters:
            parent._parameters[leaf] = made.setdefault(owner, nn.Parameter(value, value.is_floating_point()))  # type: ignore[assignment]
        else:
            parent._buffers[leaf] = made.setdefault(owner, value)
    return module.eval()


def _check_repeats(saved: SavedModel, tensors: dict[str, torch.Tensor]) -> None:
    """Rebuild once before writing: what cannot be read back must not be written."""
    try:
        _rebuilt(saved.architecture, saved, tensors)
    except (KeyError, AttributeError, AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise TlcError(
            f"the model cannot be rebuilt from its architecture: {error}", hint="Report this as a bug of tlc."
        ) from error
