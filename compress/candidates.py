"""What can be ranked: a model file or folder, an encoder without a head, or an architecture alone."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import JsonValue

from tlc.compress.arch import FORMS, Architecture, accepts_num_classes, build, parse_arch
from tlc.compress.formats import read_checkpoint
from tlc.compress.hf import read_json, recorded_config, transformers, weight_files
from tlc.compress.hf_text import is_text_config
from tlc.compress.inputs import PreprocessOptions, default_preprocess, resolve_preprocess
from tlc.compress.load import count_outputs, load_model
from tlc.compress.model import Model
from tlc.compress.recipe import ModelSection
from tlc.compress.text_model import TextModel, is_text_model, load_text_model
from tlc.compress.tokenizer_files import read_tokenizer
from tlc.runtime.artifact import sha256_file, write_text
from tlc.runtime.errors import TlcError

Weights = Literal["file", "cache", "random"]
_HEAD = "ForSequenceClassification"
_FIRST_WEIGHTS = "IMAGENET1K_V1"
"""Whose preprocessing `default_preprocess` returns."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network to rank, by where it is."""

    name: str
    """As it was given."""
    path: Path | None
    """File or folder of the weights; None: drawn at random."""
    arch: str | None
    weights: Weights

    @property
    def is_text(self) -> bool:
        """Whether it is a text model."""
        return self.path is not None and is_text_model(self.path, self.arch)


def parse_candidate(text: str) -> Candidate:
    """Read a CANDIDATE: PATH, FILE@ARCH, `hf:DIR`, or an ARCH, whose weights are torchvision's where these lie here.

    Raises TlcError for a path that is not there and a name that is no architecture.
    """
    if text.startswith("hf:"):
        return Candidate(text, _existing(text, Path(text.removeprefix("hf:"))), None, "file")
    if Path(text).exists():
        return Candidate(text, Path(text), None, "file")
    for place in (place for place, letter in enumerate(text) if letter == "@"):
        if Path(text[:place]).exists():
            parse_arch(text[place + 1 :])
            return Candidate(text, Path(text[:place]), text[place + 1 :], "file")
    if "@" in text:
        _existing(text, Path(text.partition("@")[0]))
    if text.startswith(("torchvision:", "timm:")) or ".py:" in text:
        arch = parse_arch(text)
        cached = _cached(arch)
        return Candidate(text, cached, text, "random" if cached is None else "cache")
    raise TlcError(
        f"There is nothing at {text}, and it is no architecture.",
        hint=f"Give a model file or folder, FILE@ARCH, or one of {FORMS}.",
    )


def _existing(text: str, path: Path) -> Path:
    if not path.exists():
        raise TlcError(f"{text}: there is nothing at {path}.", hint="Check the path.")
    return path


def _cached(arch: Architecture) -> Path | None:
    """Return torchvision's own weights where its folder of downloads holds them, whole."""
    if arch.kind != "torchvision" or arch.options:
        return None
    import torchvision

    entries: list[Any] = list(torchvision.models.get_model_weights(arch.name))
    for entry in sorted(entries, key=lambda one: one.name != _FIRST_WEIGHTS):
        file = Path(torch.hub.get_dir()) / "checkpoints" / str(entry.url).rpartition("/")[2]
        # The name ends with the first digits of the hash, as torch.hub checks it.
        if file.is_file() and sha256_file(file).startswith(file.stem.rpartition("-")[2]):
            return file
    return None


def open_images(
    candidate: Candidate, options: PreprocessOptions, num_classes: int, observed: tuple[int, int, int] | None, seed: int
) -> Model:
    """Return the candidate as an image classifier, with as many outputs as it comes with.

    `num_classes` is asked for where weights are random; `observed` is (C, H, W) of the data where all images agree.
    Raises TlcError as `load_model` does.
    """
    if candidate.path is not None:
        return load_model(candidate.path, arch=candidate.arch, input_shape=observed, preprocess=options)
    arch = parse_arch(cast("str", candidate.arch))
    if accepts_num_classes(arch):
        arch = arch.with_classes(num_classes)
    default = default_preprocess(arch)
    if options.input is None and default is None and observed is not None:
        options = options.model_copy(update={"input": observed})
    fed = resolve_preprocess(None, default, options)
    module = build(arch, seed=seed)
    return Model(module, arch, fed, count_outputs(module, fed, arch), (), ("random weights",))


def open_texts(
    candidate: Candidate, section: ModelSection, num_classes: int, *, pairs: bool, seed: int
) -> tuple[TextModel, list[str]]:
    """Return the candidate as a classifier of texts, and what was added: an encoder gets a head of random weights.

    Raises TlcError as `load_text_model` does, and for a model that answers something else than a class.
    """
    assert candidate.path is not None
    path, length = candidate.path, section.max_length
    notes = []
    config = read_json(path / "config.json") if path.is_dir() else None
    if config is None or not _lacks_head(config):
        model = load_text_model(path, arch=candidate.arch, max_length=length, pairs=pairs)
    else:
        with tempfile.TemporaryDirectory(prefix="tlc-") as folder:
            added = _write_with_head(path, config, num_classes, Path(folder), seed)
            model = load_text_model(Path(folder), max_length=length, pairs=pairs)
        notes = [f"an encoder without a head: {', '.join(added)} drawn at random"]
    if model.text.task != "sequence-classification":
        raise TlcError(
            f"{candidate.name} is for {model.text.task}; ranked are classifiers of whole texts",
            hint="Give its encoder, or a model that was fine-tuned to classify texts.",
        )
    return model, notes


def _lacks_head(config: Mapping[str, JsonValue]) -> bool:
    names = config.get("architectures")
    known = isinstance(names, list) and any(
        str(name).endswith((_HEAD, "ForTokenClassification", "ForQuestionAnswering")) for name in names
    )
    return is_text_config(config) and not known


def _write_with_head(
    folder: Path, config: Mapping[str, JsonValue], num_classes: int, out: Path, seed: int
) -> tuple[str, ...]:
    """Write the encoder in `folder` as a classifier into `out`; return the names of the tensors drawn at random."""
    part = transformers()
    kind = str(config.get("model_type"))
    known: dict[str, Any] = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    values = {**known, "num_labels": num_classes}
    built = part.CONFIG_MAPPING[kind].from_dict(values) if kind in part.CONFIG_MAPPING else None
    table = part.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if built is None or type(built) not in table:
        raise TlcError(f"{folder} holds a {kind}, which cannot classify texts", hint="Give another encoder.")
    named = {**values, "architectures": [table[type(built)].__name__]}
    recorded_config(named, str(folder))  # refuses what would fetch code, and families that tlc does not know
    state = {key: value for file in weight_files(folder) for key, value in read_checkpoint(file).state.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, info = _filled(table[type(built)], built, state)
    missing = sorted(info["missing_keys"])
    encoder = [key for key in missing if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key]
    if encoder:
        raise TlcError(
            f"{folder} lacks {len(encoder)} tensors of its encoder, first {encoder[0]}",
            hint="Copy the whole folder again.",
        )
    model.save_pretrained(out)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    write_text(out / "tokenizer.json", read_tokenizer(folder)[0])
    return tuple(missing)


def _filled(kind: Any, config: Any, state: Mapping[str, torch.Tensor]) -> tuple[Any, dict[str, Any]]:
    logging = transformers(".utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        model, info = kind.from_pretrained(
            None, config=config, state_dict=dict(state), output_loading_info=True, dtype=torch.float32
        )
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    return model, info
