"""Hugging Face folders: a model from its config, without remote code and without the network."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import nn

from tlc.calibration.texts import Task
from tlc.compress.hf_text import TextLogits, architecture_name, check_text_config, is_text_config, task_of
from tlc.runtime.errors import TlcError

# Keys that make transformers fetch code, kernels or another model.
_REFUSED = ("auto_map", "backbone", "use_timm_backbone", "quantization_config", "custom_pipelines")
_DROPPED = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation")

_AUTO_CLASSES: Mapping[Task | None, tuple[str, str]] = {
    None: ("AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING"),
    "sequence-classification": ("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"),
    "token-classification": ("AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING"),
    "question-answering": ("AutoModelForQuestionAnswering", "MODEL_FOR_QUESTION_ANSWERING_MAPPING"),
}
"""transformers' class that builds, and its table of classes that load, by task; None: images."""


def read_folder(folder: Path) -> dict[str, JsonValue]:
    """Return what a folder says: {"config", "preprocessor"} of an image classifier, {"config", "task"} of a text model.

    Raises TlcError for a folder without config.json, and for a model that is neither.
    """
    config = read_json(folder / "config.json")
    if config is None:
        hint = "Give the folder that save_pretrained wrote (config.json, model.safetensors, preprocessor_config.json)."
        raise TlcError(f"{folder} holds no config.json", hint=hint)
    recorded = recorded_config(config, str(folder))
    if task_of(recorded) is None:
        recorded["preprocessor"] = read_json(folder / "preprocessor_config.json") or {}
    return recorded


def recorded_config(config: dict[str, JsonValue], place: str) -> dict[str, JsonValue]:
    """Return {"config": ...}, and the "task" of a text model; TlcError for a model that tlc does not take."""
    if is_text_config(config):
        task = check_text_config(config, place)
        _check_plain(config, place)
        return {"config": config, "task": task}
    _check_classifier(config, place)
    return {"config": config}


def read_json(path: Path) -> dict[str, JsonValue] | None:
    """Return the object in a JSON file, None if there is no file; TlcError for anything else."""
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
        raise TlcError(
            f"{place} holds {shown}, no image or text classifier that transformers knows by itself",
            hint="Give a classifier, for example a ViTForImageClassification or BertForSequenceClassification.",
        )
    if isinstance(names, list) and names and not any("ImageClassification" in str(name) for name in names):
        raise TlcError(
            f"{place} holds {shown}, which has no classification head",
            hint="Fine-tune it with AutoModelForImageClassification and save that.",
        )
    _check_plain(config, place)


def _check_plain(config: Mapping[str, JsonValue], place: str) -> None:
    if refused := [key for key in _REFUSED if config.get(key)]:
        raise TlcError(
            f"{place}: config.json sets {', '.join(refused)}, which makes transformers fetch code or weights",
            hint="Save a model whose code is part of transformers.",
        )


def _classifiers() -> frozenset[str]:
    table = transformers().MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    return frozenset(config.model_type for config in table) - {
        "timm_wrapper"
    }  # names any timm model, on the network too


def transformers(part: str = "") -> Any:
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
    auto = getattr(transformers(), _AUTO_CLASSES[task_of(recorded)][0])
    # A text model's attention stays in plain operators: what is trained is what is exported and fused.
    for implementation in ("sdpa", "eager") if task_of(recorded) is None else ("eager",):
        try:
            model = auto.from_config(
                _config(recorded, num_classes),
                attn_implementation=implementation,
                trust_remote_code=False,
                dtype=torch.float32,
            )
        except (ValueError, AssertionError) as error:
            if implementation == "eager":
                raise TlcError(
                    f"the config of {architecture_name(recorded)} does not build: {error}",
                    hint="Save the model again with the installed transformers.",
                ) from error
        else:
            break
    return Logits(model) if task_of(recorded) is None else TextLogits(model)


def renamed_state(
    recorded: Mapping[str, JsonValue], state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor] | None:
    """Return `state` under the names that the installed transformers uses, which differ from those it stores.

    None if the weights do not fit the config.
    """
    logging = transformers(".utils.logging")
    config = _config(recorded, None)
    classifier = getattr(transformers(), _AUTO_CLASSES[task_of(recorded)][1])[type(config)]
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
    recorded_config(values, "the recorded config")
    known: dict[str, Any] = {key: value for key, value in values.items() if key not in _DROPPED}
    if num_classes is not None:
        known = {key: value for key, value in known.items() if key not in ("id2label", "label2id", "num_labels")}
        known["num_labels"] = num_classes
    return transformers().CONFIG_MAPPING[known.pop("model_type")].from_dict(known)


def config_name(package: str) -> str:
    """Return the model_type of a package of `transformers.models`: deberta_v2 is that of deberta-v2."""
    return package if package in transformers().CONFIG_MAPPING else package.replace("_", "-")


def config_changes(base: nn.Module, module: nn.Module) -> tuple[str, ...]:
    """Return the keys whose values differ in the configs that two networks of this module run by; () without one."""
    before, now = (
        vars(part.model)["config"].to_dict() if isinstance(part, Logits | TextLogits) else {} for part in (base, module)
    )
    return tuple(key for key in before if key in now and before[key] != now[key])


def class_names(recorded: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """Return id2label in order, () where it only holds LABEL_0, LABEL_1, ..."""
    config = recorded.get("config")
    labels = config.get("id2label") if isinstance(config, dict) else None
    if not isinstance(labels, dict) or set(labels) != {str(index) for index in range(len(labels))}:
        return ()
    names = tuple(str(labels[str(index)]) for index in range(len(labels)))
    return () if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that hold the folder's weights, safetensors before pickles, parts in order."""
    for pattern in ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin"):
        if found := sorted(folder.glob(pattern)):
            return tuple(found)
    raise TlcError(f"{folder} holds no model.safetensors", hint="Copy the whole folder that save_pretrained wrote.")
