"""The schema of what `tlc rank` finds about networks before they are fine-tuned, version 1.

Units stand in the names; `_ratio` lies in [0, 1], `_points` are percentage points, intervals are 95 % confidence
intervals.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tlc.runtime.report import Interval


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Cost(_Record):
    """What a file costs on the target's runtime, at batch 1."""

    size_bytes: int
    p50_ms: float | None
    """None where the target's runtime is not here."""
    peak_memory_bytes: int | None
    """Peak resident memory that loading and running add to an empty process; None as above."""


class RankedRow(_Record):
    """One candidate."""

    name: str
    """As it was given."""
    weights: Literal["file", "cache", "random"]
    """Where its weights are from; `cache` is torchvision's folder of downloads."""
    notes: list[str]
    """What was done to the network, as sentences."""
    layer: str
    """The last linear layer: what it reads are the features."""
    features: int
    """How many there are."""
    probe_ratio: Interval
    """Share of held-out samples that a linear classifier on the features has right; Wilson's interval (1927)."""
    behind_points: Interval
    """Its difference to the first row on the same samples, Tango's interval for paired proportions; 0 of the first."""
    logme: float
    """Log of the maximum evidence of the labels given the features, per sample; comparable within one report."""
    parameters: int
    macs: int
    """Multiply-accumulates of one sample; of texts, one as long as the median."""
    fp32: Cost
    int8: Cost | None
    """None where it was not asked for, or where no layer gains from INT8 on the target."""
    on_front: bool
    """No other row is at least as good in probe, latency, size and memory, and better in one."""

    @property
    def deployed(self) -> Cost:
        """What the front is drawn with: INT8 where it was measured."""
        return self.int8 or self.fp32


class RankReport(_Record):
    """Candidates by probe, the best first."""

    schema_version: Literal[1] = 1
    tlc_version: str
    command: str
    data: str
    sha256: str
    """Over the samples that were used, with their labels."""
    noun: Literal["images", "texts"]
    classes: list[str]
    fit_samples: int
    """Training samples that LogME saw, and the probe but for those of its own fold."""
    held_out_samples: int
    """Samples of train that the probe was asked about without having seen them. The evaluation split is not read."""
    folds: int | None
    """How many probes share the samples, each asked about its own part; None: one, asked about a held-out part."""
    target: str
    runtime: str
    not_measured: str
    """Why there is no latency, else empty."""
    threads: int
    rows: list[RankedRow]
