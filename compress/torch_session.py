"""A model in PyTorch itself: what the original costs before anything was done to it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from tlc.compress.checkpoint import is_saved, load_saved
from tlc.compress.hf_text import position_limit, task_of
from tlc.compress.inputs import PreprocessOptions, default_preprocess, resolve_preprocess, without_normalisation
from tlc.compress.load import check_images, fill, open_model
from tlc.compress.text_model import config_of, is_text_model, load_saved_text, token_inputs
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.session import Session, check_feeds, expected_feeds
from tlc.runtime.tensor import BATCH_NAME, INPUT_NAME, LENGTH_NAME, OUTPUT_NAME, TensorSpec

_NO_MEMORY = "can't allocate memory"
"""In what torch's CPU allocator says, as a plain RuntimeError."""


class TorchSession(Session):
    """A fine-tuned network in PyTorch on the CPU: float32, eval and inference mode, as it was trained.

    Its inputs and its output have the names that they have after `tlc export`: `input` ("N", C, H, W), or int64
    `input_ids`, `attention_mask` ("N", "T"); `logits`. The arguments are those of `load_model`. What normalises images
    is not part of the network, so no mean and std are needed; nor is a tokenizer. With `pairs`, texts come in pairs,
    and a network that tells them apart by `token_type_ids` takes those. The network has not run yet when the
    constructor returns.

    `threads` is set for the whole process: https://docs.pytorch.org/docs/stable/generated/torch.set_num_threads.html

    Raises UsageError below one thread, and TlcError for what is wrong with the file or its architecture.
    """

    def __init__(
        self,
        path: Path,
        *,
        arch: str | None = None,
        num_classes: int | None = None,
        preprocess: PreprocessOptions | None = None,
        pairs: bool = False,
        threads: int = 1,
    ) -> None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}", hint="Give the number of cores to use.")
        torch.set_num_threads(threads)
        self._path = path
        self._module: nn.Module | None
        self._longest: int | None = None
        if is_text_model(path, arch):
            self._module, names, self._longest = _text_network(path, arch, pairs)
            self._inputs = tuple(TensorSpec(name, (BATCH_NAME, LENGTH_NAME), "int64") for name in names)
        else:
            self._module, shape = _image_network(path, arch, num_classes, preprocess or PreprocessOptions())
            self._inputs = (TensorSpec(INPUT_NAME, (BATCH_NAME, *shape), "float32"),)
        self._outputs = (TensorSpec(OUTPUT_NAME, (), "float32"),)
        self._expected = expected_feeds(self._inputs)

    @property
    def runtime(self) -> str:
        """Version of torch."""
        return f"torch {torch.__version__}"

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the logits.

        Raises TlcError when a name, dtype or shape in `feeds` is not the model's, when the model fails on it, and when
        it returns something else; MemoryError when there is not enough memory.
        """
        if self._module is None:
            raise RuntimeError(f"the session of {self._path} is closed")
        check_feeds(self._path, self._inputs, self._expected, feeds)
        try:
            with torch.inference_mode():
                logits = self._module(*(torch.from_numpy(feeds[spec.name]) for spec in self._inputs))
        except Exception as error:  # whatever the network's own code raises
            if isinstance(error, MemoryError) or _NO_MEMORY in str(error):
                raise MemoryError(str(error)) from error
            raise self._failed(feeds, str(error) or type(error).__name__) from error
        if not isinstance(logits, torch.Tensor):
            raise self._failed(feeds, f"it returns a {type(logits).__name__}, not logits")
        return {OUTPUT_NAME: logits.numpy()}

    def _failed(self, feeds: Mapping[str, NDArray[Any]], problem: str) -> TlcError:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        limit = "" if self._longest is None else f" Its position embeddings reach {self._longest} tokens."
        return TlcError(
            f"{self._path} failed on {shapes}: {problem.splitlines()[0]}",
            hint=f"Try a batch of 1 and the sizes that it was trained on.{limit}",
        )

    def close(self) -> None:
        """Free the network; a second call does nothing."""
        self._module = None


def _image_network(
    path: Path, arch: str | None, num_classes: int | None, preprocess: PreprocessOptions
) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return the network and (C, H, W) of an image."""
    options = without_normalisation(preprocess)
    if path.is_dir() and is_saved(path):
        saved = load_saved(path, arch=arch)
        return saved.module, resolve_preprocess(saved.preprocess, None, options).input_shape
    opened = open_model(path, arch, num_classes)
    check_images(opened.arch, path)
    fed = resolve_preprocess(None, default_preprocess(opened.arch), options)
    return fill(opened), fed.input_shape


def _text_network(path: Path, arch: str | None, pairs: bool) -> tuple[nn.Module, tuple[str, ...], int]:
    """Return the network, the names of its inputs in order, and the most tokens that it takes."""
    if path.is_dir() and is_saved(path):
        saved = load_saved_text(path)
        names = token_inputs(config_of(saved.module), saved.text.task, pairs=True) if pairs else saved.text.inputs
        return saved.module, names, position_limit(config_of(saved.module))
    opened = open_model(path, arch)
    task = task_of(opened.arch.config)
    assert task is not None, path
    module = fill(opened)
    config = config_of(module)
    return module, token_inputs(config, task, pairs=pairs), position_limit(config)
