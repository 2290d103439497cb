"""Distillation of text models: a student with fewer or narrower layers learns to answer as its teacher does."""

import copy
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tlc.calibration.text_augment import TextAugment
from tlc.calibration.text_set import UNLABELED, Task
from tlc.calibration.tokens import Tokens, encode, load_tokenizer, mask_token_id
from tlc.compress.distill import CachedLogits, LossSettings, ResolvedLossSettings
from tlc.compress.events import Emit, Progress
from tlc.compress.losses import attention_scores, hint, softened_kl, token_relations
from tlc.compress.objective import Batch, HeldOutSamples, Inputs, share_right
from tlc.compress.text_features import LayerFeatures
from tlc.compress.text_layers import transformer_layers
from tlc.compress.text_model import TextModel
from tlc.compress.text_train import TextSamples, evaluate_texts, on_device
from tlc.compress.train import Fitted, TrainSettings, fit
from tlc.runtime.artifact import sha256_json
from tlc.runtime.errors import TlcError, UsageError

_NO_ANSWER = -1e4


def distill_text(
    teacher: TextModel,
    student: TextModel,
    train: Tokens,
    holdout: Tokens,
    loss: LossSettings,
    training: TrainSettings,
    *,
    unlabeled: Tokens | None = None,
    layer_map: Sequence[int],
    augment: TextAugment | None = None,
    seed: int,
    folder: Path,
    logits_folder: Path,
    emit: Emit,
    what: str = "distill",
) -> tuple[TextModel, Fitted]:
    """Train `student` towards `teacher` on `train` and `unlabeled`; return it with its best held-out weights.

    The student's vocabulary may be a part of the teacher's: tokens that were encoded for another model are encoded
    again. `layer_map` has for each layer of the student the layer of the teacher that its features are compared with,
    but the student's last layer, which its head reads, is always compared with the teacher's last. `folder` keeps the
    state after each epoch; `logits_folder`, one for each teacher, its logits where they can be cached: for one class
    per text and without a feature loss. Else the teacher runs in every step, and every pass over the texts is varied
    anew. Neither model is changed.

    Raises:
        UsageError: the loss needs labels that varied texts do not have.
        TlcError: as `fit`; or the student's tokenizer has tokens that the teacher's has not.

    """
    training, settings = training.resolved("texts"), loss.resolved("texts")
    check_text_loss(loss)
    source = copy.deepcopy(teacher.module).requires_grad_(False).eval()
    if student.tokenizer != teacher.tokenizer:
        source = _Renumbered(source, teachers_ids(teacher.tokenizer, student.tokenizer))
    joined = _encoded_for(student, train)
    if unlabeled is not None:
        joined = joined.joined(_encoded_for(student, unlabeled))
    mask_id = mask_token_id(student.tokenizer)
    augment = augment or (TextAugment() if mask_id is not None else TextAugment(mask=0))
    samples = TextSamples(joined, mask_id or 0, augment)
    cached = settings.feature == "none" and student.text.task == "sequence-classification"
    objective = TextDistillation(
        source,
        settings,
        _cached_logits(source, samples, augment, seed, training.bf16, logits_folder, emit) if cached else None,
        task=student.text.task,
        layer_map=_last_to_last(teacher, student, layer_map),
        example=on_device(joined.feeds([0]), joined, torch.device("cpu")),
        bf16=training.bf16,
        seed=seed,
    )
    with closing(objective):
        fitted = fit(
            copy.deepcopy(student.module),
            samples,
            TextSamples(_encoded_for(student, holdout)),
            training,
            objective,
            seed=seed,
            views=settings.views if cached else max(1, training.epochs),
            folder=folder,
            emit=emit,
            what=what,
        )
    return student.after(f"{what}: {len(fitted.scores)} epochs, best {fitted.best_epoch}", fitted.network), fitted


def check_text_loss(loss: LossSettings) -> None:
    """Raise UsageError for a loss that needs what varied texts do not have."""
    if loss.loss == "decoupled":
        raise UsageError(
            'distill.loss = "decoupled" needs the label of every text, which varied and unlabeled texts have not.',
            hint='Set distill.loss = "logits".',
        )


def _encoded_for(model: TextModel, tokens: Tokens) -> Tokens:
    return tokens if tokens.fed == model.text else encode(tokens.texts, model.tokenizer, model.text)


def _last_to_last(teacher: TextModel, student: TextModel, layer_map: Sequence[int]) -> list[int]:
    theirs, ours = len(transformer_layers(teacher.module)), len(transformer_layers(student.module))
    if len(layer_map) != ours or not all(0 <= layer < theirs for layer in layer_map):
        raise ValueError(f"layer_map {list(layer_map)} for a student of {ours} layers and a teacher of {theirs}")
    return [*layer_map[:-1], theirs - 1]


def teachers_ids(teacher_tokenizer: str, student_tokenizer: str) -> Tensor:
    """Return the teacher's id of each of the student's tokens, (V,) int64, from the contents of two tokenizer.json.

    Raises TlcError if the teacher lacks one of them.
    """
    theirs: dict[str, int] = load_tokenizer(teacher_tokenizer).get_vocab(with_added_tokens=True)
    ours: dict[str, int] = load_tokenizer(student_tokenizer).get_vocab(with_added_tokens=True)
    unknown = sorted(set(ours) - set(theirs))
    if unknown:
        raise TlcError(
            f"{len(unknown)} of the student's {len(ours)} tokens are not the teacher's, such as {unknown[0]!r}.",
            hint="Make the student's vocabulary out of the teacher's.",
        )
    ids = torch.zeros(max(ours.values()) + 1, dtype=torch.int64)
    for token, index in ours.items():
        ids[index] = theirs[token]
    return ids


class _Renumbered(nn.Module):
    """A teacher that is asked with its student's token ids."""

    ids: Tensor

    def __init__(self, teacher: nn.Module, ids: Tensor) -> None:
        super().__init__()
        self.teacher = teacher
        self.register_buffer("ids", ids)

    def forward(self, input_ids: Tensor, *others: Tensor) -> Tensor:
        logits: Tensor = self.teacher(self.ids[input_ids], *others)
        return logits


def _cached_logits(
    teacher: nn.Module, samples: TextSamples, augment: TextAugment, seed: int, bf16: bool, folder: Path, emit: Emit
) -> CachedLogits:
    fed = samples.tokens.fed.model_dump(mode="json")
    key = sha256_json([samples.tokens.texts.digest, fed, augment.model_dump(mode="json"), seed])

    def compute(view: int) -> NDArray[np.float32]:
        done = 0

        def note(count: int) -> None:
            nonlocal done
            done += count
            emit(Progress(f"teacher's logits, view {view + 1}", done, len(samples)))

        logits = evaluate_texts(teacher, samples.view(seed, view), bf16=bf16, on_batch=note)
        found: NDArray[np.float32] = logits.numpy()
        return found

    return CachedLogits(folder / key[:16], compute)


class TextDistillation:
    """The training objective: labels, teacher's logits, and inner features, weighted by `settings`.

    A student that learns from the teacher alone is judged by how much of both's probability overlaps on the held-out
    texts: which epoch is the most accurate is a matter of chance, since a few hundred texts tell no differences below a
    point or two. With labels it is the accuracy all the same.
    """

    def __init__(
        self,
        teacher: nn.Module,
        settings: ResolvedLossSettings,
        logits: CachedLogits | None,
        *,
        task: Task,
        layer_map: Sequence[int],
        example: Inputs,
        bf16: bool,
        seed: int,
    ) -> None:
        """Without `logits` the teacher runs in every step; `example` tells the widths of the features to compare."""
        self._by_labels = settings.label_weight > 0 and not settings.label_free
        self.score_name = "accuracy" if self._by_labels else "overlap"
        self._teacher, self._settings, self._logits = teacher, settings, logits
        self._task, self._layer_map, self._example = task, layer_map, example
        self._bf16, self._seed = bf16, seed
        self._theirs: LayerFeatures | None = None
        self._ours: LayerFeatures | None = None
        self._projections = nn.ModuleList()

    def prepare(self, network: nn.Module, device: torch.device) -> list[nn.Parameter]:
        """Attach hooks for the feature loss; return the parameters of projections between unequal widths."""
        self._teacher.to(device)
        if self._settings.feature == "none":
            return []
        inputs = self._settings.feature != "hint"
        self._theirs, self._ours = LayerFeatures(self._teacher, inputs=inputs), LayerFeatures(network, inputs=inputs)
        if inputs:
            return []
        example = tuple(tensor.to(device) for tensor in self._example)
        with torch.no_grad():
            self._teacher(*example)
            network.eval()(*example)
        theirs, ours = self._theirs.take(), self._ours.take()
        widths = [(ours[k].shape[-1], theirs[layer].shape[-1]) for k, layer in enumerate(self._layer_map)]
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            self._projections = nn.ModuleList(
                nn.Identity() if student == teacher else nn.Linear(student, teacher) for student, teacher in widths
            ).to(device)
        return list(self._projections.parameters())

    def close(self) -> None:
        """Remove the hooks."""
        for features in (self._theirs, self._ours):
            if features is not None:
                features.close()

    def loss(self, logits: Tensor, inputs: Inputs, batch: Batch) -> Tensor:
        """Return the weighted sum of the losses; float32 logits (N, K), (N, T, K), or (N, T, 2) for answers."""
        settings, mask = self._settings, inputs[1]
        ours = _rows(logits, self._task)
        theirs = _rows(self._teacher_logits(inputs, batch), self._task)
        if self._task == "token-classification":
            real = mask.flatten().bool()
            distance = softened_kl(ours[real], theirs[real], settings.temperature)
        elif self._task == "question-answering":
            padding = (mask == 0).repeat_interleave(2, 0)
            distance = softened_kl(
                ours.masked_fill(padding, _NO_ANSWER), theirs.masked_fill(padding, _NO_ANSWER), settings.temperature
            )
        else:
            distance = softened_kl(ours, theirs, settings.temperature)
        label_weight = 0.0 if settings.label_free else settings.label_weight
        total = (1 - label_weight) * distance
        if label_weight:
            total = total + label_weight * _known_cross_entropy(ours, batch.labels.flatten())
        if self._ours is not None and self._theirs is not None:
            total = total + settings.feature_weight * self._feature_loss(self._ours, self._theirs, mask)
        return total

    def _teacher_logits(self, inputs: Inputs, batch: Batch) -> Tensor:
        if self._logits is not None:
            return torch.from_numpy(self._logits.view(batch.view)[batch.indices]).to(inputs[0].device)
        with torch.no_grad(), torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=self._bf16):
            logits: Tensor = self._teacher(*inputs)
        return logits.float()

    def _feature_loss(self, ours: LayerFeatures, theirs: LayerFeatures, mask: Tensor) -> Tensor:
        student, teacher = ours.take(), theirs.take()
        if self._settings.feature == "hint":
            real = mask.bool()
            distances = [
                hint(self._projections[k](student[k][real].float()), teacher[layer][real].float())
                for k, layer in enumerate(self._layer_map)
            ]
            return torch.stack(distances).mean()
        with torch.autocast(mask.device.type, torch.bfloat16, enabled=self._bf16):
            if self._settings.feature == "relation":
                pairs = [(len(student) - 1, self._layer_map[-1])]
            else:
                pairs = list(enumerate(self._layer_map))
            vectors = [(ours.attend(k, student[k]), theirs.attend(layer, teacher[layer])) for k, layer in pairs]
        if self._settings.feature == "attention":
            return torch.stack([attention_scores(s[:2], t[:2], mask) for s, t in vectors]).mean()
        ((our_qkv, their_qkv),) = vectors
        return torch.stack([_relations(s, t, mask) for s, t in zip(our_qkv, their_qkv, strict=True)]).sum()

    def holdout_reference(self, holdout: HeldOutSamples) -> Tensor | None:
        """Return the teacher's logits of the held-out part, for a score without labels."""
        return None if self._by_labels else holdout.logits(self._teacher, bf16=self._bf16)

    def score(self, logits: Tensor, labels: Tensor, reference: Tensor | None) -> float:
        """Return the accuracy, or the mean overlap of probabilities, 1 minus their total variation distance.

        Both lie in [0, 1]; an answer's start and end count half each.
        """
        if reference is None:
            return share_right(logits, labels)
        return float(torch.minimum(logits.softmax(-1), reference.softmax(-1)).sum(-1).mean())


def _rows(logits: Tensor, task: Task) -> Tensor:
    """Return one row per decision: (N, K) per text, (N * T, K) per token, (2 * N, T) per start or end of an answer."""
    if task == "question-answering":
        return logits.transpose(1, 2).flatten(0, 1)
    return logits.flatten(0, -2)


def _known_cross_entropy(rows: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over the rows that have a label; 0 where none has."""
    total = F.cross_entropy(rows, labels, ignore_index=UNLABELED, reduction="sum")
    return total / (labels != UNLABELED).sum().clamp_min(1)


def _relations(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Return the relation loss of one kind of vectors (N, heads, T, width), with as many heads as fit both sides."""
    ours, theirs = (vectors.transpose(1, 2).flatten(2).float() for vectors in (student, teacher))
    fitting = range(teacher.shape[1], 0, -1)
    heads = next(n for n in fitting if ours.shape[2] % n == 0 and theirs.shape[2] % n == 0)
    return token_relations(ours, theirs, mask, heads)
