"""What builds a network: `torchvision:NAME`, `timm:NAME`, `FILE.py:FUNCTION`, `hf:DIR`, or a recorded skeleton.

Options follow a question mark and are handed to the builder: `torchvision:vit_b_16?image_size=96`.
"""

import difflib
import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from torch import nn

from tlc.runtime.errors import TlcError, UsageError

ArchKind = Literal["torchvision", "timm", "file", "hf", "pickle"]

FORMS = "torchvision:NAME, timm:NAME, FILE.py:FUNCTION or hf:DIR"


class Architecture(BaseModel):
    """Enough to build the untrained network again; a FILE.py stays with its owner and is only identified."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ArchKind
    name: str
    """torchvision's or timm's name, `FILE.py:FUNCTION`, a folder, or the class of a pickled module."""
    num_classes: int | None = None
    """Outputs; None where the builder decides."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments for the builder."""
    source_sha256: str = ""
    """Of the FILE.py that holds the builder."""
    config: dict[str, JsonValue] = Field(default_factory=dict)
    """hf: the folder's `config` with its `preprocessor` or `task`, so that the folder is not needed again."""
    skeleton: JsonValue = None
    """pickle: the tree of modules; see `tlc.compress.skeleton`."""

    @property
    def text(self) -> str:
        """The form that `--arch` takes; `pickle` for a module that was saved whole."""
        if self.kind == "pickle":
            return "pickle"
        query = "&".join(f"{key}={_option_text(value)}" for key, value in sorted(self.options.items()))
        prefix = "" if self.kind == "file" else f"{self.kind}:"
        return f"{prefix}{self.name}" + (f"?{query}" if query else "")

    def with_classes(self, num_classes: int | None) -> "Architecture":
        """Return the same builder with `num_classes` outputs."""
        return self.model_copy(update={"num_classes": num_classes})

    def with_options(self, **options: JsonValue) -> "Architecture":
        """Return the same builder with `options` added."""
        return self.model_copy(update={"options": {**self.options, **options}})


def _option_text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def parse_arch(text: str) -> Architecture:
    """Read an `--arch`; runs nothing of a FILE.py.

    Raises UsageError for an unknown form or name (with the closest ones), TlcError for a missing file or folder.
    """
    body, _, query = text.partition("?")
    options = _parse_options(text, query)
    kind, _, rest = body.partition(":")
    if kind == "torchvision":
        return Architecture(kind="torchvision", name=_known(rest, "torchvision", torchvision_names()), options=options)
    if kind == "timm":
        return Architecture(kind="timm", name=_known(rest, "timm", timm_names()), options=options)
    if kind == "hf":
        from tlc.compress.hf import read_folder

        return Architecture(kind="hf", name=rest, config=read_folder(Path(rest)), options=options)
    file, colon, _function_name = body.rpartition(":")
    if colon and file.endswith(".py"):
        path = Path(file)
        if not path.is_file():
            raise TlcError(
                f"--arch {text}: there is no file {file}",
                hint="Give the path of the Python file that builds the model.",
            )
        return Architecture(kind="file", name=body, options=options, source_sha256=_sha256(path))
    if body.endswith(".py"):
        raise UsageError(
            f"--arch {text} names no function", hint=f"Write {body}:FUNCTION, the function that returns the model."
        )
    names = torchvision_names()
    if body in names:
        raise UsageError(f"--arch {text} is not one of {FORMS}", hint=f"Write --arch torchvision:{text}.")
    raise UsageError(f"--arch {text} is not one of {FORMS}", hint="For example --arch torchvision:resnet18.")


def _parse_options(text: str, query: str) -> dict[str, JsonValue]:
    options: dict[str, JsonValue] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--arch {text}: {pair!r} is not KEY=VALUE", hint="Write for example ?image_size=96.")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return options


def _known(name: str, library: str, names: tuple[str, ...]) -> str:
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
    hint = (
        f"Did you mean {', '.join(close)}?"
        if close
        else f"{library} has {len(names)} models, {names[0]} to {names[-1]}."
    )
    raise UsageError(f"{library} has no image classifier named {name!r}", hint=hint)


def torchvision_names() -> tuple[str, ...]:
    """Names of torchvision's image classifiers, sorted."""
    import torchvision

    return tuple(torchvision.models.list_models(module=torchvision.models))


def timm_names() -> tuple[str, ...]:
    """Names of timm's models, sorted; TlcError if timm is not installed."""
    try:
        import timm
    except ImportError as error:
        raise TlcError(
            "--arch timm:... needs timm, which is not installed", hint="Run: pip install 'tlc[timm]'"
        ) from error
    return tuple(timm.list_models())


def build(arch: Architecture, *, seed: int = 0, device: str = "cpu") -> nn.Module:
    """Return the network with random weights drawn from `seed`, in eval mode; the global generator is left as it was.

    `device="meta"` gives shapes without memory. A FILE.py is executed: it is the user's own code, named by `--arch`.
    """
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        module = _BUILDERS[arch.kind](arch)
    return module.eval()


def _build_torchvision(arch: Architecture) -> nn.Module:
    import torchvision

    builder = torchvision.models.get_model_builder(arch.name)
    options: dict[str, Any] = {**arch.options, **_classes_option(arch)}
    if arch.name in ("googlenet", "inception_v3"):
        # Both warn and draw slowly unless told; their auxiliary heads serve training only.
        options = {"aux_logits": False, "init_weights": False, **options}
    return _called(arch, lambda: builder(weights=None, **options))


def _build_timm(arch: Architecture) -> nn.Module:
    _known(arch.name, "timm", timm_names())
    import timm

    options: dict[str, Any] = {**arch.options, **_classes_option(arch)}
    return _called(arch, lambda: timm.create_model(arch.name, pretrained=False, **options))


def _build_file(arch: Architecture) -> nn.Module:
    file, _, name = arch.name.rpartition(":")
    function = _function(file, name, arch.source_sha256)
    options = dict(arch.options)
    try:
        signature = inspect.signature(function)
    except ValueError as error:
        raise TlcError(
            f"{arch.name} cannot be called: {error}", hint="Name a Python function or nn.Module class."
        ) from error
    if "num_classes" in signature.parameters:
        options.update(_classes_option(arch))
    missing = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in options
    ]
    if missing:
        example = "&".join(f"{parameter}=VALUE" for parameter in missing)
        hint = f"Pass --arch '{arch.name}?{example}', or write a function that needs none."
        raise TlcError(f"{arch.name} needs arguments: {', '.join(missing)}", hint=hint)
    return _called(arch, lambda: function(**options))


def _build_hf(arch: Architecture) -> nn.Module:
    from tlc.compress.hf import build_classifier

    return build_classifier(arch.config, arch.num_classes)


def _build_pickle(arch: Architecture) -> nn.Module:
    from tlc.compress.skeleton import build_skeleton

    return build_skeleton(arch.skeleton)


_BUILDERS: Mapping[ArchKind, Callable[[Architecture], nn.Module]] = {
    "torchvision": _build_torchvision,
    "timm": _build_timm,
    "file": _build_file,
    "hf": _build_hf,
    "pickle": _build_pickle,
}


def _classes_option(arch: Architecture) -> dict[str, int]:
    return {} if arch.num_classes is None else {"num_classes": arch.num_classes}


def _called(arch: Architecture, call: Callable[[], object]) -> nn.Module:
    """Return what the builder returned, with the builder's own complaint turned into one sentence."""
    try:
        module = call()
    except (TypeError, ValueError, AssertionError) as error:
        hint = "Check the options after '?' against the builder's arguments."
        raise TlcError(f"--arch {arch.text} could not be built: {error}", hint=hint) from error
    if not isinstance(module, nn.Module):
        raise TlcError(
            f"--arch {arch.text} returned {type(module).__name__}, not a torch.nn.Module",
            hint="Name a function that returns the model.",
        )
    return module


def accepts_num_classes(arch: Architecture) -> bool:
    """Whether the builder can be asked for a number of classes."""
    if arch.kind == "file":
        file, _, name = arch.name.rpartition(":")
        return "num_classes" in inspect.signature(_function(file, name, arch.source_sha256)).parameters
    return arch.kind != "pickle" and arch.config.get("task") != "question-answering"


def _function(file: str, name: str, sha256: str) -> Callable[..., object]:
    module = _executed(Path(file), sha256)
    function = getattr(module, name, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    close = difflib.get_close_matches(name, own, n=3) or own[:5]
    hint = f"It has: {', '.join(close)}." if close else "It defines no function."
    raise TlcError(f"{file} has no function {name!r}", hint=hint)


def _executed(path: Path, sha256: str) -> ModuleType:
    """Run a FILE.py once per content and return it as a module."""
    if not path.is_file():
        raise TlcError(
            f"the model is built by {path}, which is not there", hint="Pass --arch with the path of that file."
        )
    actual = _sha256(path)
    if sha256 and actual != sha256:
        hint = "Pass --arch with the file as it was when the model was saved."
        raise TlcError(
            f"{path} has changed: its sha256 is {actual[:12]}, the model was made with {sha256[:12]}", hint=hint
        )
    name = f"tlc_arch_{actual[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _neighbours_importable(path.parent):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise TlcError(
            f"{path} fails when imported: {type(error).__name__}: {error}", hint=f"Run: python {path}"
        ) from error
    return module


@contextmanager
def _neighbours_importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder.resolve()))
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = written
        sys.path.remove(str(folder.resolve()))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
