"""Text models of transformers: which families and heads are known, and how each is built and fed."""

from collections.abc import Mapping
from typing import Any, get_args

import torch
from pydantic import JsonValue
from torch import nn

from tlc.calibration.texts import Task
from tlc.compress.text_layers import FAMILIES
from tlc.runtime.errors import TlcError

_HEADS: Mapping[str, Task] = {
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}
_POSITIONS_FROM_PADDING = ("roberta",)
"""Families that count positions from pad_token_id + 1, so that many rows of their table are never used."""


def is_text_config(config: Mapping[str, JsonValue]) -> bool:
    """Whether a config.json is that of a text model, of a known family or not."""
    names = str(config.get("architectures"))
    return config.get("model_type") in FAMILIES or ("vocab_size" in config and "ImageClassification" not in names)


def check_text_config(config: Mapping[str, JsonValue], place: str) -> Task:
    """Return what the model's head answers.

    Raises TlcError for another family, no head of the three, several labels at once, or a number instead of a class.
    """
    kind, shown = config.get("model_type"), _shown(config)
    if kind not in FAMILIES:
        raise TlcError(
            f"{place} holds {shown}, a text model of the family {kind}, which tlc does not know",
            hint=f"Known are {', '.join(FAMILIES)} (MiniLM is a bert).",
        )
    task = next((task for head, task in _HEADS.items() if shown.endswith(head)), None)
    if task is None:
        raise TlcError(
            f"{place} holds {shown}, which has no head for a task",
            hint=f"Fine-tune it with AutoModel{', AutoModel'.join(_HEADS)}, and save that.",
        )
    problem = config.get("problem_type")
    if task == "sequence-classification" and problem == "multi_label_classification":
        raise TlcError(
            f"{place}: {shown} gives several labels to one text (problem_type multi_label_classification)",
            hint="Give a model that chooses one class; accuracy and its guarantees are those of one class per text.",
        )
    if task == "sequence-classification" and (problem == "regression" or count_labels(config) == 1):
        raise TlcError(
            f"{place}: {shown} has one output, a number instead of a class (regression)",
            hint="Give a model that chooses one of at least two classes.",
        )
    return task


def _shown(config: Mapping[str, JsonValue]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else f"a {config.get('model_type')} that names no class"


def architecture_name(recorded: Mapping[str, JsonValue]) -> str:
    """Return the transformers class that the recorded config names, for messages."""
    config = recorded.get("config")
    return _shown(config) if isinstance(config, dict) else "no config"


def count_labels(config: Mapping[str, JsonValue]) -> int:
    """Return the outputs that the config promises; 2 where it says nothing, as transformers does."""
    labels, count = config.get("id2label"), config.get("num_labels")
    if isinstance(labels, dict):
        return len(labels)
    return count if isinstance(count, int) else 2


def task_of(recorded: Mapping[str, JsonValue]) -> Task | None:
    """Return what the recorded architecture's head answers; None for an image classifier."""
    task = recorded.get("task")
    return next((known for known in get_args(Task) if known == task), None)


def position_limit(config: Any) -> int:
    """Return the most tokens that the position embeddings of a transformers config allow."""
    positions: int = config.max_position_embeddings
    return positions - config.pad_token_id - 1 if config.model_type in _POSITIONS_FROM_PADDING else positions


def takes_token_types(config: Any) -> bool:
    """Whether a transformers config has more than one segment, so that token_type_ids tell two texts apart."""
    return getattr(config, "type_vocab_size", 0) > 1


class TextLogits(nn.Module):
    """A transformers text model that takes its inputs by position and returns logits instead of an output object."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return float32 logits for int64 (N, T): (N, K), per token (N, T, K), or start and end (N, T, 2)."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **types)
        if "start_logits" in output:
            return torch.stack((output.start_logits, output.end_logits), dim=-1)
        logits = output.logits
        assert isinstance(logits, torch.Tensor)
        return logits
