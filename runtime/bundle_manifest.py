"""manifest.json of a bundle, version 1: what is in it, for which device, and what that has to reproduce."""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from tlc.runtime.limits import GateLimits
from tlc.runtime.plan import ProfileShapes, TensorRecord
from tlc.runtime.stored_zip import is_member_name
from tlc.runtime.target import Target

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
TOKENIZER = "tokenizer.json"
"""Name of the tokenizer's file in the folder that a manifest names."""
MIN_SNR_DB: dict[str, float] = {"fp32": 50.0, "fp16": 30.0, "int8": 20.0}
"""How near golden outputs have to be met, by the precision of the deployed file: another runtime adds up in another
order, and INT8 kernels round at other places."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Build(_Record):
    """How a TensorRT engine is built of the model."""

    profile: dict[str, ProfileShapes]
    """Shapes of the inputs with an open dimension."""
    workspace_bytes: int | None
    builder_level: int | None


class BundleLimits(_Record):
    """What the model has to keep on a device; None where there is no limit."""

    p50_ms: float | None = Field(None, gt=0)
    p90_ms: float | None = Field(None, gt=0)
    p99_ms: float | None = Field(None, gt=0)
    max_memory_bytes: int | None = Field(None, gt=0)
    max_size_bytes: int | None = Field(None, gt=0)
    max_slowdown_ratio: float | None = Field(None, gt=0)
    max_drop_points: float | None = Field(None, gt=0, le=100)

    @property
    def of_gate(self) -> GateLimits:
        """The same as limits of `tlc gate`."""
        return GateLimits(
            p50_under_ms=self.p50_ms,
            p90_under_ms=self.p90_ms,
            p99_under_ms=self.p99_ms,
            max_memory_bytes=self.max_memory_bytes,
            max_size_bytes=self.max_size_bytes,
            max_slowdown_ratio=self.max_slowdown_ratio,
            max_drop_points=self.max_drop_points,
        )


class GoldenSample(_Record):
    """Inputs with the outputs that they had where the bundle was made; members of the bundle."""

    image: str | None
    """Picture that the input was made from."""
    inputs: list[str]
    """.npy, in the order of the model's inputs."""
    outputs: list[str]


class Golden(_Record):
    """What a device has to reproduce before its numbers count."""

    source: Literal["noise", "data"]
    min_snr_db: float
    """Least signal-to-noise ratio of every output, 10 log10(sum r^2 / sum (r - c)^2)."""
    samples: list[GoldenSample] = Field(min_length=1)


class StageNote(_Record):
    """What one stage of the compression did."""

    name: str
    status: str
    reason: str


class Lineage(_Record):
    """Where the model is from, as far as it is known."""

    original_sha256: str | None = None
    """Of the file that was compressed."""
    recipe_sha256: str | None = None
    """Of the recipe as canonical JSON."""
    data_sha256: str | None = None
    stages: list[StageNote] | None = None
    command: str | None = None
    versions: dict[str, str] | None = None
    """Of the libraries that made it."""


class FileRecord(_Record):
    """A member."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Manifest(_Record):
    """manifest.json of a bundle."""

    format: Literal["tlc-bundle"] = "tlc-bundle"
    version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    created_with: str
    target: Target
    precision: Literal["fp32", "fp16", "int8"]
    """Of the deployed file."""
    model: str
    """Member: the ONNX file to deploy."""
    reference: str | None
    """Member: the float original, which a device may measure beside it."""
    inputs: list[TensorRecord] = Field(min_length=1)
    outputs: list[TensorRecord] = Field(min_length=1)
    fed: dict[str, Any] | None
    """Kind "image" with the fields of Preprocess, or kind "text" with those of TextInput; None: prepared inputs."""
    classes: list[str]
    tokenizer: str | None
    """Prefix of the tokenizer's members."""
    build: Build
    limits: BundleLimits
    golden: Golden
    licence: str | None
    """SPDX expression."""
    lineage: Lineage
    files: dict[str, FileRecord]
    """Every member but this one and its signature."""

    @field_validator("fed")
    @classmethod
    def _kind_known(cls, fed: dict[str, Any] | None) -> dict[str, Any] | None:
        if fed is not None and fed.get("kind") not in ("image", "text"):
            raise ValueError(f"kind is {fed.get('kind')!r}, not 'image' or 'text'")
        return fed

    @field_validator("files")
    @classmethod
    def _names_are_safe(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            if not is_member_name(name) or name in (MANIFEST, SIGNATURE):
                raise ValueError(f"{name!r} is no name of a member")
        return files

    @field_serializer("limits", "lineage")
    def _without_none(self, record: BundleLimits | Lineage) -> dict[str, Any]:
        return record.model_dump(mode="json", exclude_none=True)

    @property
    def members_named(self) -> list[str]:
        """Members that the manifest refers to."""
        named = [self.model, *([self.reference] if self.reference else [])]
        for sample in self.golden.samples:
            named += [*([sample.image] if sample.image else []), *sample.inputs, *sample.outputs]
        return [*named, *([self.tokenizer + TOKENIZER] if self.tokenizer else [])]

    def json_bytes(self) -> bytes:
        """Return the manifest as it stands in the file: sorted keys, a newline at the end."""
        value = self.model_dump(mode="json")
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode()
