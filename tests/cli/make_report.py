"""A factory of reports for tests. Every number is INVENTED (drawn from a seeded generator), but they fit together:
confusion, scores, changes and percentiles are computed from the drawn predictions and samples.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tlc.compress.budget import choose
from tlc.runtime.budget import Budget
from tlc.runtime.report import (
    Accuracy,
    AccuracyChange,
    Agreement,
    ClassChange,
    ClassScore,
    DataRecord,
    Interval,
    LatencyRecord,
    LayerPrecisions,
    Measurement,
    ModelRecord,
    Report,
    StageRecord,
)

Ints = NDArray[np.int64]

_ANIMALS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# name: made_from, precision, p50 ms, share of answers unlike its source's (the original: unlike the label), bytes,
# parameters, MACs
_ROWS: dict[str, tuple[str | None, str, float, float, int, int, int]] = {
    "original": (None, "fp32", 2.04, 0.060, 3_623_881, 855_770, 125_750_000),
    "student": ("original", "fp32", 0.88, 0.008, 1_630_112, 400_122, 58_310_000),
    "pruned": ("student", "fp32", 0.71, 0.003, 1_190_400, 290_010, 41_020_000),
    "fp16": ("pruned", "fp16", 0.73, 0.0003, 596_300, 290_010, 41_020_000),
    "int8": ("pruned", "int8", 0.46, 0.003, 380_323, 290_010, 41_020_000),
}


def make_report(
    *,
    rows: Sequence[str] = tuple(_ROWS),
    chosen: str | None = "int8",
    classes: Sequence[str] | int = _ANIMALS,
    samples: int = 10_000,
    latency_samples: int = 320,
    spread: float = 0.02,
    budget: Budget = Budget(),  # noqa: B008 - frozen
    selected_by: str = "",
    roc_auc: bool = True,
    seed: int = 0,
    not_measured: str = "",
) -> Report:
    """Return an invented report; `spread` is the latency's relative scatter, 0 for identical samples.

    Without a name, `chosen` is what the budget asks for. With a reason in `not_measured` the report has no latencies,
    as that of a target whose runtime is elsewhere.
    """
    names = [f"class {i:03d}" for i in range(classes)] if isinstance(classes, int) else list(classes)
    random = np.random.default_rng(seed)
    labels = np.arange(samples, dtype=np.int64) % len(names)
    predictions: dict[str, Ints] = {}
    times: dict[str, NDArray[np.float64]] = {}
    measurements: list[Measurement] = []
    for name in rows:
        source, precision, p50_ms, share, size_bytes, parameters, macs = _ROWS[name]
        made_from = "original" if source is not None and source not in rows else source
        base = predictions.get(made_from or "", labels)
        predictions[name] = _disturbed(base, labels, len(names), share, random)
        times[name] = np.round(p50_ms * (1 + spread * random.gamma(1.0, 1.0, latency_samples)), 5)
        accuracy = _accuracy(labels, predictions[name], names, roc_auc)
        first = name == "original"
        measurements.append(
            Measurement(
                name=name,
                file=f"{name}/model.onnx",
                sha256=f"{len(measurements):064x}",
                made_from=made_from,
                precision=precision,
                size_bytes=size_bytes,
                parameters=parameters,
                macs=macs,
                peak_memory_bytes=None if not_measured else size_bytes * 2 + 9_000_000,
                p50_ms_by_input={},
                latency=None if not_measured else _latency(times["original"], times[name], first),
                layers=LayerPrecisions(
                    layers={"int8": 40, "fp32": 3}, time_ratios={"int8": 0.93, "fp32": 0.07}, reformats=2
                )
                if precision == "int8" and not not_measured
                else None,
                accuracy=accuracy,
                change=None if first else _change(labels, predictions["original"], predictions[name], names),
                agreement=None
                if made_from is None
                else Agreement(
                    samples=samples,
                    max_abs_error=0.41,
                    cosine=0.9931,
                    top1_agreement=float(np.mean(predictions[made_from] == predictions[name])),
                ),
            )
        )
    choice = choose(measurements, budget, name=chosen)
    chosen, change = choice.chosen.name, choice.chosen.change
    drop = -change.change_points.estimate if change else 0.0
    return Report(
        search=None,
        tlc_version="0.0.0+invented",
        command="tlc compress resnet56.pt --arch resnet.py:resnet56 --data cifar10 --out runs/invented",
        model=ModelRecord(path="resnet56.pt", sha256="a" * 64, arch="resnet.py:resnet56", input_shape=[3, 32, 32]),
        data=DataRecord(
            path="cifar10",
            sha256="b" * 64,
            classes=names,
            fit_samples=47_500,
            holdout_samples=2_500,
            calibration_samples=512,
            evaluation_samples=samples,
            unlabeled_samples=0,
            lengths=None,
            skipped_files=["train/cat/broken.png"],
        ),
        target="jetson-orin" if not_measured else "cpu-x86",
        runtime="onnxruntime 1.31.0",
        not_measured=not_measured,
        threads=1,
        preprocess={"size": [32, 32], "resize": None, "mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26]},
        recipe={"seed": 0, "student": "depth:0.5", "distill": {"epochs": 30, "lr": 0.1}, "prune": {"ratio": 0.25}},
        environment={
            "cpu": {"model": "Invented CPU @ 2.00GHz", "cores": 2, "flags": ["avx2", "avx512_vnni"]},
            "os": "Linux 6.1",
            "python": "3.11.2",
            "libraries": {"onnxruntime": "1.31.0", "torch": "2.15.0"},
            "time": "2026-01-02T03:04:05Z",
        },
        stages=_stages(rows, chosen),
        measurements=measurements,
        chosen=chosen,
        selected_by=selected_by,
        budget=budget,
        budget_met=choice.met,
        confident=choice.confident,
        front=choice.front,
        lost=choice.lost,
        needed=choice.needed,
        verdict=f"Invented verdict: {chosen} is the file that ships; top-1 changed by {-drop:+.2f} points.",
        warnings=["The load average was 1.9 on 2 cores while measuring: latencies may be inflated."],
    )


def _disturbed(base: Ints, labels: Ints, classes: int, share: float, random: np.random.Generator) -> Ints:
    # Mostly towards a neighbouring class, more often in the first classes; what was wrong is often put right.
    weight = np.linspace(1.6, 0.4, classes)[labels] * np.where(base == labels, 1.0, 8.0)
    moved = random.random(len(base)) < np.minimum(share * weight, 1.0)
    step = np.where(random.random(len(base)) < 0.7, 1, random.integers(1, classes, len(base)))
    return np.where(moved, np.where(base == labels, (base + step) % classes, labels), base)


def _latency(original_ms: NDArray[np.float64], own_ms: NDArray[np.float64], first: bool) -> LatencyRecord:
    block = 8
    ratio = np.median(original_ms.reshape(-1, block), axis=1) / np.median(own_ms.reshape(-1, block), axis=1)
    low, middle, high = np.quantile(ratio, [0.4, 0.5, 0.6]).tolist()
    ordered = np.sort(own_ms)
    return LatencyRecord(
        samples_ms=own_ms.tolist(),
        p50_ms=float(ordered[len(ordered) // 2]),
        p90_ms=float(ordered[math.ceil(0.90 * len(ordered)) - 1]),
        p99_ms=float(ordered[math.ceil(0.99 * len(ordered)) - 1]),
        mean_ms=float(own_ms.mean()),
        min_ms=float(ordered[0]),
        throughput_per_s=float(1000 / own_ms.mean()),
        speedup=Interval(estimate=1, low=1, high=1) if first else Interval(estimate=middle, low=low, high=high),
    )


def _accuracy(labels: Ints, predicted: Ints, names: list[str], roc_auc: bool) -> Accuracy:
    count = len(names)
    confusion = np.bincount(labels * count + predicted, minlength=count * count).reshape(count, count)
    hits, support, given = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    recall, precision = hits / np.maximum(support, 1), hits / np.maximum(given, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return Accuracy(
        samples=len(labels),
        correct=int(hits.sum()),
        top1=float(hits.sum() / len(labels)),
        top5=None if count < 6 else min(1.0, float(hits.sum() / len(labels)) + 0.05),
        macro_precision=float(precision.mean()),
        macro_recall=float(recall.mean()),
        macro_f1=float(f1.mean()),
        roc_auc=0.9931 if roc_auc else None,
        matthews=float(hits.sum() / len(labels)) - 0.02,
        calibration_error=0.031,
        answer_f1=None,
        entity_f1=None,
        exact_ratio=None,
        per_class=[
            ClassScore(name=n, support=int(s), precision=float(p), recall=float(r), f1=float(f))
            for n, s, p, r, f in zip(names, support, precision, recall, f1, strict=True)
        ],
        confusion=confusion.tolist(),
    )


def _paired(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Interval:
    difference = 100.0 * (after.astype(float) - before.astype(float))
    half = 1.96 * difference.std() / math.sqrt(len(difference))
    mean = float(difference.mean())
    return Interval(estimate=mean, low=mean - half, high=mean + half)


def _change(labels: Ints, original: Ints, predicted: Ints, names: list[str]) -> AccuracyChange:
    before, after = original == labels, predicted == labels
    regressed, improved = int((before & ~after).sum()), int((~before & after).sum())
    per_class = []
    for index, name in enumerate(names):
        own = labels == index
        per_class.append(
            ClassChange(
                name=name,
                support=int(own.sum()),
                before=float(before[own].mean()),
                after=float(after[own].mean()),
                change_points=_paired(before[own], after[own]),
            )
        )
    return AccuracyChange(
        change_points=_paired(before, after),
        regressed=regressed,
        improved=improved,
        mcnemar_p=0.0004 if regressed > improved + 2 * math.sqrt(regressed + improved) else 0.31,
        per_class=per_class,
    )


def _stages(rows: Sequence[str], chosen: str) -> list[StageRecord]:
    def stage(name: str, row: str, reason: str, **details: object) -> StageRecord:
        if row not in rows:
            return StageRecord(name=name, status="skipped", reason="Not asked for.", seconds=0.0, details={})
        on_path = row in ("student", "pruned") or row == chosen
        status = "kept" if on_path else "dropped"
        return StageRecord(name=name, status=status, reason=reason, seconds=612.4, details=details)

    return [
        stage("distill", "student", "2.32x lower p50 for 0.2 points on the holdout.", epochs=30, blocks=[4, 4, 4]),
        stage("prune", "pruned", "1.24x lower p50 for 0.1 points on the holdout.", ratio=0.25),
        stage("fp16", "fp16", "0.97x: this CPU computes FP16 in FP32, so it costs conversions.", io="float32"),
        stage("int8", "int8", "1.54x lower p50 for 0.2 points on the holdout.", ignored=[]),
    ]
