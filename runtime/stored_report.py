"""A model's numbers from a stored report, to compare with: worth less than the model itself measured in turns."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tlc.runtime.bench_report import BenchReport, BenchWarning, ModelBench
from tlc.runtime.environment import identity_differences
from tlc.runtime.errors import TlcError
from tlc.runtime.gate_report import GateReport
from tlc.runtime.process import Case

_WRITE_ONE = "Write one: tlc bench MODEL --json > baseline.json."


@dataclass(frozen=True, slots=True)
class StoredBaseline:
    """One model of a report that `tlc bench` or `tlc gate` wrote."""

    path: Path
    model: ModelBench
    report: BenchReport

    def require_comparable(self, candidate: Case, machine: dict[str, Any], *, any_machine: bool) -> None:
        """Raise TlcError where the setting or, unless `any_machine`, the machine is not that of the report."""
        stored = self.model.setting
        for name, there, here in (
            ("batch", stored.batch, candidate.batch),
            ("threads", stored.threads, candidate.threads),
            ("streams", stored.streams, candidate.streams),
        ):
            if there != here:
                raise TlcError(
                    f"{self.path} was measured with {name} {there}, and the candidate is to be with {here}",
                    hint="Measure both in the same setting.",
                )
        differences = identity_differences(self.report.machine, machine)
        if differences and not any_machine:
            raise TlcError(
                f"{self.path} was measured on another machine, or in another state of it: {'; '.join(differences)}",
                hint="Compare with the baseline model itself, measure it here with `tlc bench`, or add --any-machine.",
            )

    @property
    def warnings(self) -> list[BenchWarning]:
        """Those of the machine, and of this model."""
        return [warning for warning in self.report.warnings if warning.model in (None, self.model.name)]

    def require_same_inputs(self, candidate: ModelBench) -> None:
        """Raise TlcError where the measured candidate had other shapes, or another runtime, than the stored model."""
        stored, shapes = self.model.setting.shapes, candidate.setting.shapes
        if stored != shapes:
            raise TlcError(
                f"{self.path} was measured with inputs {stored}, and the candidate with {shapes}",
                hint="Measure both with the same inputs.",
            )
        if self.model.runtime.split(" ")[0] != candidate.runtime.split(" ")[0]:
            raise TlcError(
                f"{self.path} was measured in {self.model.runtime}, and the candidate in {candidate.runtime}",
                hint="Measure both in the same runtime: --target.",
            )


def read_stored(path: Path, candidate: str) -> StoredBaseline:
    """Return the model to compare with: the only one that was measured, or the one called `candidate`.

    Of a gate's report it is the candidate of then. Raises TlcError for a file that is not such a report.
    """
    report, names = _read(path)
    models = [model for model in report.models if model.status == "ok" and model.launches and model.name in names]
    named = [model for model in models if model.name == candidate]
    if len(models) != 1 and len(named) != 1:
        known = ", ".join(model.name for model in models) or "none"
        raise TlcError(
            f"{path} has {len(models)} measured models ({known}), and it is open which one to compare with",
            hint=f"Give a report of one model, or of one called {candidate}.",
        )
    return StoredBaseline(path, (named if len(named) == 1 else models)[0], report)


def _read(path: Path) -> tuple[BenchReport, set[str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TlcError(f"cannot read the report {path}: {error}", hint="Check the path.") from error
    try:
        values = json.loads(text)
        if isinstance(values, dict) and values.get("kind") == "gate":
            gate = GateReport.model_validate(values)
            return gate.bench, {gate.candidate}
        bench = BenchReport.model_validate(values)
    except json.JSONDecodeError as error:
        raise TlcError(f"{path} is not JSON: {error}", hint=_WRITE_ONE) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise TlcError(
            f"{path} is not a report of `tlc bench` or `tlc gate`: {where}: {first['msg']}", hint=_WRITE_ONE
        ) from error
    return bench, {model.name for model in bench.models}
