"""What the parent asks of a builder, and what comes back."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tlc.runtime.plan import EnginePrecision, LayerSummary, OutputComparison, ProfileShapes, TensorRecord


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BuildRequest(_Message):
    """One engine to build."""

    onnx: str
    plan: str
    """Where to write it."""
    precision: EnginePrecision
    strongly_typed: bool
    """Whether precisions stand in the graph: then no flag is set."""
    shapes: dict[str, ProfileShapes]
    """Of the inputs with an open dimension."""
    pools_bytes: dict[str, int]
    builder_level: int | None = None
    aux_streams: int | None = None
    """Extra streams that the engine may use; 0 takes the least memory, None is TensorRT's choice."""
    timing_cache: str | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    strip: bool = False
    refit: bool = False
    dla_core: int | None = None
    gpu_fallback: bool = True
    node_names: tuple[str, ...] = ()
    """For the parser's errors: before 10 it gives a node's number only."""


class Built(_Message):
    """An engine on disk."""

    tensorrt: str
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]
    profile: dict[str, ProfileShapes]
    device_memory_bytes: int | None
    timing_cache_hit: bool | None
    dla_layer_ratio: float | None
    build_s: float
    warnings: list[str]


class RefitRequest(_Message):
    """A plan to put weights into."""

    onnx: str
    """The file that has them."""
    stripped: str
    plan: str
    """Where to write the plan with the weights."""
    version_compatible: bool
    refittable: bool
    """Whether it shall take other weights later."""
    dla_core: int | None
    node_names: tuple[str, ...]


class Refitted(_Message):
    """A plan with its weights, on disk."""

    refittable: bool
    device_memory_bytes: int | None
    warnings: list[str]


class Contender(_Message):
    """A plan, with its sidecar beside it, to measure."""

    name: str
    plan: str
    onnx: str


class EvaluateRequest(_Message):
    """Plans to measure in turns, and to compare with ONNX Runtime."""

    contenders: list[Contender]
    reference: str
    """ONNX file whose accuracy the others are held against."""
    samples: int
    rounds: int
    seed: int = 0
    data: str | None = None
    preprocess: str | None = None
    """JSON of tlc.calibration.preprocess.Preprocess, for `data`."""
    classes: tuple[str, ...] = ()


class Scores(_Message):
    """What was found of one plan."""

    latency_ms: float
    gpu_ms: float
    layers: LayerSummary | None
    comparison: list[OutputComparison]
    top1: float | None
    notes: list[str]


class Evaluated(_Message):
    """What was found of all plans."""

    scores: dict[str, Scores]
    reference_top1: float | None
    inputs: Literal["images", "noise"]
    """What was fed."""
