"""A CycloneDX list of what a bundle is made of: https://cyclonedx.org/docs/1.6/json/, and SPDX licence expressions."""

import json
import uuid
from typing import Any

from tlc.export.bundle_source import Row, RunReport
from tlc.runtime.bundle_manifest import Manifest
from tlc.runtime.errors import TlcError, UsageError

_NAMESPACE = uuid.UUID("8d1b2f0e-6c0e-4b0c-9a56-0f5f0c1d7a3e")  # drawn once, at random
_MODEL_REF = "model"


def spdx_expression(text: str) -> str:
    """Return the licence expression in SPDX's own spelling: https://spdx.org/licenses/.

    Raises UsageError for what is none.
    """
    try:
        from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
    except ImportError as error:
        raise TlcError("licence expressions need packaging 24.2 or later", hint="pip install -U packaging") from error
    try:
        return str(canonicalize_license_expression(text))
    except InvalidLicenseExpression as error:
        raise UsageError(
            f"--licence {text!r} is no SPDX expression: {error}",
            hint="Write Apache-2.0, or LicenseRef-NAME for your own.",
        ) from error


def cyclonedx(manifest: Manifest, report: RunReport | None) -> bytes:
    """Return the component list as JSON, UTF-8: the model with its card, what it was made of, and by which libraries.

    It has no date, and its serial number is a function of the rest, so that the same bundle has the same bytes.
    """
    bom: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [_versioned("application", manifest.created_with)]},
            "component": _model(manifest, report),
        },
        "components": [*_files(manifest), *_libraries(manifest.lineage.versions or {})],
    }
    refs = [component["bom-ref"] for component in bom["components"]]
    bom["dependencies"] = [{"ref": _MODEL_REF, "dependsOn": refs}] if refs else []
    text = json.dumps(bom, sort_keys=True, ensure_ascii=False)
    bom["serialNumber"] = f"urn:uuid:{uuid.uuid5(_NAMESPACE, text)}"
    return (json.dumps(bom, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _model(manifest: Manifest, report: RunReport | None) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _MODEL_REF,
        "name": manifest.name,
        "version": manifest.files[manifest.model].sha256[:12],
        "description": f"ONNX, {manifest.precision}, for {manifest.target.name} ({manifest.target.runtime})",
        "hashes": _hashes(manifest.files[manifest.model].sha256),
        "modelCard": _card(manifest, report),
    }
    if manifest.licence is not None:
        component["licenses"] = [{"expression": manifest.licence}]
    if manifest.lineage.original_sha256 is not None:
        original: dict[str, Any] = {
            "type": "machine-learning-model",
            "name": f"{manifest.name} before compression",
            "hashes": _hashes(manifest.lineage.original_sha256),
        }
        component["pedigree"] = {"ancestors": [original]}
        if manifest.lineage.stages:
            component["pedigree"]["notes"] = "\n".join(
                f"{stage.name}: {stage.status}. {stage.reason}" for stage in manifest.lineage.stages
            )
    return component


def _card(manifest: Manifest, report: RunReport | None) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "inputs": [{"format": f"{tensor.name}: {tensor.dtype} {tensor.shape}"} for tensor in manifest.inputs],
        "outputs": [{"format": f"{tensor.name}: {tensor.dtype} {tensor.shape}"} for tensor in manifest.outputs],
    }
    if manifest.fed is not None:
        parameters["task"] = manifest.fed.get("task") or "image classification"
    if report is not None:
        parameters["approach"] = {"type": "supervised"}
        parameters["modelArchitecture"] = str(report.model["arch"])
        digest = [{"name": "sha256", "value": str(report.data["sha256"])}]
        parameters["datasets"] = [
            {"type": "dataset", "name": "training and evaluation data", "contents": {"properties": digest}}
        ]
    card: dict[str, Any] = {"modelParameters": parameters}
    if report is not None:
        card["quantitativeAnalysis"] = {"performanceMetrics": _metrics(report.row(report.chosen))}
    return card


def _metrics(row: Row) -> list[dict[str, Any]]:
    """Return the scores of the deployed file, and those of its classes as slices."""
    metrics: list[dict[str, Any]] = [
        {"type": name, "value": repr(value)}
        for name in ("top1", "macro_f1", "matthews", "calibration_error", "answer_f1", "entity_f1")
        if isinstance(value := row.accuracy.get(name), int | float)
    ]
    for score in row.accuracy.get("per_class", []):
        metrics.append({"type": "recall", "slice": str(score["name"]), "value": repr(score["recall"])})
    if row.change is not None:
        points = row.change["change_points"]
        bounds = {"lowerBound": repr(points["low"]), "upperBound": repr(points["high"])}
        metrics.append(
            {
                "type": "change of top-1 against the original, percentage points",
                "value": repr(points["estimate"]),
                "confidenceInterval": bounds,
            }
        )
    if row.latency is not None:
        metrics.append({"type": "p50_ms where it was compressed", "value": repr(row.latency["p50_ms"])})
    return metrics


def _files(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the other members; the card and this list describe the rest, and are no part of it."""
    return [
        {
            "type": "machine-learning-model" if name == manifest.reference else "file",
            "bom-ref": f"file:{name}",
            "name": name,
            "hashes": _hashes(record.sha256),
        }
        for name, record in manifest.files.items()
        if name != manifest.model and not name.endswith(".md")
    ]


def _libraries(versions: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version}",
            "scope": "excluded",  # it made the model and does not travel with it
        }
        for name, version in sorted(versions.items())
    ]


def _versioned(kind: str, text: str) -> dict[str, str]:
    name, _, version = text.partition(" ")
    return {"type": kind, "name": name, "version": version}


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]
