"""The schema of `report.json`, version 1. Every number carries its unit in its name.

Ratios and rates lie in [0, 1]; `_points` are percentage points; an interval is a 95 % confidence interval unless its
name says otherwise.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tlc.runtime.budget import Budget
from tlc.runtime.search_report import SearchRecord

SCHEMA_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Record):
    """An estimate with its lower and upper confidence bound, in the unit of the field that holds it."""

    estimate: float
    low: float
    high: float


class LatencyRecord(_Record):
    """Latency of batch-1 inference. `samples_ms` holds every sample in the order of measuring.

    Of texts, the inputs are as long as the quantiles of the evaluation texts' lengths, in turns.
    """

    samples_ms: list[float]
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    throughput_per_s: float
    """Inferences a second in a closed loop at batch 1: 1000 / mean_ms."""
    speedup: Interval
    """Original's latency over this one's, median of paired blocks, 99 % bootstrap interval; 1.0 for the original."""


class ClassScore(_Record):
    """Scores of one class; `recall` is the class's own accuracy."""

    name: str
    support: int
    precision: float
    recall: float
    f1: float


class Accuracy(_Record):
    """Scores over one labelled split. A sample is an image, a text, a question, or a word that is classified."""

    samples: int
    correct: int
    top1: float
    """Share of right answers; of questions, of those answered exactly."""
    top5: float | None
    """None below six classes, where it says nothing."""
    macro_precision: float | None
    macro_recall: float | None
    macro_f1: float | None
    """None, like the two before it, for question answering."""
    roc_auc: float | None
    """One-vs-rest macro average (binary: of class 1); None when a class is absent from the split."""
    matthews: float | None
    """Matthews correlation coefficient, -1 to 1; None where there are no classes."""
    calibration_error: float | None
    """Expected calibration error of the softmax, 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599); None where
    there are no classes."""
    answer_f1: float | None
    """Mean F1 of the words of answer and truth, for question answering (SQuAD, arXiv 1606.05250); else None."""
    entity_f1: float | None
    """F1 of whole entities, for token classification with tags as CoNLL's; else None."""
    exact_ratio: float | None
    """Share of texts of which every word has the right class, for token classification; else None."""
    per_class: list[ClassScore]
    confusion: list[list[int]]
    """confusion[t][p]: samples of true class t predicted as p."""


class TextLengths(_Record):
    """Lengths of the evaluation texts, in tokens with the special ones, and where they are cut."""

    p50: int
    p99: int
    longest: int
    limit: int
    truncated: int
    """Texts over the limit, in all parts of the data."""


class ClassChange(_Record):
    """Change of one class's recall against the original, in points, with its paired interval."""

    name: str
    support: int
    before: float
    after: float
    change_points: Interval


class AccuracyChange(_Record):
    """Paired change of top-1 against the original on the same samples."""

    change_points: Interval
    """Candidate minus original, percentage points."""
    regressed: int
    """Samples that only the original classifies correctly."""
    improved: int
    """Samples that only the candidate classifies correctly."""
    mcnemar_p: float
    per_class: list[ClassChange]


class Agreement(_Record):
    """How far an exported file's outputs are from its source's on the same real samples."""

    samples: int
    max_abs_error: float
    cosine: float
    """Smallest cosine similarity over the samples."""
    top1_agreement: float
    """Share of samples with the same arg-max."""


class LayerPrecisions(_Record):
    """What an engine, or a model that OpenVINO compiled, says of its layers: proof that INT8 ran."""

    layers: dict[str, int]
    """Layers by precision, as the runtime names it (`int8`, `fp16`; OpenVINO's `u8`, `i8`, `f32`). Of OpenVINO the
    convolutions and matrix products."""
    time_ratios: dict[str, float]
    """Share of the time of one inference by precision; empty where the runtime does not tell."""
    reformats: int | None
    """Layers that only change the format of a tensor; None where the runtime does not tell."""


class Measurement(_Record):
    """One row: a file, what it costs, and what it gets right."""

    name: str
    """`original`, `student`, `pruned`, `fp16` or `int8`; of several INT8 files, with what tells them apart, such as
    `int8-mixed` or `int8-dynamic`; `original-int8` and so on are made of the original."""
    file: str
    """Path relative to the run's folder."""
    sha256: str
    made_from: str | None
    """Name of the measurement whose network or file this one was made from; None for the original."""
    precision: Literal["fp32", "fp16", "int8"]
    size_bytes: int
    parameters: int
    macs: int
    """Multiply-accumulate operations for one sample; of texts, for one of median length."""
    peak_memory_bytes: int | None
    """Peak resident memory of a fresh process that loads the file and runs it, over that of the empty process. None
    where the target's runtime is not here."""
    p50_ms_by_input: dict[str, float]
    """For texts, p50 of inputs other than of their own lengths: `long` (as long as the 99th percentile), `bucketed`
    (padded to the next multiple of 32 tokens), `padded` (to the limit). Empty for images, and without a latency."""
    latency: LatencyRecord | None
    """None where the target's runtime is not here: another one's would say nothing about it."""
    layers: LayerPrecisions | None
    """Precisions that the runtime really runs in, as it says itself; None where it does not tell."""
    accuracy: Accuracy
    change: AccuracyChange | None
    """None for the original."""
    agreement: Agreement | None
    """Against the network or file that this one was made from."""


class StageRecord(_Record):
    """What one stage of the run did."""

    name: str
    status: Literal["kept", "dropped", "skipped"]
    reason: str
    """One sentence: why it was kept, dropped or skipped, with the measured numbers."""
    seconds: float
    details: dict[str, Any]
    """Settings and findings of the stage, JSON values."""


class DataRecord(_Record):
    """Which samples were used for what."""

    path: str
    sha256: str
    """Over the files' contents and labels."""
    classes: list[str]
    fit_samples: int
    holdout_samples: int
    """Held out of train: early stopping, and every choice that the pipeline makes."""
    calibration_samples: int
    evaluation_samples: int
    unlabeled_samples: int
    """Texts without labels that were distilled on as well."""
    lengths: TextLengths | None
    """None for images."""
    skipped_files: list[str]


class ModelRecord(_Record):
    """The model that came in."""

    path: str
    sha256: str
    arch: str
    input_shape: list[int]
    """(C, H, W) of an image; (T,), the most tokens of a text."""


class Report(_Record):
    """Everything that a run found, in one session on one machine."""

    schema_version: Literal[1] = 1
    tlc_version: str
    command: str
    model: ModelRecord
    data: DataRecord
    target: str
    runtime: str
    """What every row ran in, with its version, and on which GPU: `onnxruntime 1.31.1`, `tensorrt 10.3.0 on Orin`."""
    not_measured: str
    """Why latency and memory were not measured, and what to do; empty where they were. Accuracy always is."""
    threads: int
    """Of the runtime, while latency and peak memory were measured."""
    preprocess: dict[str, Any]
    recipe: dict[str, Any]
    environment: dict[str, Any]
    stages: list[StageRecord]
    measurements: list[Measurement]
    """The original first, then in the order of the pipeline."""
    search: SearchRecord | None
    """The shapes of students that were tried; None where nothing was searched."""
    chosen: str
    """Name of the measurement that ships as `model.onnx`."""
    selected_by: str
    """Command that chose it after the run; empty where the run itself did."""
    budget: Budget
    budget_met: bool
    """Whether `chosen` keeps every limit of `budget`: its loss of top-1 on the evaluation split by the estimate."""
    confident: bool
    """Whether the whole 95 % interval of that loss is within the budget."""
    front: list[str]
    """The Pareto front: names of the measurements that no other equals in p50, file size, peak memory and top-1 and
    beats in one of them, as far as these were measured; by the estimates."""
    lost: dict[str, str]
    """By the name of each measurement but `chosen`, a sentence: why it does not ship."""
    needed: str
    """Where the budget is not met, by how much `chosen` misses it and what meets which limit; else empty."""
    verdict: str
    """One sentence that says what was gained, what was lost, and how sure that is."""
    warnings: list[str]
