"""A smaller text model made of the teacher: fewer layers, heads, intermediate channels and tokens, weights kept."""

import copy
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from tlc.compress.cost import parameters
from tlc.compress.student import RemovedBlock, drop_blocks, eliminate, without_blocks
from tlc.compress.text_layers import embeddings_name, encoder_of, self_attentions, transformer_layers
from tlc.compress.text_model import TextModel
from tlc.compress.text_units import UnitKind, Units, keep_units, second_moments, units_of
from tlc.compress.vocabulary import Text, check_trimmable, trim_tokenizer
from tlc.runtime.errors import TlcError, UsageError

_FORMS = (
    "depth:0.5 (share of layers) or depth:3 (layers), heads:0.5 or heads:6 (of each layer), intermediate:0.5 or "
    "intermediate:768, width:0.5 (heads and intermediate), embedding:128 (rank), vocabulary:data, or A+B"
)
_KEYS = ("depth", "heads", "intermediate", "width", "embedding", "vocabulary")

Score = Callable[[nn.Module], float]
Amount = float | int
"""A share to keep, or how many."""


@dataclass(frozen=True, slots=True)
class TextStudentSpec:
    """What `--student` asks for: a float is the share to keep, an int how many; None leaves it as it is."""

    depth: Amount | None = None
    """Layers."""
    heads: Amount | None = None
    """Attention heads of each layer."""
    intermediate: Amount | None = None
    """Channels between the two linear layers of each layer."""
    embedding: int | None = None
    """Rank of the table of word embeddings."""
    vocabulary: bool = False
    """Whether to keep only the tokens that the data needs."""


class TextStudentRecord(BaseModel):
    """How a text student came to be; pairs are of the teacher and of the student."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: str
    teacher_score: float | None
    """What the score says of the unchanged teacher; None if no layer had to be chosen."""
    removed: tuple[RemovedBlock, ...]
    kept_layers: tuple[int, ...]
    """For each layer of the student, which layer of the teacher it is."""
    heads: tuple[int, int]
    """Of one layer; the least where layers differ."""
    intermediate: tuple[int, int]
    """Channels of one layer; the least where layers differ."""
    embedding: tuple[int, int]
    """Rank of the table of word embeddings."""
    vocabulary: tuple[int, int]
    """Tokens."""
    evaluations: int
    """How often the score was asked for."""
    parameters: tuple[int, int]


def is_text_student(spec: str) -> bool:
    """Return whether `spec` speaks of the parts of a text teacher, not of another model.

    >>> is_text_student("depth:3+intermediate:0.5"), is_text_student("hf:./tiny")
    (True, False)
    """
    return bool(re.match(rf"({'|'.join(_KEYS)}):", spec))


def parse_text_student(spec: str) -> TextStudentSpec:
    """Return what `spec` asks for. 1 is a share: all.

    >>> parse_text_student("depth:3+width:0.5")
    TextStudentSpec(depth=3, heads=0.5, intermediate=0.5, embedding=None, vocabulary=False)

    Raises UsageError for an unknown part, one that comes twice, and an amount out of its limits.
    """
    found: dict[str, Any] = {}
    for part in spec.split("+"):
        key, _, value = part.partition(":")
        fields = ("heads", "intermediate") if key == "width" else (key,)
        if key not in _KEYS:
            raise UsageError(f"{spec!r} is no student: {part!r} is not understood here.", hint=f"Use {_FORMS}.")
        if twice := [field for field in fields if field in found]:
            raise UsageError(f"{spec!r} says {twice[0]} twice.", hint=f"Use {_FORMS}.")
        found |= dict.fromkeys(fields, _amount(spec, key, value))
    return TextStudentSpec(**found)


def _amount(spec: str, key: str, value: str) -> Amount | bool:
    if key == "vocabulary":
        if value != "data":
            raise UsageError(f"vocabulary:{value} in {spec!r} is not understood.", hint="Use vocabulary:data.")
        return True
    whole = re.fullmatch(r"\d+", value)
    if key == "embedding" or (whole and int(value) > 1 and key != "width"):
        if not whole or int(value) < 1:
            raise UsageError(f"{key}:{value} in {spec!r} is no number of dimensions.", hint="Use embedding:128.")
        return int(value)
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        what = "the share to keep is above 0 and at most 1" + ("" if key == "width" else ", a count is whole")
        raise UsageError(f"{key}:{value} in {spec!r} is out of range: {what}.", hint=f"Use {_FORMS}.")
    return share


def check_text_student(model: TextModel, spec: str) -> None:
    """Refuse before any work what `text_student_from_teacher` could not do.

    Raises UsageError for a wrong spec and for more than the model has, TlcError for a tokenizer that cannot be trimmed
    and for heads that cannot be removed.
    """
    wanted = parse_text_student(spec)
    module = model.module
    _check_limit("depth", wanted.depth, len(transformer_layers(module)), "layers")
    if wanted.heads is not None:
        _check_limit("heads", wanted.heads, min(units.count for units in units_of(module, "heads")), "heads per layer")
    if wanted.intermediate is not None:
        most = min(units.count for units in units_of(module, "intermediate"))
        _check_limit("intermediate", wanted.intermediate, most, "intermediate channels per layer")
    if wanted.embedding is not None and wanted.embedding >= (rank := _rank(module)):
        raise UsageError(
            f"embedding:{wanted.embedding} is not smaller: the word embeddings have {rank} dimensions.",
            hint=f"Use at most embedding:{rank - 1}; a quarter of them is usual.",
        )
    if wanted.vocabulary:
        check_trimmable(model.tokenizer)


def _check_limit(key: str, amount: Amount | None, most: int, what: str) -> None:
    if isinstance(amount, int) and amount > most:
        raise UsageError(
            f"{key}:{amount} keeps more than there are: the model has {most} {what}.",
            hint=f"Use at most {key}:{most}, or a share such as {key}:0.5.",
        )


def text_student_from_teacher(
    teacher: TextModel,
    spec: str,
    *,
    score: Score,
    batches: Sequence[Mapping[str, Tensor]],
    texts: Sequence[Text] = (),
    round_to: int = 8,
    max_evaluations: int = 120,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[TextModel, TextStudentRecord]:
    """Return the student that `spec` makes of `teacher`, with the teacher's weights, untrained, and how it was chosen.

    In this order: layers go one by one, each time the one whose absence leaves the highest score; heads and
    intermediate channels by `keep_units`, as many of every layer; then the embeddings, then the vocabulary.
    With `vocabulary:data` the student reads other token ids than the teacher: see `trim_vocabulary`.

    Args:
        teacher: stays as it is.
        spec: as `parse_text_student` reads it.
        score: rates a network, higher is better; it is fed with the teacher's token ids.
        batches: inputs by name, int64 (n, T), of some hundred training texts with the teacher's token ids, no labels.
        texts: whose tokens stay, for `vocabulary:data`: all that the student will be trained with.
        round_to: intermediate channels are kept in multiples of this.
        max_evaluations: as in `tlc.compress.student.choose_blocks`.
        on_progress: called with the scores and batches done, and how many there are.

    Raises as `check_text_student`, and TlcError where heads or channels are to go and `batches` is empty.

    """
    check_text_student(teacher, spec)
    wanted = parse_text_student(spec)
    narrower = wanted.heads is not None or wanted.intermediate is not None
    if (narrower or wanted.embedding is not None) and not batches:
        raise TlcError(f"{spec!r} needs training texts to measure with, and got none.", hint="Give training texts.")
    layers = len(transformer_layers(teacher.module))
    target = _count(wanted.depth, layers)
    scores = _scores_needed(teacher, layers, target, max_evaluations)
    progress = _Progress(on_progress, scores + len(batches) * narrower)

    student, removed, teacher_score = _shallower(teacher, target, progress.counted(score), max_evaluations)
    if narrower:
        student = _narrower(student, wanted, batches, round_to, progress)
    if wanted.embedding is not None:
        student = factorise_embeddings(student, wanted.embedding, batches)
    if wanted.vocabulary:
        student = trim_vocabulary(student, texts)
    record = TextStudentRecord(
        spec=spec,
        teacher_score=teacher_score,
        removed=removed,
        kept_layers=kept_layers(teacher, student),
        heads=_both(teacher, student, lambda module: min(found.heads for found in self_attentions(module))),
        intermediate=_both(teacher, student, lambda module: min(u.count for u in units_of(module, "intermediate"))),
        embedding=_both(teacher, student, _rank),
        vocabulary=_both(teacher, student, lambda module: _table(module).num_embeddings),
        evaluations=progress.scored,
        parameters=_both(teacher, student, parameters),
    )
    return student, record


class _Progress:
    """Counts what is done of what there is to do."""

    def __init__(self, report: Callable[[int, int], None] | None, total: int) -> None:
        self.report = report
        self.total = total
        self.scored = 0

    def counted(self, score: Score) -> Score:
        def scored(module: nn.Module) -> float:
            value = score(module)
            self.scored += 1
            self(self.scored)
            return value

        return scored

    def __call__(self, done: int) -> None:
        if self.report is not None:
            self.report(done, self.total)


def _both(teacher: TextModel, student: TextModel, what: Callable[[nn.Module], int]) -> tuple[int, int]:
    return what(teacher.module), what(student.module)


def _count(amount: Amount | None, of: int, round_to: int = 1) -> int:
    """Return how many of `of` to keep: at least `round_to`, in multiples of it where it is a share."""
    if amount is None:
        return of
    if isinstance(amount, int):
        return amount
    return min(of, max(1, math.floor(amount * of / round_to + 0.5)) * round_to)


def _scores_needed(teacher: TextModel, layers: int, target: int, max_evaluations: int) -> int:
    """Return how often `eliminate` will ask for a score, and once for the teacher."""
    total = layers - target
    if total == 0 or encoder_of(teacher.module).kind == "albert":
        return 0
    again = max(0, (max_evaluations - layers) // max(1, total - 1))
    return 1 + layers + sum(min(again, layers - gone) for gone in range(1, total))


def _shallower(
    model: TextModel, target: int, score: Score, max_evaluations: int
) -> tuple[TextModel, tuple[RemovedBlock, ...], float | None]:
    """Return `model` with `target` layers, what was removed in order, and the score of the whole model."""
    names = transformer_layers(model.module)
    if target == len(names):
        return model, (), None
    work = copy.deepcopy(model.module).eval()
    if encoder_of(work).kind == "albert":
        group = len(names) // encoder_of(work).config.num_hidden_layers
        repeats = max(1, round(target / group))
        student = _reconfigured(model, work, num_hidden_layers=repeats)
        return student.after(f"{repeats * group} of {len(names)} runs of the shared layer kept", work), (), None
    teacher_score = score(work)

    def score_without(gone: Sequence[str]) -> float:
        with without_blocks(work, gone):
            return score(work)

    removed, _ = eliminate(
        dict.fromkeys(names, ""), {"": len(names)}, len(names) - target, score_without, max_evaluations=max_evaluations
    )
    gone = sorted((block.name for block in removed), key=names.index)
    drop_blocks(work, gone)
    return model.after(f"{len(gone)} of {len(names)} layers left out: {', '.join(gone)}", work), removed, teacher_score


def _narrower(
    model: TextModel,
    wanted: TextStudentSpec,
    batches: Sequence[Mapping[str, Tensor]],
    round_to: int,
    progress: _Progress,
) -> TextModel:
    module = copy.deepcopy(model.module).eval()
    goals: list[tuple[Units, int]] = []
    kinds: tuple[tuple[UnitKind, Amount | None, int], ...] = (
        ("heads", wanted.heads, 1),
        ("intermediate", wanted.intermediate, round_to),
    )
    for kind, amount, multiple in kinds:
        for units in units_of(module, kind) if amount is not None else ():
            count = _count(amount, units.count, multiple)
            goals += [(units, count)] if count < units.count else []
    if not goals:
        return model
    scored = progress.scored
    moments = second_moments(
        module,
        [units for units, _count in goals],
        batches,
        on_progress=lambda done, _total: progress(scored + done),
    )
    for (units, count), found in zip(goals, moments, strict=True):
        keep_units(module, units, found, count)
    said = sorted({f"{count} of {units.count} {units.kind}" for units, count in goals})
    return model.after(f"kept in each layer: {', '.join(said)}", module)


def _table(module: nn.Module) -> nn.Embedding:
    """Return the table that token ids choose rows of."""
    encoder = encoder_of(module)
    words = module.get_submodule(encoder.path(encoder.family.words))
    table = words[0] if isinstance(words, nn.Sequential) else words
    assert isinstance(table, nn.Embedding)
    return table


def _rank(module: nn.Module) -> int:
    return _table(module).embedding_dim


def factorise_embeddings(model: TextModel, rank: int, batches: Sequence[Mapping[str, Tensor]]) -> TextModel:
    """Return `model` with its word embeddings as a table (tokens, rank) and a linear layer (rank -> width).

    The truncated SVD of the table, its rows weighted by the square root of how often `batches` have the token, plus
    one: no other factors of this rank are closer to the embeddings of the tokens of the texts, in squared error
    (Eckart and Young 1936, for a table with repeated rows).
    """
    module = copy.deepcopy(model.module)
    encoder = encoder_of(module)
    path, _, name = encoder.path(encoder.family.words).rpartition(".")
    table = _table(module)
    with torch.no_grad():
        words = module.get_submodule(f"{path}.{name}")(torch.arange(table.num_embeddings)).double()
        seen = torch.cat([batch["input_ids"][batch["attention_mask"].bool()] for batch in batches])
        often = torch.bincount(seen, minlength=table.num_embeddings).double() + 1
        _values, vectors = torch.linalg.eigh(words.T @ (words * often[:, None]))
        basis = vectors[:, -rank:].flip(1)  # columns of falling weight; eigh returns rising values
        narrow = nn.Embedding(table.num_embeddings, rank, padding_idx=table.padding_idx)
        wide = nn.Linear(rank, words.shape[1], bias=False)
        narrow.weight.copy_(words @ basis)
        wide.weight.copy_(basis)
    module.get_submodule(path)._modules[name] = nn.Sequential(narrow, wide).train(module.training)
    return model.after(f"word embeddings of rank {rank}, of {table.embedding_dim}", module)


def trim_vocabulary(model: TextModel, texts: Sequence[Text]) -> TextModel:
    """Return `model` with the tokens that `texts` use, and its tokenizer with it; outputs for `texts` are the same.

    Token ids change. A teacher and a student that are fed the same ids must both be trimmed: trim the teacher, then
    make the student of it. Raises TlcError as `trim_tokenizer`.
    """
    tokenizer, old_ids = trim_tokenizer(model.tokenizer, texts)
    module = copy.deepcopy(model.module)
    table = _table(module)
    before = table.num_embeddings
    if old_ids[-1] >= before:
        raise TlcError(
            f"the tokenizer has the token {old_ids[-1]}, the embedding only {before} rows",
            hint="Give the tokenizer that the model was trained with.",
        )
    new_id = {int(old): new for new, old in enumerate(old_ids)}
    pad_id = new_id[model.text.pad_id]
    if getattr(module.get_submodule(embeddings_name(module)), "padding_idx", pad_id) != pad_id:
        raise TlcError(
            f"the padding token would move from {model.text.pad_id} to {pad_id}, and this model counts positions by it",
            hint="Leave vocabulary out of --student.",
        )
    table.weight = nn.Parameter(table.weight.detach()[torch.from_numpy(old_ids)].clone())
    table.num_embeddings = len(old_ids)
    table.padding_idx = None if table.padding_idx is None else new_id.get(table.padding_idx)
    values = encoder_of(module).config.to_dict()
    special = {key: new_id[value] for key, value in values.items() if key.endswith("_token_id") and value in new_id}
    trimmed = replace(
        _reconfigured(model, module, vocab_size=len(old_ids), **special),
        tokenizer=tokenizer,
        text=model.text.model_copy(
            update={"pad_id": pad_id, "tokenizer_sha256": hashlib.sha256(tokenizer.encode()).hexdigest()}
        ),
    )
    return trimmed.after(f"{len(old_ids)} of {before} tokens kept", module)


def _reconfigured(model: TextModel, module: nn.Module, **values: int) -> TextModel:
    """Write values into the config of `module`, in place, and return `model` with the config it is rebuilt by."""
    config = encoder_of(module).config
    for key, value in values.items():
        setattr(config, key, value)
    recorded = model.arch.config["config"]
    assert isinstance(recorded, dict)
    arch = model.arch.model_copy(update={"config": {**model.arch.config, "config": {**recorded, **values}}})
    return replace(model, arch=arch)


def kept_layers(teacher: TextModel, student: TextModel) -> tuple[int, ...]:
    """Return for each layer of the student which layer of the teacher it was, for the losses between them.

    A student of ALBERT runs the same layer less often: its runs are spread evenly, as in `even_layers`.
    Raises TlcError if the student's layers are not the teacher's.
    """
    theirs, own = transformer_layers(teacher.module), transformer_layers(student.module)
    if encoder_of(student.module).kind == "albert":
        return even_layers(len(theirs), len(own))
    if not set(own) <= set(theirs):
        raise TlcError("the student was not made of this teacher's layers", hint="Give it even_layers instead.")
    return tuple(theirs.index(name) for name in own)


def even_layers(teacher: int, student: int) -> tuple[int, ...]:
    """Return for each of `student` layers the one of `teacher` layers at the same share of the depth, the last at last.

    >>> even_layers(12, 4)
    (2, 5, 8, 11)
    """
    return tuple(max(0, (index + 1) * teacher // student - 1) for index in range(student))
