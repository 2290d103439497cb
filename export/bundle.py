"""Packing: everything about a model that a device needs, in one file. docs/bundle.md has the format."""

import hashlib
import io
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tlc.calibration.preprocess import Preprocess
from tlc.calibration.text_rows import Columns
from tlc.export.bundle_golden import GoldenInput, golden_inputs
from tlc.export.bundle_source import Source, one_file, require_packable
from tlc.export.card import model_card
from tlc.export.engine_options import BuildOptions, profile_shapes
from tlc.export.fidelity import plain_run
from tlc.export.graph import input_specs, output_specs
from tlc.export.metadata import Fed
from tlc.export.onnx_facts import OnnxFacts, read_onnx_facts
from tlc.export.sbom import cyclonedx, spdx_expression
from tlc.runtime.artifact import sha256_file
from tlc.runtime.bundle_manifest import (
    MANIFEST,
    MIN_SNR_DB,
    SIGNATURE,
    TOKENIZER,
    Build,
    BundleLimits,
    FileRecord,
    Golden,
    GoldenSample,
    Manifest,
)
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.plan import ProfileShapes, TensorRecord
from tlc.runtime.signature import sign
from tlc.runtime.stored_zip import Content, is_member_name, write_stored_zip
from tlc.runtime.tensor import TensorSpec

_MODEL, _REFERENCE, _TOKENIZER_FOLDER = "model.onnx", "reference.onnx", "tokenizer/"


class PackOptions(BaseModel):
    """What goes into a bundle beside the model."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str | None = None
    """None: the stem of the file's name."""
    with_reference: bool = False
    """Whether the float original goes along, so that a device can measure both."""
    golden: int = Field(default=4, ge=1, le=64)
    """How many golden samples."""
    data: Path | None = None
    """Where they are from; None for noise."""
    columns: Columns | None = None
    skip_bad: bool = False
    licence: str | None = None
    """SPDX expression."""
    limits: BundleLimits = BundleLimits()
    shapes: dict[str, ProfileShapes] = {}
    """Smallest, best and largest shape of inputs with open dimensions."""
    workspace_bytes: int | None = None
    builder_level: int | None = Field(default=None, ge=0, le=5)
    key: Path | None = None
    """Private key of OpenSSH to sign with."""


def pack(source: Source, out: Path, options: PackOptions) -> tuple[Manifest, list[str]]:
    """Write the bundle `out` and return its manifest, and warnings. The same inputs give the same bytes.

    Golden outputs are those that the file has by its definition: float32 arithmetic, node by node, on one thread.

    Raises:
        UsageError: options that contradict each other or the model; nothing was written.
        TlcError: a model that the target does not take, or that cannot be fed as it is said; data that is broken.

    """
    name = _name(out, options)
    licence = None if options.licence is None else spdx_expression(options.licence)
    if options.with_reference and source.reference is None:
        raise UsageError(
            f"--with-reference, and {source.path} comes without a float original",
            hint="Give the folder that tlc compress wrote.",
        )
    warnings = require_packable(source)
    facts = read_onnx_facts(source.path)
    profile = _profile(facts, source, options)
    model = one_file(source)
    proto = onnx.load(model) if isinstance(model, Path) else onnx.load_from_string(model)
    shapes = {name: list(entry.opt) for name, entry in profile.items()}
    specs = input_specs(proto)
    inputs = golden_inputs(
        source,
        specs,
        options.golden,
        data=options.data,
        columns=options.columns,
        shapes=shapes,
        skip_bad=options.skip_bad,
    )
    members: dict[str, Content] = {_MODEL: model}
    samples = _add_golden(members, proto, inputs)
    if options.with_reference and source.reference is not None:
        members[_REFERENCE] = source.reference
    if source.tokenizer is not None:
        members[_TOKENIZER_FOLDER + TOKENIZER] = source.tokenizer.encode()
    manifest = Manifest(
        name=name,
        created_with=f"tlc {version('tlc')}",
        target=source.target,
        precision=source.precision,
        model=_MODEL,
        reference=_REFERENCE if _REFERENCE in members else None,
        inputs=[_tensor(spec) for spec in specs],
        outputs=[_tensor(spec) for spec in output_specs(proto)],
        fed=_fed_record(source.fed),
        classes=list(source.classes),
        tokenizer=_TOKENIZER_FOLDER if source.tokenizer is not None else None,
        build=Build(profile=profile, workspace_bytes=options.workspace_bytes, builder_level=options.builder_level),
        limits=options.limits,
        golden=Golden(
            source="noise" if options.data is None else "data",
            min_snr_db=MIN_SNR_DB[source.precision],
            samples=samples,
        ),
        licence=licence,
        lineage=source.lineage,
        files=_records(members),
    )
    members["card.md"] = model_card(manifest, source.report).encode()
    members["sbom.cdx.json"] = cyclonedx(manifest, source.report)
    manifest = manifest.model_copy(update={"files": _records(members)})
    content = manifest.json_bytes()
    ordered: dict[str, Content] = {MANIFEST: content, **{member: members[member] for member in sorted(members)}}
    if options.key is not None:
        ordered[SIGNATURE] = sign(content, options.key)
    write_stored_zip(out, ordered)
    return manifest, warnings


def _name(out: Path, options: PackOptions) -> str:
    name = out.stem if options.name is None else options.name
    if not is_member_name(name) or "/" in name:
        raise UsageError(f"{name!r} is no name of a bundle", hint="Use letters, digits, dots, - and _: --name NAME.")
    if out.suffix != ".tlc":
        raise UsageError(f"-o {out} does not end in .tlc", hint=f"Write it to {out.name}.tlc.")
    return name


def _profile(facts: OnnxFacts, source: Source, options: PackOptions) -> dict[str, ProfileShapes]:
    """Return the shapes of inputs with open dimensions; what only TensorRT needs may be open for other runtimes."""
    needed = source.target.tensorrt is not None
    try:
        found = profile_shapes(facts, BuildOptions(shapes=options.shapes))
    except UsageError:
        if needed or options.shapes:
            raise
        return {}
    return {spec.name: found[spec.name] for spec in facts.inputs if any(isinstance(dim, str) for dim in spec.shape)}


def _add_golden(
    members: dict[str, Content], model: onnx.ModelProto, inputs: Sequence[GoldenInput]
) -> list[GoldenSample]:
    """Put the samples' files into `members` and return their record."""
    run = plain_run(model)
    samples = []
    for number, sample in enumerate(inputs):
        outputs = run(sample.feeds)
        bad = [value.name for value, output in zip(model.graph.output, outputs, strict=True) if not _finite(output)]
        if bad:
            raise TlcError(
                f"output {bad[0]} of golden sample {number} is not finite",
                hint="The model overflows on it: give real samples with --data, or repair the model.",
            )
        folder = f"golden/{number}/"
        files: dict[str, Content] = {f"{folder}input-{i}.npy": _npy(a) for i, a in enumerate(sample.feeds.values())}
        answers: dict[str, Content] = {f"{folder}output-{i}.npy": _npy(a) for i, a in enumerate(outputs)}
        image = None if sample.picture is None else f"{folder}image.png"
        if image is not None and sample.picture is not None:
            members[image] = sample.picture
        members.update(files | answers)
        samples.append(GoldenSample(image=image, inputs=list(files), outputs=list(answers)))
    return samples


def _finite(array: NDArray[Any]) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _tensor(spec: TensorSpec) -> TensorRecord:
    shape = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    return TensorRecord(name=spec.name, shape=shape, dtype=spec.dtype)


def _fed_record(fed: Fed | None) -> dict[str, Any] | None:
    if fed is None:
        return None
    return {"kind": "image" if isinstance(fed, Preprocess) else "text", **fed.model_dump(mode="json")}


def _records(members: dict[str, Content]) -> dict[str, FileRecord]:
    return {name: _record(members[name]) for name in sorted(members)}


def _record(content: Content) -> FileRecord:
    if isinstance(content, Path):
        return FileRecord(sha256=sha256_file(content), size_bytes=content.stat().st_size)
    return FileRecord(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
