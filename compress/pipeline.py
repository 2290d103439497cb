"""The main path: a fine-tuned model in, the fastest file that stays within the budget out, with the evidence."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import onnx

from tlc.compress.budget import choose
from tlc.compress.events import Emit, StageDone, silent
from tlc.compress.measure import Candidate, Timing, latencies, measure, speedup
from tlc.compress.plan import Network, Plan, make_plan
from tlc.compress.processes import leads, wait_for_all
from tlc.compress.quantize import worth_quantizing
from tlc.compress.recipe import Recipe
from tlc.compress.run import RunFolder, StageResult, open_run
from tlc.compress.runner import Runner
from tlc.compress.select import rule_warnings, ship, write_manifest
from tlc.compress.student import is_built_from_teacher
from tlc.compress.verdict import verdict
from tlc.compress.work import AnyWork
from tlc.export.contract import check_model
from tlc.export.fp16 import Fp16Record
from tlc.runtime.artifact import replacing_dir, require_free_space, sha256_file
from tlc.runtime.environment import environment
from tlc.runtime.errors import TlcError
from tlc.runtime.report import (
    Agreement,
    DataRecord,
    Interval,
    Measurement,
    ModelRecord,
    Report,
    StageRecord,
)
from tlc.runtime.search_report import SearchRecord
from tlc.runtime.target import Target

_SPACE_FACTOR = 16
"""Copies of the weights that a run writes: checkpoints, training state and ONNX files. A BERT came to 13."""


@dataclass(frozen=True, slots=True)
class Version:
    """One network of the run: its saved folder, its float ONNX file, and how far that is from torch."""

    name: str
    made_from: str | None
    """Name of the version that it was made from; None for the original."""
    stage: StageResult
    onnx: Path
    """Of ONNX's own operators alone: what other files are made from."""
    deployed: Path
    """With the operators of the target's runtime, where that has some of its own."""
    work: AnyWork
    """With the data as this network is fed with it."""
    checked: Agreement
    arch: str | None
    """What `load_saved` needs besides the folder."""
    qat: bool = True
    """Whether there is time to train it for INT8."""


def compress(
    recipe: Recipe, out: Path, *, resume: bool = False, emit: Emit = silent, command: str = "tlc.compress.compress"
) -> Report:
    """Take `recipe.model` through student, pruning and quantization into `out`, and return the measured comparison.

    `out` ends with the ONNX files, the final network as `model/`, `manifest.json` and the memoised stages; writing the
    human report is the caller's business. A killed run goes on with `resume`; a changed setting repeats only the
    stages that depend on it.

    Under `accelerate launch` all processes train together, the first one does everything else and returns, and the
    others exit.

    Raises:
        TlcError: bad input, found before the first expensive step; or `out` belongs to something else.

    """
    plan = make_plan(recipe)
    identity = {"model": plan.model_sha256, "data": plan.splits.digest}
    weights_bytes = sum(p.numel() * p.element_size() for p in plan.model.module.parameters())
    require_free_space(out, _SPACE_FACTOR * weights_bytes)
    with open_run(out, identity, resume=resume, emit=emit) as run:
        return Pipeline(plan, run, emit).execute(command)


class Pipeline:
    """One run: the plan, the folder, and the notes of the stages so far."""

    def __init__(self, plan: Plan, run: RunFolder, emit: Emit) -> None:
        self.plan, self.run, self.emit = plan, run, emit
        self.recipe, self.target = plan.recipe, plan.target
        self.work = plan.start(run.cache)
        self.runner = Runner.here(plan.target, run.cache / "engines")
        self.records: list[StageRecord] = []
        self.notes: list[str] = []
        measure = self.recipe.measure
        self.timing = Timing(rounds=measure.rounds, launches=measure.launches, seed=self.recipe.seed)

    def execute(self, command: str) -> Report:
        """Take the original through all stages."""
        original = self.original()
        student = self.student(original)
        pruned = self.pruned(original, student)
        versions = {version.name: version for version in (original, student, pruned)}
        return self.compared(list(versions.values()), [pruned], command)

    def compared(
        self,
        versions: Sequence[Version],
        finals: Sequence[Version],
        command: str,
        *,
        search: SearchRecord | None = None,
    ) -> Report:
        """Measure the versions, the original first, and what INT8 and FP16 make of `finals`; publish what ships."""
        candidates = [
            Candidate(one.name, one.deployed, one.work, "fp32", one.onnx, one.made_from, one.checked)
            for one in versions
        ]
        if (original := versions[0]) not in finals:
            # The plain way out, beside which the work on the network has to show its worth.
            candidates += self.quantized(original, "original-int8", trained=False)
        for one in finals:
            prefix = f"{one.name}-" if len(finals) > 1 else ""
            candidates.append(Candidate(f"{prefix}fp16", self.fp16(one), one.work, "fp16", one.onnx, one.name))
            candidates += self.quantized(one, f"{prefix}int8", trained=True)
        candidates = [self.published(candidate) for candidate in candidates]
        rows = self.measured(candidates)
        if not leads():
            wait_for_all()
            raise SystemExit(0)
        report = self.concluded(rows, finals, command, search)
        wait_for_all()
        return report

    def original(self) -> Version:
        """Save and export what came in."""
        inputs = {"model": self.plan.model_sha256, "arch": self.plan.model.arch.model_dump(mode="json"), **self.common}

        def make(folder: Path) -> dict[str, Any]:
            self.work.save(self.plan.model, folder)
            return {}

        stage = self.run.stage("original", inputs, make)
        version = self.exported("original", stage, self.plan.model, made_from=None)
        _require_accepted(version.onnx, self.target)
        return version

    def student(self, original: Version) -> Version:
        """Distil the original into a smaller student, where the plan has one."""
        spec = self.plan.student.value
        if spec is None:
            self._note("distill", "skipped", self.plan.student.reason)
            return original
        assert isinstance(spec, str)
        inputs = {
            "teacher": original.stage.key,
            "student": spec,
            **({"multiple": self.target.channel_multiple} if "width" in spec else {}),
            "loss": self.recipe.distill.resolved(self.plan.kind).model_dump(mode="json"),
            "train": self.recipe.train.resolved(self.plan.kind).model_dump(mode="json"),
            **self.common,
        }

        def make(folder: Path) -> dict[str, Any]:
            student, found = self.work.make_student(
                self._load(original), spec, teacher_key=original.stage.key, folder=folder, emit=self.emit
            )
            self.work.save(student, folder)
            return found

        stage = self.run.stage("student", inputs, make, resumable=True)
        arch = original.arch if is_built_from_teacher(spec) else spec
        student = self.exported("student", stage, self.work.load(stage.path, arch), made_from=original.name, arch=arch)
        return self._kept_if_it_pays("distill", original, student, stage, judged=False)

    def pruned(self, original: Version, student: Version) -> Version:
        """Prune the student, or the original where there is none, and let it recover under the original's eye."""
        ratio = self.plan.prune.value
        if ratio is None:
            self._note("prune", "skipped", self.plan.prune.reason)
            return student
        assert isinstance(ratio, float)
        inputs = {
            "teacher": original.stage.key,
            "network": student.stage.key,
            "prune": self.recipe.prune.model_dump(mode="json"),
            "ratio": ratio,
            "multiple": self.target.channel_multiple,
            **self._recovery,
            **self.common,
        }

        def make(folder: Path) -> dict[str, Any]:
            pruned, found = self.work.make_pruned(
                self._load(original),
                self._load(student),
                ratio,
                teacher_key=original.stage.key,
                folder=folder,
                emit=self.emit,
            )
            self.work.save(pruned, folder)
            return found

        stage = self.run.stage("prune", inputs, make, resumable=True)
        pruned = self.exported(
            "pruned", stage, self.work.load(stage.path, student.arch), made_from=student.name, arch=student.arch
        )
        return self._kept_if_it_pays("prune", student, pruned, stage, judged=True)

    def quantized(self, version: Version, name: str, *, trained: bool) -> list[Candidate]:
        """Return the INT8 files of a version, one `trained` for INT8 among them where it takes that.

        None where the device has no INT8 arithmetic, or no layer gains from it.
        """
        trained = trained and version.qat
        if not worth_quantizing(version.onnx, self.target):
            self._note(f"quantize {version.name}", "skipped", f"No layer gains from INT8 on {self.target.name}.")
            return []
        inputs = {
            "onnx": sha256_file(version.onnx),
            "quantize": self.recipe.quantize.model_dump(mode="json"),
            "target": self.target.model_dump(mode="json"),
            "max_drop_points": self.recipe.budget.max_drop_points,
            "trained": self._recovery if trained and self.recipe.quantize.qat_epochs != 0 else None,
            **self.common,
        }

        def make(folder: Path) -> dict[str, Any]:
            network = self._load(version) if trained else None
            files, found, summary = version.work.quantize(network, version.onnx, folder, self.runner, self.emit)
            return {"files": [[file.suffix, file.path.name] for file in files], "summary": summary, **found}

        stage = self.run.stage(f"quantize-{version.name}", inputs, make, resumable=True)
        self._note(f"quantize {version.name}", "kept", stage.found["summary"], stage)
        return [
            Candidate(f"{name}{suffix}", stage.path / file, version.work, "int8", version.onnx, version.name)
            for suffix, file in stage.found["files"]
        ]

    def fp16(self, version: Version) -> Path:
        """Return the FP16 file of a version."""

        def make(folder: Path) -> dict[str, Any]:
            return version.work.fp16(version.onnx, folder / "fp16.onnx").model_dump(mode="json")

        stage = self.run.stage("fp16", {"onnx": sha256_file(version.onnx), **self.common}, make)
        record = Fp16Record.model_validate(stage.found)
        self._note(
            f"fp16 {version.name}", "kept", f"{len(record.kept)} of {record.nodes} nodes stay in float32.", stage
        )
        return stage.path / "fp16.onnx"

    def measured(self, candidates: list[Candidate]) -> list[Measurement]:
        """Measure all candidates beside the original, on the evaluation split that nothing has seen so far."""
        inputs = {
            "files": {candidate.name: sha256_file(candidate.path) for candidate in candidates},
            "measure": self.recipe.measure.model_dump(mode="json"),
            "target": self.target.model_dump(mode="json"),
            "runtime": self.runner.runtime,
            "missing": self.runner.missing,
            "machine": {key: environment()[key] for key in ("cpu_model", "os", "versions")},
            **self.common,
        }

        def make(_folder: Path) -> dict[str, Any]:
            rows, warnings = measure(
                candidates,
                self.runner,
                self.timing,
                relative_to=self.run.path,
                emit=self.emit,
            )
            values = [row.model_dump(mode="json") for row in rows]
            return {"rows": values, "warnings": warnings, "environment": environment()}

        self._measure_stage = self.run.stage("measure", inputs, make)
        return [Measurement.model_validate(row) for row in self._measure_stage.found["rows"]]

    def concluded(
        self, rows: list[Measurement], finals: Sequence[Version], command: str, search: SearchRecord | None
    ) -> Report:
        """Choose what ships, publish it with its network, of `finals` the first if of none, and write the manifest."""
        budget = self.recipe.budget
        choice = choose(rows, budget)
        ship(self.run.path, choice.chosen)
        names = (choice.chosen.name, choice.chosen.made_from)
        final = next((one for one in finals if one.name in names), finals[0])
        self._publish_network(final)
        report = Report(
            tlc_version=version("tlc"),
            command=command,
            model=ModelRecord(
                path=str(self.recipe.model.path),
                sha256=self.plan.model_sha256,
                arch=self.plan.model.arch.text,
                input_shape=list(self.plan.model.input_shape),
            ),
            data=self._data_record(rows),
            target=self.target.name,
            runtime=self.runner.runtime,
            not_measured=self.runner.missing,
            threads=self.target.threads,
            preprocess=self.work.fed.model_dump(mode="json"),
            recipe=self.recipe.model_dump(mode="json"),
            environment=self._measure_stage.found["environment"],
            stages=self.records,
            measurements=rows,
            search=search,
            chosen=choice.chosen.name,
            selected_by="",
            budget=budget,
            budget_met=choice.met,
            confident=choice.confident,
            front=choice.front,
            lost=choice.lost,
            needed=choice.needed,
            verdict=verdict(rows, choice, budget, self.work.noun),
            warnings=self._warnings(rows, choice.chosen),
        )
        self._write_manifest(report, final)
        return report

    @property
    def common(self) -> dict[str, object]:
        """What decides every stage, besides what is its own."""
        return {
            "data": self.plan.splits.digest,
            "preprocess": self.work.fed.model_dump(mode="json"),
            "seed": self.recipe.seed,
            "tlc": version("tlc"),
        }

    @property
    def _recovery(self) -> dict[str, object]:
        """What decides a training that has epochs and a learning rate of its own."""
        training = self.recipe.train.resolved(self.plan.kind)
        return {
            "loss": self.recipe.distill.resolved(self.plan.kind).model_dump(mode="json"),
            "train": training.model_dump(mode="json", exclude={"epochs", "learning_rate"}),
        }

    def _load(self, known: Version) -> Network:
        network: Network = self.work.load(known.stage.path, known.arch)
        return network

    def exported(
        self, name: str, stage: StageResult, model: Network, *, made_from: str | None, arch: str | None = None
    ) -> Version:
        """Export a network that `stage` has saved; `arch` is what loading it needs besides."""
        work = self.work.for_network(model)

        def make(folder: Path) -> dict[str, Any]:
            plain = folder / f"{name}.onnx"
            agreement = work.export(model, plain)
            deployed, note = work.fused(plain, folder)
            return {"agreement": agreement.model_dump(mode="json"), "deployed": deployed.name, "note": note}

        inputs = {"network": stage.key, "opset": self.target.opset, "runtime": self.target.runtime}
        exported = self.run.stage(f"export-{name}", inputs, make)
        checked = Agreement.model_validate(exported.found["agreement"])
        if exported.found["note"]:
            self.notes.append(exported.found["note"])
        plain, deployed = exported.path / f"{name}.onnx", exported.path / exported.found["deployed"]
        return Version(name, made_from, stage, plain, deployed, work, checked, arch or _arch_needed(model))

    def _kept_if_it_pays(
        self, name: str, before: Version, after: Version, stage: StageResult, *, judged: bool
    ) -> Version:
        """Return `after` where it is measurably faster than `before` and, if `judged`, within the budget on holdout.

        Where the smallest file is wanted, a smaller one need not be faster.
        """

        def make(_folder: Path) -> dict[str, Any]:
            pair = (before, after)
            files = {v.name: (v.deployed, v.work.timing_feeds()) for v in pair}
            found = latencies(files, self.runner, replace(self.timing, launches=1), self.emit)
            gain = speedup(found[before.name], found[after.name], seed=self.timing.seed)
            scores = [_holdout_accuracy(version, self.runner) for version in pair]
            return {"speedup": gain.model_dump(), "holdout_top1": scores}

        inputs = {
            "before": sha256_file(before.deployed),
            "after": sha256_file(after.deployed),
            "runtime": self.runner.runtime,
            **self.common,
        }
        gate = self.run.stage(f"judge-{name}", inputs, make)
        gain = Interval.model_validate(gate.found["speedup"])
        drop = 100 * (gate.found["holdout_top1"][0] - gate.found["holdout_top1"][1])
        measured = f"{gain.estimate:.2f}x [{gain.low:.2f}, {gain.high:.2f}] the speed of {before.name}"
        if self.runner.missing:
            measured += f" in float32 on this machine's CPU, which stands in for {self.target.name}"
        if judged:
            measured += f", {0 - drop:+.2f} points on the held-out {self.work.noun}"
        budget, pays = self.recipe.budget, gain.low > 1
        if budget.objective == "smallest" and not pays:
            ratio = before.deployed.stat().st_size / after.deployed.stat().st_size
            pays, measured = ratio > 1, f"{measured}, {ratio:.2f}x smaller"
        kept = pays and not (judged and drop > budget.max_drop_points)
        reason = measured if kept else f"{measured}: {'over the budget' if pays else 'not faster'}"
        self._note(name, "kept" if kept else "dropped", reason + ".", stage)
        return after if kept else before

    def _note(
        self, name: str, status: Literal["kept", "dropped", "skipped"], reason: str, stage: StageResult | None = None
    ) -> None:
        seconds, found = (stage.seconds, stage.found) if stage else (0.0, {})
        self.records.append(StageRecord(name=name, status=status, reason=reason, seconds=seconds, details=found))
        self.emit(StageDone(name, status, reason, seconds))

    def published(self, candidate: Candidate) -> Candidate:
        """Copy a candidate's file into the run's folder, with what a device needs to feed it written inside."""
        path = self.run.path / f"{candidate.name}.onnx"
        candidate.work.write_metadata(candidate.path, path)
        return replace(candidate, path=path)

    def _publish_network(self, final: Version) -> None:
        with replacing_dir(self.run.path / "model") as folder:
            for name in self.work.network_files:
                shutil.copyfile(final.stage.path / name, folder / name)

    def _data_record(self, rows: list[Measurement]) -> DataRecord:
        splits = self.plan.splits
        calibrated = any(row.precision == "int8" for row in rows)
        return DataRecord(
            path=str(self.recipe.data.path),
            sha256=splits.digest,
            classes=list(splits.classes),
            fit_samples=len(splits.fit),
            holdout_samples=len(splits.holdout),
            calibration_samples=min(self.recipe.quantize.samples, len(splits.fit)) if calibrated else 0,
            evaluation_samples=len(splits.evaluation),
            unlabeled_samples=self.work.unlabeled_samples,
            lengths=self.work.lengths,
            skipped_files=list(splits.skipped),
        )

    def _warnings(self, rows: list[Measurement], chosen: Measurement) -> list[str]:
        warnings = [*self._measure_stage.found["warnings"], *self.notes]
        if self.plan.splits.skipped:
            count = len(self.plan.splits.skipped)
            warnings.append(f"{count} {self.work.noun} were left out; report.json says which and why.")
        smallest = min((score.support for score in rows[0].accuracy.per_class), default=30)
        if smallest < 30:
            warnings.append(
                f"The smallest class has {smallest} evaluation {self.work.noun}: per-class changes say little."
            )
        return [*warnings, *rule_warnings(self.run.path, chosen, self.target)]

    def _write_manifest(self, report: Report, final: Version) -> None:
        files = {row.file: row.sha256 for row in report.measurements}
        for name in (f"model/{name}" for name in self.work.network_files):
            files[name] = sha256_file(self.run.path / name)
        manifest = {
            "schema_version": 1,
            "tlc_version": report.tlc_version,
            "command": report.command,
            "model": report.model.model_dump(mode="json"),
            "data": report.data.model_dump(mode="json"),
            "recipe": report.recipe,
            "target": self.target.model_dump(mode="json"),
            "environment": report.environment,
            "lineage": list(self._load(final).history),
            "chosen": report.chosen,
            "files": files,
        }
        write_manifest(self.run.path, manifest)


def _require_accepted(path: Path, target: Target) -> None:
    """Refuse a network that the target's runtime does not read, before anything is trained."""
    refused = [found for found in check_model(onnx.load(path), target) if found.severity == "refused"]
    if refused:
        first = refused[0]
        raise TlcError(
            f"{target.name} does not take this network, in {len(refused)} places; first {first.node}: {first.why}.",
            hint=f"{first.fix} tlc check {path} --target {target.name} lists them all.",
        )


def _holdout_accuracy(version: Version, runner: Runner) -> float:
    holdout = version.work.data.holdout
    return version.work.accuracy(version.work.judged(version.deployed, runner, holdout), holdout)


def _arch_needed(model: Network) -> str | None:
    """Return the `--arch` that loading the saved network needs: only a FILE.py is not in the folder."""
    return model.arch.text if model.arch.kind == "file" else None
