"""A PyTorch model in a process of its own, run in blocks when asked: `python -m tlc.compress.torch_worker`.

A case's `options` are the fields of `TorchOptions`. The rest is `tlc.runtime.worker`.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tlc.compress.inputs import PreprocessOptions
from tlc.compress.text_model import is_text_model
from tlc.compress.torch_session import TorchSession
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.process import Case
from tlc.runtime.worker import Feeds, Request, serve

if TYPE_CHECKING:
    from tlc.compress.recipe import ModelSection  # not imported here: training takes seconds to import

WORKER = "tlc.compress.torch_worker"
"""Name of this module, as a `Case` wants it."""
_LIBRARIES = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers.modeling_utils"}


class TorchOptions(BaseModel):
    """What the model is, as `tlc.compress.recipe.ModelSection` says it, without its path."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    arch: str | None = None
    num_classes: int | None = None
    preprocess: PreprocessOptions = PreprocessOptions()
    tokenizer: Path | None = None
    """As all that follows from texts, it decides on what the network is fed, and not on how it runs."""
    max_length: int | None = None
    """As `tokenizer`."""
    pairs: bool = False
    """Whether texts come in pairs."""


def torch_case(name: str, model: "ModelSection", *, pairs: bool = False, **setting: Any) -> Case:
    """Return the case that runs `model` in PyTorch; `setting` is as `Case` takes it: threads, streams, batch, ..."""
    options = {**model.model_dump(mode="json", exclude={"path"}, exclude_unset=True), "pairs": pairs}
    return Case(name, model.path, worker=WORKER, options=options, **setting)


def open_model(request: Request) -> TorchSession:
    """Open the model that the request's options describe; UsageError for an option that there is not."""
    options = _options(request)
    return TorchSession(
        request.path,
        arch=options.arch,
        num_classes=options.num_classes,
        preprocess=options.preprocess,
        pairs=options.pairs,
        threads=request.threads,
    )


def import_for(request: Request) -> None:
    """Import what builds the network, so that its memory is counted without it."""
    arch = _options(request).arch or ""
    library = _LIBRARIES.get(arch.partition(":")[0])
    if library is None and is_text_model(request.path, arch or None):
        library = _LIBRARIES["hf"]
    if library is not None:
        import_module(library)


def profile(request: Request, _feeds: Feeds, _runs: int) -> list[dict[str, Any]]:
    """Raise TlcError: layers are timed in the runtimes that models are deployed in."""
    raise TlcError(
        f"layers of {request.path} are not timed in PyTorch",
        hint="Export it, and profile that file: tlc export MODEL -o model.onnx",
    )


def _options(request: Request) -> TorchOptions:
    try:
        return TorchOptions.model_validate(request.options)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise UsageError(
            f"the options of {request.path} are not those of a model: {wrong}",
            hint=f"Give {', '.join(TorchOptions.model_fields)}.",
        ) from error


if __name__ == "__main__":
    sys.exit(serve(open_model, import_for, profile))
