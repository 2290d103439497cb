"""From a file on disk to a `Model`: what it is, which architecture it fits, what it is fed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tlc.calibration.preprocess import Preprocess
from tlc.compress.arch import FORMS, Architecture, build, parse_arch
from tlc.compress.checkpoint import is_saved, load_saved
from tlc.compress.formats import Checkpoint, read_checkpoint
from tlc.compress.hf import class_names, config_name, read_folder, recorded_config, weight_files
from tlc.compress.hf_text import architecture_name, task_of
from tlc.compress.inputs import PreprocessOptions, default_preprocess, resolve_preprocess
from tlc.compress.matching import Matched, match, shapes_of, suggest
from tlc.compress.model import Model
from tlc.compress.pickles import Record
from tlc.compress.skeleton import Node, check_buildable, describe
from tlc.runtime.errors import TlcError


def load_model(
    path: Path,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    preprocess: PreprocessOptions | None = None,
) -> Model:
    """Return the image classifier in `path`: any form of .pt, .safetensors, a Hugging Face folder, or a tlc model.

    arch: `torchvision:NAME`, `timm:NAME`, `FILE.py:FUNCTION` or `hf:DIR`; needed where the file holds weights alone.
    num_classes: checked against the weights. input_shape: (C, H, W) of the data, for where nothing else says.
    Raises TlcError for everything that is wrong with the file, its architecture or its preprocessing.
    """
    options = preprocess or PreprocessOptions()
    if path.is_dir() and is_saved(path):
        saved = load_saved(path, arch=arch)
        fed = resolve_preprocess(saved.preprocess, None, options)
        _check_classes(path, saved.num_classes, num_classes)
        return replace(saved, preprocess=fed)
    opened = open_model(path, arch, num_classes)
    check_images(opened.arch, path)
    _check_resize(options, input_shape, default_preprocess(opened.arch))
    if options.input is None and input_shape is not None and default_preprocess(opened.arch) is None:
        options = options.model_copy(update={"input": input_shape})
    fed = resolve_preprocess(None, default_preprocess(opened.arch), options)
    module = fill(opened)
    count = count_outputs(module, fed, opened.arch)
    _check_classes(path, count, num_classes)
    named = opened.checkpoint.classes or class_names(opened.arch.config)
    notes = "; ".join((opened.checkpoint.format, *opened.checkpoint.notes, *opened.matched.notes))
    return Model(
        module=module,
        arch=opened.arch,
        preprocess=fed,
        num_classes=count,
        classes=named if len(named) == count else (),
        history=(f"loaded {path.name} ({notes})",),
    )


def check_images(arch: Architecture, path: Path) -> None:
    """Raise TlcError for a text model."""
    if task_of(arch.config) is not None:
        raise TlcError(
            f"{path} holds {architecture_name(arch.config)}, a text model; images cannot be fed to it",
            hint="Give texts as the data: a CSV, TSV, JSONL or Parquet file, or a folder of .txt files.",
        )


def _check_resize(
    options: PreprocessOptions, input_shape: tuple[int, int, int] | None, default: Preprocess | None
) -> None:
    """Refuse to cut images to the model's input when nobody said so."""
    if default is not None or options.resize is not None or options.input is None or input_shape is None:
        return
    if options.input[1:] != input_shape[1:]:
        wanted, given = ("x".join(map(str, shape[1:])) for shape in (options.input, input_shape))
        hint = f"Pass --resize {wanted} to scale them, or --resize none to cut out the centre."
        raise TlcError(
            f"the images are {given}, the model's input is {wanted}: how to get there is not known", hint=hint
        )


class Opened:
    """A file with the architecture that fits it, before memory is spent on the network."""

    __slots__ = ("checkpoint", "matched")

    def __init__(self, checkpoint: Checkpoint, matched: Matched) -> None:
        self.checkpoint = checkpoint
        self.matched = matched

    @property
    def arch(self) -> Architecture:
        """With everything inferred from the weights."""
        return self.matched.arch


def open_model(path: Path, arch: str | None = None, num_classes: int | None = None) -> Opened:
    """Read `path` and find the architecture that fits: the given one, or that of a module that was saved whole.

    Raises TlcError; for weights alone without `arch` it suggests the ones that fit.
    """
    if path.is_dir():
        return _open_folder(path, arch, num_classes)
    named = parse_arch(arch) if arch is not None else None
    checkpoint = read_checkpoint(path)
    if named is not None:
        return Opened(checkpoint, match(named, checkpoint, num_classes))
    if checkpoint.record is not None:
        return Opened(checkpoint, _match_record(checkpoint, checkpoint.record))
    raise _unnamed(checkpoint)


def _open_folder(folder: Path, arch: str | None, num_classes: int | None) -> Opened:
    if (folder / "adapter_config.json").is_file():
        raise TlcError(
            f"{folder} holds an adapter (LoRA or another of peft), not a whole model",
            hint="Merge it: PeftModel.from_pretrained(base, DIR).merge_and_unload().save_pretrained(OUT).",
        )
    if not (folder / "config.json").is_file():
        hint = "Give a model file, a folder that tlc wrote (model.json), or one of Hugging Face (config.json)."
        raise TlcError(f"{folder} is a folder without a model in it", hint=hint)
    named = (
        parse_arch(arch) if arch is not None else Architecture(kind="hf", name=str(folder), config=read_folder(folder))
    )
    parts = [read_checkpoint(file) for file in weight_files(folder)]
    state = {key: value for part in parts for key, value in part.state.items()}
    dtypes = tuple(sorted({dtype for part in parts for dtype in part.dtypes}))
    whole = replace(parts[0], path=folder, format=f"Hugging Face folder, {parts[0].format}", state=state, dtypes=dtypes)
    return Opened(whole, match(named, whole, num_classes))


def _unnamed(checkpoint: Checkpoint) -> TlcError:
    holds = (
        f"{checkpoint.path} holds weights only ({checkpoint.format}): {len(checkpoint.state)} tensors, no architecture"
    )
    if any(key.endswith(("word_embeddings.weight", "tok_embeddings.weight")) for key in checkpoint.state):
        hint = "Pass --arch hf:DIR, the folder that holds the model's config.json and tokenizer.json."
        return TlcError(f"{holds}; its keys are those of a text model", hint=hint)
    close = suggest({key: tuple(value.shape) for key, value in checkpoint.state.items()})
    if close:
        choice = f"; pass --arch {close[0]}" + (f" (or {', '.join(close[1:3])})" if len(close) > 1 else "")
        return TlcError(f"{holds}; the keys fit {close[0]}", hint=f"The keys fit {close[0]}{choice}.")
    keys = ", ".join(list(checkpoint.state)[:3])
    hint = f"Pass --arch, one of {FORMS}: what builds the network with the keys {keys}, ..."
    return TlcError(f"{holds}; its keys fit no model of torchvision", hint=hint)


def _match_record(checkpoint: Checkpoint, record: Record) -> Matched:
    """Return the torchvision or transformers architecture that the pickled module is, or else its skeleton."""
    name = record.global_name
    if name.startswith("transformers."):
        return _match_transformers(checkpoint, record)
    node = describe(record)  # type: ignore[arg-type]
    state = dict(checkpoint.state)
    for candidate in suggest({key: tuple(value.shape) for key, value in state.items()}):
        matched = match(_with_recorded_options(parse_arch(candidate), node), checkpoint)
        if _agrees(describe(build(matched.arch)), node):
            return Matched(matched.arch, matched.state, (f"it is {matched.arch.text}", *matched.notes))
    check_buildable(node)
    return Matched(Architecture(kind="pickle", name=name, skeleton=node), state, ())


def _with_recorded_options(arch: Architecture, node: Node) -> Architecture:
    recorded = node["attributes"]
    options = {key: recorded[key] for key in ("transform_input", "image_size") if key in recorded}
    return arch.with_options(**options)


def _agrees(built: Node, pickled: Node) -> bool:
    """Whether two trees are the same network: attributes that both have are equal; versions differ in the rest."""
    if built["class"] != pickled["class"] or not set(built["modules"]) <= set(pickled["modules"]):
        return False
    left, right = built["attributes"], pickled["attributes"]
    if any(left[key] != right[key] for key in left.keys() & right.keys() if key not in ("training", "aux_logits")):
        return False
    pairs = [(child, pickled["modules"][name]) for name, child in built["modules"].items() if child is not None]
    return all(other is not None and "same" not in other and _agrees(child, other) for child, other in pairs)


def _match_transformers(checkpoint: Checkpoint, record: Record) -> Matched:
    config = record.state.get("config")
    values = dict(config.state) if isinstance(config, Record) and isinstance(config.state, dict) else {}
    name = record.global_name.rpartition(".")[2]
    values |= {"model_type": config_name(record.global_name.split(".")[2]), "architectures": [name]}
    plain: dict[str, Any] = {key: _plain(value) for key, value in values.items() if not key.startswith("_")}
    return match(Architecture(kind="hf", name=name, config=recorded_config(plain, str(checkpoint.path))), checkpoint)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) else None


def fill(opened: Opened) -> nn.Module:
    """Build the network and put the weights in: float32, on the CPU, in eval mode."""
    module = build(opened.arch, device="meta" if opened.arch.kind == "pickle" else "cpu")
    if opened.arch.kind == "pickle":
        _assign_all(module, opened.matched.state)
        return module.eval()
    try:
        module.load_state_dict(opened.matched.state, strict=True)
    except RuntimeError as error:
        raise TlcError(
            f"{opened.checkpoint.path} does not fit --arch {opened.arch.text}: {error}", hint="Pass another --arch."
        ) from error
    for name, value in _transient_buffers(module, opened.matched.state):
        value.copy_(opened.matched.state[name])
    return module.float().eval()


def _transient_buffers(module: nn.Module, state: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    known = shapes_of(module)
    return [(name, value) for name, value in module.named_buffers() if name in state and name not in known]


def _assign_all(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    made: dict[int, nn.Parameter] = {}
    for name, value in state.items():
        parent_name, _, leaf = name.rpartition(".")
        parent = module.get_submodule(parent_name)
        if leaf in parent._parameters:
            parent._parameters[leaf] = made.setdefault(id(value), nn.Parameter(value, value.is_floating_point()))
        else:
            parent._buffers[leaf] = value


def count_outputs(module: nn.Module, fed: Preprocess, arch: Architecture) -> int:
    """Return the number of logits, by running one blank image; TlcError if it does not run or returns no logits."""
    shape = fed.input_shape
    with torch.inference_mode():
        try:
            logits = module(torch.zeros(1, *shape))
        except Exception as error:  # whatever the network's own code raises for an input it cannot take
            raise TlcError(
                f"{arch.text} does not run on an input of {'x'.join(map(str, shape))}: {str(error).splitlines()[0]}",
                hint="Pass the size it was trained on with --input CxHxW.",
            ) from error
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or logits.shape[0] != 1:
        found = (
            f"a tensor of shape {tuple(logits.shape)}"
            if isinstance(logits, torch.Tensor)
            else f"a {type(logits).__name__}"
        )
        raise TlcError(
            f"{arch.text} returns {found}, not logits (N, classes)",
            hint="tlc compresses image classifiers; wrap the model so that it returns logits.",
        )
    return int(logits.shape[1])


def _check_classes(path: Path, count: int, wanted: int | None) -> None:
    if wanted is not None and wanted != count:
        raise TlcError(
            f"{path} has {count} outputs, the data has {wanted} classes", hint="Give the data it was trained on."
        )
