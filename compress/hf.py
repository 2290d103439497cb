"""Hugging Face folders: an image classifier from its config, without remote code and without the network."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import nn

from tlc.runtime.errors import TlcError

# Keys that make transformers fetch code, kernels or another model.
_REFUSED = ("auto_map", "backbone", "use_timm_backbone", "quantization_config", "custom_pipelines")
_DROPPED = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation")


def read_folder(folder: Path) -> dict[str, JsonValue]:
    """Return {"config": ..., "preprocessor": ...} of an image classifier's folder.

    Raises TlcError for a folder without config.json, and for a model that is no image classifier of transformers.
    """
    config = _read_json(folder / "config.json")
    if config is None:
        hint = "Give the folder that save_pretrained wrote (config.json, model.safetensors, preprocessor_config.json)."
        raise TlcError(f"{folder} holds no config.json", hint=hint)
    _check_classifier(config, str(folder))
    return {"config": config, "preprocessor": _read_json(folder / "preprocessor_config.json") or {}}


def _read_json(path: Path) -> dict[str, JsonValue] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TlcError(f"{path} is not JSON: {error}", hint="Copy or download it again.") from error
    if not isinstance(value, dict):
        raise TlcError(f"{path} holds no JSON object", hint="Copy or download it again.")
    return value


def _check_classifier(config: Mapping[str, JsonValue], place: str) -> None:
    kinds = _classifiers()
    kind = config.get("model_type")
    names = config.get("architectures") or [f"model_type {kind}"]
    shown = ", ".join(map(str, names)) if isinstance(names, list) else str(names)
    if not isinstance(kind, str) or kind not in kinds:
        what = "a text model" if "vocab_size" in config else "no image classifier that transformers knows by itself"
        raise TlcError(
            f"{place} holds {shown}, {what}; this version of tlc compresses image classifiers",
            hint="Give an image classifier, for example a ViTForImageClassification or ResNetForImageClassification.",
        )
    if isinstance(names, list) and names and not any("ImageClassification" in str(name) for name in names):
        raise TlcError(
            f"{place} holds {shown}, which has no classification head",
            hint="Fine-tune it with AutoModelForImageClassification and save that.",
        )
    if refused := [key for key in _REFUSED if config.get(key)]:
        raise TlcError(
            f"{place}: config.json sets {', '.join(refused)}, which makes transformers fetch code or weights",
            hint="Save a model whose code is part of transformers.",
        )


def _classifiers() -> frozenset[str]:
    table = _transformers().MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    return frozenset(config.model_type for config in table) - {
        "timm_wrapper"
    }  # names any timm model, on the network too


def _transformers(part: str = "") -> Any:
    """Return transformers or a part of it; it carries no types worth checking against."""
    try:
        return importlib.import_module(f"transformers{part}")
    except ImportError as error:
        hint = "Run: pip install 'tlc[hf]'"
        raise TlcError("Hugging Face models need transformers, which is not installed", hint=hint) from error


class Logits(nn.Module):
    """A transformers image classifier that returns its logits, (N, K), instead of an output object."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits (N, K) for images (N, C, H, W)."""
        output = self.model(pixel_values=pixel_values, return_dict=True)
        logits = output.logits
        assert isinstance(logits, torch.Tensor)
        return logits


def build_classifier(recorded: Mapping[str, JsonValue], num_classes: int | None) -> nn.Module:
    """Return the classifier that the recorded config describes, random weights; state keys start with `model.`."""
    for implementation in ("sdpa", "eager"):
        try:
            model = _transformers().AutoModelForImageClassification.from_config(
                _config(recorded, num_classes),
                attn_implementation=implementation,
                trust_remote_code=False,
                dtype=torch.float32,
            )
        except ValueError:
            if implementation == "eager":
                raise
        else:
            break
    return Logits(model)


def renamed_state(
    recorded: Mapping[str, JsonValue], state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor] | None:
    """Return `state` under the names that the installed transformers uses, which differ from those it stores.

    None if the weights do not fit the config.
    """
    logging = _transformers(".utils.logging")
    config = _config(recorded, None)
    classifier = _transformers().MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        model, info = classifier.from_pretrained(
            None, config=config, state_dict=dict(state), output_loading_info=True, dtype=torch.float32
        )
    except RuntimeError:
        return None  # shapes differ; the comparison of names and shapes says which
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    if any(info.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")):
        return None
    return {f"model.{name}": value for name, value in model.state_dict().items()}


def _config(recorded: Mapping[str, JsonValue], num_classes: int | None) -> Any:
    values = recorded.get("config")
    if not isinstance(values, dict):
        raise TlcError("the architecture records no config", hint="Give the folder again: --arch hf:DIR.")
    _check_classifier(values, "the recorded config")
    known: dict[str, Any] = {key: value for key, value in values.items() if key not in _DROPPED}
    if num_classes is not None:
        known = {key: value for key, value in known.items() if key not in ("id2label", "label2id", "num_labels")}
        known["num_labels"] = num_classes
    return _transformers().CONFIG_MAPPING[known.pop("model_type")].from_dict(known)


def class_names(recorded: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """Return id2label in order, () where it only holds LABEL_0, LABEL_1, ..."""
    config = recorded.get("config")
    labels = config.get("id2label") if isinstance(config, dict) else None
    if not isinstance(labels, dict) or sorted(labels, key=int) != [str(index) for index in range(len(labels))]:
        return ()
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    return () if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that hold the folder's weights, safetensors before pickles, parts in order."""
    for pattern in ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin"):
        if found := sorted(folder.glob(pattern)):
            return tuple(found)
    raise TlcError(f"{folder} holds no model.safetensors", hint="Copy the whole folder that save_pretrained wrote.")
