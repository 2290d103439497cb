"""The model card of a bundle, for people: what the model is, what it is for, how well it does, how it was made."""

from typing import Any

from tlc.calibration.preprocess import Preprocess
from tlc.export.bundle_source import RunReport
from tlc.runtime.bundle_manifest import Manifest

_LIMITS = {
    "p50_ms": "median latency under {} ms",
    "p90_ms": "90th percentile of the latency under {} ms",
    "p99_ms": "99th percentile of the latency under {} ms",
    "max_memory_bytes": "at most {:,} bytes of memory",
    "max_size_bytes": "at most {:,} bytes of files",
    "max_slowdown_ratio": "at most {:.1%} slower than the original",
    "max_drop_points": "at most {} points of top-1 lost",
}


def model_card(manifest: Manifest, report: RunReport | None) -> str:
    """Return the card as Markdown."""
    target, model = manifest.target, manifest.files[manifest.model]
    lines = [
        f"# {manifest.name}",
        "",
        f"An ONNX model in {manifest.precision}, {model.size_bytes:,} bytes, for {target.name}: {target.description}.",
        f"It runs in {_RUNTIMES[target.runtime]} with {_many(target.threads, 'thread')}.",
        f"Licence: {manifest.licence or 'not stated'}.",
        "",
        "## Input and output",
        "",
        *_fed_lines(manifest),
        *(f"- input `{tensor.name}`: {tensor.dtype} {_shape(tensor.shape)}" for tensor in manifest.inputs),
        *(f"- output `{tensor.name}`: {tensor.dtype} {_shape(tensor.shape)}" for tensor in manifest.outputs),
    ]
    if manifest.classes:
        shown = ", ".join(manifest.classes[:20])
        more = f" and {len(manifest.classes) - 20} more" if len(manifest.classes) > 20 else ""
        lines += [f"- {len(manifest.classes)} classes: {shown}{more}"]
    if report is not None:
        lines += ["", "## How well it does", "", *_score_lines(report), "", "## How it was made", ""]
        lines += [f"- {stage.name}: {stage.status}. {stage.reason}" for stage in report.stages]
        lines += [f"- data: {_counts(report.data)}, SHA-256 `{str(report.data['sha256'])[:16]}…`"]
    limits = manifest.limits.model_dump(exclude_none=True)
    if limits:
        lines += ["", "## What it has to keep on a device", ""]
        lines += [f"- {_LIMITS[key].format(value)}" for key, value in limits.items()]
    golden = manifest.golden
    what = "samples of the evaluation data" if golden.source == "data" else "noise"
    lines += [
        "",
        "## How to check it",
        "",
        f"{_many(len(golden.samples), 'golden sample')} of {what}: a device has to meet every output at "
        f"{golden.min_snr_db:g} dB or better. `tlc verify` and `tlc-run check` do that, and compare every hash.",
        "",
        "It answers for inputs like those that it was made with. What it says of others was not measured.",
    ]
    return "\n".join(lines) + "\n"


_RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}


def _fed_lines(manifest: Manifest) -> list[str]:
    fed = manifest.fed
    if fed is None:
        return ["Inputs are given as arrays: how they are prepared is not recorded.", ""]
    if fed["kind"] == "text":
        return [f"Texts ({fed['task']}), cut to {fed['max_length']} tokens, by the tokenizer in the bundle.", ""]
    known = Preprocess.model_validate({key: value for key, value in fed.items() if key != "kind"})
    height, width = known.size
    if known.resize is None:
        resize = "not resized"
    elif isinstance(known.resize, int):
        resize = f"resized to a short side of {known.resize} pixels ({known.interpolation})"
    else:
        resize = f"resized to {known.resize[0]}x{known.resize[1]} pixels ({known.interpolation})"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (known.mean, known.std))
    return [
        f"Images ({known.channels}), {resize}, the centre {height}x{width} cut out, divided by 255, minus "
        f"the mean ({mean}), over the standard deviation ({std}).",
        "",
    ]


def _score_lines(report: RunReport) -> list[str]:
    row = report.row(report.chosen)
    lines = [report.verdict, "", f"- top-1 {100 * row.accuracy['top1']:.2f} % of {row.accuracy['samples']} samples"]
    if row.change is not None:
        points = row.change["change_points"]
        lines.append(
            f"- against the original: {points['estimate']:+.2f} points, 95 % interval "
            f"[{points['low']:+.2f}, {points['high']:+.2f}]"
        )
    classes = sorted(row.accuracy.get("per_class", []), key=lambda score: float(score["recall"]))
    lines += [f"- weakest class {c['name']}: {100 * c['recall']:.1f} % of {c['support']}" for c in classes[:1]]
    if row.latency is not None:
        machine = report.environment.get("cpu_model") or "the machine where it was compressed"
        latency = row.latency
        lines.append(
            f"- p50 {latency['p50_ms']:.3g} ms, p99 {latency['p99_ms']:.3g} ms on {machine}, "
            f"{_many(report.threads, 'thread')}: no promise for the device"
        )
    return lines


def _counts(data: dict[str, Any]) -> str:
    return f"{data['fit_samples']:,} training and {data['evaluation_samples']:,} evaluation samples"


def _shape(shape: list[int]) -> str:
    return "x".join("any" if dim < 0 else str(dim) for dim in shape)


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
