"""The schema of what `tlc compare` finds about two models, A and B, version 1: a change is always B against A.

Units stand in the names. `_ratio` lies in [0, 1] but for the latency's, which is B's time over A's; `_points` are
percentage points. Intervals are 95 % confidence intervals, that of the latency ratio 99 %.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tlc.runtime.bench_report import BenchReport
from tlc.runtime.report import Accuracy, Interval

ENOUGH_ROUNDS = 10
"""Fewer rounds of blocks than this, and a bootstrap of them says nothing about what lies beyond them."""

Outcome = Literal["lost", "won", "other"]
Finding = Literal["worse", "better", "not shown"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PairedChange(_Record):
    """Change of a share of right answers on the same samples, and how sure it is.

    Rows are images, texts, questions, or words that are classified. McNemar's test and Tango's interval take rows for
    independent, which the words of one text are not; the bootstrap resamples whole texts.
    """

    rows: int
    before_ratio: float
    after_ratio: float
    change_points: Interval
    """Tango's score interval for paired proportions (Statistics in Medicine 17, 1998)."""
    lost: int
    """Rows that only A has right."""
    won: int
    """Rows that only B has right."""
    p: float
    """McNemar's exact test, two-sided."""
    adjusted_p: float
    """The same, adjusted for the number of changes that were looked at together (Holm 1979)."""

    @property
    def finding(self) -> Finding:
        """What the adjusted test shows at the level 0.05."""
        if self.adjusted_p > 0.05 or self.lost == self.won:
            return "not shown"
        return "worse" if self.lost > self.won else "better"


class ClassChange(PairedChange):
    """Change of one class's recall; adjusted for all classes of its data set."""

    name: str


class OutputDrift(_Record):
    """How far one output tensor of B is from A's, over all samples.

    A row is what an arg-max is taken over: the values of a sample, of a token where there are some for each, or the
    starts (or ends) of a question.
    """

    output: str
    samples: int
    rows: int
    max_abs: float
    mean_abs: float
    snr_db: float | None
    """10 log10(sum a^2 / sum (a - b)^2); None where a is zero or both are equal, which `max_abs` tells apart."""
    cosine_mean: float
    cosine_worst: float
    """Smallest cosine similarity of a row."""
    argmax_equal_ratio: float


class ChangedSample(_Record):
    """A sample that the two answer differently."""

    position: int
    """In the evaluation samples."""
    key: str
    """Its file, its line, or its place in an array."""
    text: str
    """What it says; "" for images."""
    truth: str
    """Class or answer; of words, those that changed, each with its tag."""
    answer_a: str
    answer_b: str
    confidence_a: float | None
    """Largest softmax, in [0, 1]; None where a sample has no single one."""
    confidence_b: float | None
    outcome: Outcome
    """`lost`: only A has it right; `won`: only B; of words: one of them more than the other."""


class DataComparison(_Record):
    """Both models on the evaluation samples of one data set."""

    path: str
    sha256: str
    """Over the evaluation samples' contents and labels."""
    noun: Literal["images", "texts"]
    samples: int
    accuracy_a: Accuracy
    accuracy_b: Accuracy
    change: PairedChange
    """Of the share of right answers; adjusted for the number of data sets."""
    bootstrap_points: Interval
    """The same change, percentile bootstrap over samples."""
    macro_f1_points: Interval | None
    """Change of macro F1, percentile bootstrap over samples; None where there are no classes."""
    per_class: list[ClassChange]
    """In the order of A's classes."""
    changed: list[ChangedSample]
    """Lost first, then won, then the others."""
    drift: list[OutputDrift]
    """B's outputs against A's."""
    not_compared: list[str]
    """Outputs without their like, a sentence each."""


class CompareReport(_Record):
    """Two models side by side."""

    schema_version: Literal[1] = 1
    kind: Literal["compare"] = "compare"
    tlc_version: str
    command: str
    a: str
    b: str
    target: str
    size_bytes_a: int
    size_bytes_b: int
    sha256_a: str
    sha256_b: str
    runtime_a: str
    """What its latency was measured in, with its version; what it was judged in where that is not here."""
    runtime_b: str
    bench: BenchReport | None
    """A's and B's latency and memory, in this order, measured in turns; None where that was not possible."""
    not_measured: str
    """Why there is no `bench`, and what to do; "" where there is."""
    data: list[DataComparison]

    @property
    def latency_ratio(self) -> Interval | None:
        """B's latency over A's, 99 % interval; None without latencies of both."""
        if self.bench is None or self.bench.models[1].latency is None:
            return None
        return self.bench.models[1].latency.ratio

    @property
    def rounds(self) -> int:
        """Rounds of blocks that the latency ratio is from, of all launches together."""
        return sum(launch.rounds for launch in self.bench.models[1].launches) if self.bench else 0
