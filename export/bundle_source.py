"""What a bundle is made from: the folder that `tlc compress` wrote, or an ONNX file."""

import json
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import TensorProto
from pydantic import BaseModel, ConfigDict, ValidationError

from tlc.calibration.token_set import TextInput
from tlc.export.contract import check_model, load_onnx
from tlc.export.metadata import Fed, read_metadata
from tlc.runtime.artifact import sha256_file, sha256_json
from tlc.runtime.bundle_manifest import TOKENIZER, Lineage, StageNote
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.stored_zip import MAX_BYTES
from tlc.runtime.target import Target, load_target

_QUANTIZED = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger"),
    *("MatMulIntegerToFloat", "ConvInteger", "QLinearConv", "QLinearMatMul", "QGemm", "QAttention"),
)
_NOT_A_RUN = "Give the folder that tlc compress wrote, or an .onnx file."


class _Found(BaseModel):
    """The part of a JSON file that is read here; later versions of tlc may write more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Row(_Found):
    """A measured row of report.json."""

    name: str
    file: str
    precision: Literal["fp32", "fp16", "int8"]
    size_bytes: int
    parameters: int
    macs: int
    peak_memory_bytes: int | None
    latency: dict[str, Any] | None
    accuracy: dict[str, Any]
    change: dict[str, Any] | None


class Stage(_Found):
    """A stage of report.json."""

    name: str
    status: str
    reason: str


class RunReport(_Found):
    """report.json, as far as a bundle tells of it."""

    tlc_version: str
    command: str
    model: dict[str, Any]
    data: dict[str, Any]
    target: str
    threads: int
    recipe: dict[str, Any]
    environment: dict[str, Any]
    stages: list[Stage]
    measurements: list[Row]
    chosen: str
    verdict: str

    def row(self, name: str) -> Row:
        """Return the row of that name."""
        return next(row for row in self.measurements if row.name == name)


@dataclass(frozen=True, slots=True)
class Source:
    """A model to pack, with what is known of it."""

    path: Path
    """The ONNX file."""
    target: Target
    precision: Literal["fp32", "fp16", "int8"]
    fed: Fed | None
    classes: tuple[str, ...]
    tokenizer: str | None
    """Content of tokenizer.json, where the model takes texts."""
    reference: Path | None
    """The float original, where there is one."""
    lineage: Lineage
    report: RunReport | None


def source_of_run(folder: Path, target: str | None = None) -> Source:
    """Return what `tlc compress` chose in `folder`, for its target or for another one.

    Raises TlcError for a folder that is no finished run, or whose files were changed since.
    """
    report = _read(folder / "report.json", RunReport)
    manifest = _read(folder / "manifest.json", _RunManifest)
    path = folder / "model.onnx"
    for file in (path, folder / report.measurements[0].file):
        name = file.relative_to(folder).as_posix()
        if not file.is_file() or sha256_file(file) != manifest.files.get(name):
            raise TlcError(
                f"{file} is not the file that {folder / 'manifest.json'} lists",
                hint="Run tlc compress again with --resume: it writes what is missing.",
            )
    flags = frozenset(report.environment.get("cpu_flags", ()))
    fed, classes = read_metadata(path)
    return Source(
        path=path,
        target=load_target(target or str(report.recipe["target"]), flags=flags),
        precision=report.row(report.chosen).precision,
        fed=fed,
        classes=classes,
        tokenizer=tokenizer_of(fed, folder),
        reference=folder / report.measurements[0].file,
        lineage=Lineage(
            original_sha256=report.model["sha256"],
            recipe_sha256=sha256_json(report.recipe),
            data_sha256=report.data["sha256"],
            stages=[StageNote(**stage.model_dump()) for stage in report.stages],
            command=without_folders(report.command),
            versions=report.environment.get("versions"),
        ),
        report=report,
    )


class _RunManifest(_Found):
    files: dict[str, str]


def source_of_file(
    path: Path, target: Target, *, fed: Fed | None, classes: tuple[str, ...], tokenizer: Path | None = None
) -> Source:
    """Return an ONNX file as what is packed for `target`, fed as `fed` says and with its class names."""
    model = load_onnx(path)
    return Source(
        path=path,
        target=target,
        precision=precision_of(model),
        fed=fed,
        classes=classes,
        tokenizer=tokenizer_of(fed, tokenizer or path.parent),
        reference=None,
        lineage=Lineage(),
        report=None,
    )


def precision_of(model: onnx.ModelProto) -> Literal["fp32", "fp16", "int8"]:
    """Return int8 for a graph with quantised operators, fp16 for one with float16 weights, else fp32."""
    if Counter(node.op_type for node in model.graph.node).keys() & set(_QUANTIZED):
        return "int8"
    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return "fp16" if half else "fp32"


def tokenizer_of(fed: Fed | None, place: Path) -> str | None:
    """Return the tokenizer.json that `fed` records: `place`, or a file of the folder `place`; None for no texts.

    Raises TlcError where there is none with the recorded SHA-256.
    """
    if not isinstance(fed, TextInput):
        return None
    names = (TOKENIZER, f"tokenizer-{fed.tokenizer_sha256[:8]}.json")
    files = [place / name for name in names] if place.is_dir() else [place]
    for file in files:
        if file.is_file() and sha256_file(file) == fed.tokenizer_sha256:
            return file.read_text(encoding="utf-8")
    raise TlcError(
        f"{place} holds no {TOKENIZER} with SHA-256 {fed.tokenizer_sha256[:16]}…, with which the model was made",
        hint="Give its folder: --tokenizer.",
    )


def require_packable(source: Source) -> list[str]:
    """Return warnings; TlcError for a model that the target's runtime refuses, or that is too large for one file."""
    data = sum(file.stat().st_size for file in _data_files(source.path))
    total = source.path.stat().st_size + data
    if total > MAX_BYTES:
        raise TlcError(
            f"{source.path} has {total:,} bytes with its data; the limit of a bundle is {MAX_BYTES:,}",
            hint="Compress it further, or split the model.",
        )
    # Open dimensions are no matter here: a bundle names a profile, or says which shapes it lacks.
    found = [entry for entry in check_model(load_onnx(source.path), source.target) if entry.rule != "dynamic-shape"]
    refused = [violation for violation in found if violation.severity == "refused"]
    if refused:
        raise TlcError(
            f"{source.target.name} does not take {source.path}, in {len(refused)} places; first {refused[0].node}: "
            f"{refused[0].why}",
            hint=f"tlc check {source.path} --target {source.target.name} lists them all, and --fix repairs them.",
        )
    if not found:
        return []
    return [f"{source.path} breaks rules of {source.target.name} in {len(found)} places: tlc check lists them"]


def one_file(source: Source) -> bytes | Path:
    """Return the model with its data inside, and with what feeds it and its classes written into it."""
    if not _data_files(source.path) and read_metadata(source.path) == (source.fed, source.classes):
        return source.path
    model = load_onnx(source.path)
    if source.fed is not None or source.classes:
        recorded = {"tlc.classes": json.dumps(source.classes, ensure_ascii=False)}
        if source.fed is not None:
            recorded["tlc.preprocess"] = source.fed.model_dump_json()
        kept = {prop.key: prop.value for prop in model.metadata_props if not prop.key.startswith("tlc.")}
        onnx.helper.set_model_props(model, kept | recorded)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def without_folders(command: str) -> str:
    """Return the command with absolute paths cut to their names: folders are of one machine and tell of its user.

    >>> without_folders("/usr/bin/tlc compress /home/me/net.pt --set data.path=/data/photos --out run/1")
    'tlc compress net.pt --set data.path=photos --out run/1'
    """

    def cut(word: str) -> str:
        option, equals, value = word.rpartition("=")
        return option + equals + (Path(value).name if value.startswith(("/", "~")) else value)

    try:
        return shlex.join(map(cut, shlex.split(command)))
    except ValueError:  # no command line: an unmatched quote
        return ""


def _data_files(path: Path) -> list[Path]:
    """Return the files beside an ONNX file that hold its weights."""
    model = onnx.load(path, load_external_data=False)
    places = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    return [path.parent / place for place in sorted(places) if (path.parent / place).is_file()]


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"{path.parent} is not the folder of a finished run: no {path.name}", hint=_NOT_A_RUN
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise TlcError(f"cannot read {path}: {error}", hint=_NOT_A_RUN) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TlcError(f"{path} is not what tlc compress writes: {where}: {first['msg']}", hint=_NOT_A_RUN) from error
