"""The schema of `sensitivity.json`, version 1: what each layer and block of a network is worth.

Ratios lie in [0, 1] unless said otherwise; `_points` are percentage points with a 95 % interval.
"""

from collections.abc import Iterator
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from tlc.runtime.report import Interval

SCHEMA_VERSION = 1

Treatment = Literal["int8", "channels-25", "channels-50", "removed"]
TREATMENTS: tuple[Treatment, ...] = get_args(Treatment)
SHARES: dict[Treatment, float] = {"channels-25": 0.25, "channels-50": 0.5}
"""Of the channels, or of the heads, that go."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Effect(_Record):
    """What one treatment of one layer or block does to the network that is otherwise as it was."""

    changed: tuple[str, ...]
    """Layers that lost output channels, ran in INT8, or went."""
    share_ratio: float
    """Share of the channels or heads that really went: whole ones go; 1 for the other treatments."""
    change_points: Interval
    """Top-1 with the treatment minus top-1 without, on the same samples: Tango's paired 95 % interval. What a cut is
    compared with: see `Sensitivity.cuts_top1_ratio`."""
    lost: int
    """Samples that only the untreated network has right."""
    won: int
    """Samples that only the treated network has right."""
    divergence: float
    """Softened Kullback-Leibler divergence of the answers from those of the untreated network, nats, mean over them."""
    latency_ratio: Interval | None
    """p50 with the treatment over p50 without, 99 % interval of paired blocks; None where it was not measured."""
    timed_as: str | None
    """Row whose file was measured: layers of the same shapes in the same places share a measurement."""


class Row(_Record):
    """A block, or a layer with weights."""

    name: str
    kind: Literal["block", "layer"]
    type: str
    """Its class: Conv2d, Linear, BasicBlock."""
    block: str | None
    """The block that a layer is in."""
    parameters: int
    macs: int
    """Multiply-accumulates of one sample in its convolutions and linear layers."""
    effects: dict[Treatment, Effect]
    """Only what can be done to it."""


class Sensitivity(_Record):
    """Every row in the order in which the network runs them; a block stands before its layers."""

    schema_version: int = SCHEMA_VERSION
    tlc_version: str
    command: str
    model: str
    arch: str
    target: str
    runtime: str
    not_measured: str
    """Why there are no latencies; else empty."""
    noun: Literal["images", "texts"]
    samples: int
    """Number of samples behind every accuracy; held out of train, joined by training samples where those are few."""
    held_out: int
    """How many of them were held out of train."""
    top1_ratio: float
    """Of the untreated network on them."""
    temperature: float
    """That logits are divided by for `Effect.divergence`; the divergence is multiplied by its square."""
    cuts_top1_ratio: float
    """Of the network that cuts are compared with: untreated but for its batch norms, which are re-estimated on the same
    few images as after every cut; equal to the other for networks without batch norms."""
    p50_ms: float | None
    """Of the untreated network, float32 as it is deployed, batch 1."""
    threads: int
    notes: tuple[str, ...]
    """What was left out, and why."""
    seconds: float
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        """Return the row of that name. Raises KeyError."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def cheapest(self, treatment: Treatment) -> Iterator[Row]:
        """Yield the rows that `treatment` can be applied to, the one whose answers change least first."""
        able = [row for row in self.rows if treatment in row.effects]
        yield from sorted(able, key=lambda row: row.effects[treatment].divergence)
