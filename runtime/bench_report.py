"""The schema of what `tlc bench` finds, version 1: every sample, and what follows from them.

Units stand in the names. An interval is a 99 % confidence interval. None says that a value could not be read here, or
that too few samples were taken for it.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from tlc.runtime.report import Interval

NS_PER_MS = 1_000_000

Status = Literal["ok", "failed", "crashed", "hung", "out_of_memory"]
WarningCode = Literal[
    "throttled",
    "noisy_neighbour",
    "clocks_not_locked",
    "first_run_slow",
    "too_few_samples",
    "unstable",
    "memory_grows",
    "not_counted",
    "size_assumed",
    "reconnected",
]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BenchWarning(_Record):
    """Something that makes numbers worth less, with the value that says so."""

    code: WarningCode
    model: str | None
    """Name of the one it concerns; None: the whole machine."""
    message: str
    """One sentence with the value and its limit, and one with the next step."""


class Setting(_Record):
    """How a model was run."""

    batch: int
    threads: int
    streams: int
    """Inferences under way at once, each in a session of its own."""
    shapes: dict[str, list[int]]
    """Shape of every input."""
    assumed: list[str] = []
    """Open dimensions that were taken to be 1 because nobody said how long they are."""


class Memory(_Record):
    """Resident memory of the process that ran the model, over that of the same process before it loaded the model."""

    loaded_bytes: int
    """After loading."""
    run_bytes: int
    """What running added at its peak: activations, and workspace of the kernels."""
    peak_bytes: int
    """Peak, what loading needs for a moment included."""
    growth_bytes_per_run: float
    """Slope of resident memory over the timed runs: of a leak, what every run leaves behind."""
    device_bytes: int | None
    """Memory of a GPU of its own that the process held at the end; None without one."""


class Launch(_Record):
    """One process that loaded a model and ran it in blocks, in turns with the other models' processes."""

    runtime: str
    """With its version: `onnxruntime 1.31.1`."""
    setting: Setting
    load_ms: float
    first_ms: float
    """The first inference after loading."""
    warmup_runs: int
    warmup_stable: bool
    """Whether the last two windows of the warm-up differed by less than 2 %."""
    block: int
    """Runs per block. Samples i * block to (i + 1) * block - 1 are round i."""
    samples_ns: list[int]
    wall_ns: int
    """Of all blocks; with several streams it is less than the samples' sum."""
    cpu_ratio: float
    """CPU time of the process over wall time, during timed runs: cores that were busy."""
    overhead_ns: int
    """Time that the harness adds to a sample: median of timing a call that does nothing."""
    memory: Memory

    @model_validator(mode="after")
    def _whole_blocks(self) -> "Launch":
        if self.block < 1 or not self.samples_ns or len(self.samples_ns) % self.block:
            raise ValueError(f"{len(self.samples_ns)} samples are not a whole number of blocks of {self.block}")
        if min(self.samples_ns) < 1:
            raise ValueError(f"a sample of {min(self.samples_ns)} ns: the clock is too coarse")
        return self

    @property
    def rounds(self) -> int:
        """Number of blocks."""
        return len(self.samples_ns) // self.block

    def block_medians_ns(self) -> NDArray[np.float64]:
        """Return the ordinary median of each block, shape (rounds,), float64, nanoseconds."""
        return np.median(np.asarray(self.samples_ns, np.float64).reshape(-1, self.block), axis=1)


class Quantile(_Record):
    """One percentile with the order statistics that bound it; a bound that the samples do not reach is None."""

    percentile: float
    """50, 90, 95, 99; 100 is the maximum."""
    ms: float
    low_ms: float | None
    high_ms: float | None


class Latency(_Record):
    """Samples of all launches together."""

    samples: int
    quantiles: list[Quantile]
    mean_ms: float
    min_ms: float
    spread_ratio: float
    """Standard deviation over mean."""
    throughput_per_s: float
    """Samples (inferences times batch) a second while blocks ran, over all streams."""
    ratio: Interval | None
    """Latency over that of the first model, median of paired blocks; 1.0 for the first; None where that one failed."""

    def quantile(self, percentile: float) -> Quantile:
        """Return one of `quantiles`."""
        return next(found for found in self.quantiles if found.percentile == percentile)


class Energy(_Record):
    """Energy of the whole counter's domain (package, module, GPU), other work on it included."""

    counter: str
    """Such as `rapl package-0`, `nvml 0`, `ina3221 VDD_IN`, `tegrastats VDD_IN`."""
    joules_per_run: float
    watts: float
    idle_watts: float
    """Before anything ran."""
    seconds: float


class LayerTime(_Record):
    """Time of one layer in one inference, as the runtime says."""

    name: str
    kind: str
    """Operator or kernel."""
    ms: float
    ratio: float
    """Share of the sum over layers."""


class Peaks(_Record):
    """What this machine reaches, measured on the same number of threads."""

    threads: int
    fp32_per_s: float
    """Floating-point operations a second: two for a multiply-accumulate."""
    int8_per_s: float
    """Integer operations a second."""
    bytes_per_s: float
    """From and to memory, beyond the caches."""


class Roofline(_Record):
    """How far a model is from the machine's peaks: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009."""

    operations: int
    """Of one inference: two for each multiply-accumulate."""
    moved_bytes: int
    """Least traffic of one inference: weights, inputs and outputs, each once."""
    achieved_per_s: float
    bound_ms: float
    """The shortest time that the peaks allow."""
    bound_by: Literal["compute", "memory"]
    reached_ratio: float
    """bound_ms over p50: what is left is 1 minus this."""
    peaks: Peaks


class ModelBench(_Record):
    """One model in one setting."""

    name: str
    path: str
    sha256: str
    size_bytes: int
    weights_bytes: int | None
    runtime: str
    """With its version: `onnxruntime 1.31.1`."""
    setting: Setting
    status: Status
    problem: str
    """What went wrong and the next step; "" when `status` is ok."""
    launches: list[Launch]
    latency: Latency | None
    energy: Energy | None
    layers: list[LayerTime] | None
    """In the order of execution; None without `--profile`."""
    roofline: Roofline | None


class BenchReport(_Record):
    """Everything that one session on one machine measured."""

    schema_version: Literal[1] = 1
    kind: Literal["bench"] = "bench"
    tlc_version: str
    command: str
    seed: int
    environment: dict[str, Any]
    """Before: `tlc.runtime.environment.environment`."""
    machine: dict[str, Any]
    """What must be equal for numbers to be comparable: `tlc.runtime.environment.machine_identity`."""
    models: list[ModelBench]
    warnings: list[BenchWarning]
