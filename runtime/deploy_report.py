"""The schema of what `tlc deploy` found, version 1. Units stand in the names; None says that a value is not known."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tlc.runtime.bench_report import BenchReport
from tlc.runtime.device_facts import DeviceFacts
from tlc.runtime.telemetry import Range

StepName = Literal["build", "check", "eval", "bench"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StepReport(_Record):
    """One step on the device."""

    name: StepName
    reused: bool
    """Whether its result lay there already, from a run that was broken off or, of a build, from an earlier one."""
    seconds: float
    """That this run waited for it."""
    result: dict[str, Any]
    """What tlc-run printed, as JSON."""


class DeviceReport(_Record):
    """One deployment to one device."""

    host: str
    status: Literal["ok", "failed"]
    problem: str
    """What went wrong and the next step; "" when `status` is ok."""
    bundle: str
    """Its name."""
    bundle_sha256: str
    device: DeviceFacts | None
    """As it was found; None where it was not reached."""
    runner_sha256: str | None
    steps: list[StepReport]
    bench: BenchReport | None
    """Of the step `bench`, once more, with its schema."""
    telemetry: dict[str, Range]
    """`temperature_c NAME`, `clock_mhz NAME`, `watts NAME` while the bench ran; `watts` alone is the module's input."""
    notes: list[str]
    """What is worth knowing: reboots, broken connections, smaller memory pools, settings that could not be put back."""
    folder: str
    """Where the results lie here."""

    def step(self, name: str) -> StepReport | None:
        """Return the step of that name, None where it was not reached."""
        return next((step for step in self.steps if step.name == name), None)


class DeployReport(_Record):
    """All devices of one run, in the order they were named."""

    schema_version: Literal[1] = 1
    kind: Literal["deploy"] = "deploy"
    tlc_version: str
    command: str
    devices: list[DeviceReport]
