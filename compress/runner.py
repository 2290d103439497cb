"""Opening files where the target would: in its runtime where that is here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnxruntime

from tlc.export.engine import BuildOptions, build_engine
from tlc.export.onnx_facts import read_onnx_facts
from tlc.runtime.artifact import sha256_file, sha256_json
from tlc.runtime.capability import missing, this_machine
from tlc.runtime.openvino import OpenVinoSession
from tlc.runtime.plan import read_record
from tlc.runtime.process import Case
from tlc.runtime.report import LayerPrecisions
from tlc.runtime.session import OrtSession, Session
from tlc.runtime.sessions import ENGINES, open_session
from tlc.runtime.target import Target


@dataclass(frozen=True, slots=True)
class Runner:
    """Opens files in the target's runtime where that is here, else in ONNX Runtime on this machine's CPU."""

    target: Target
    engines: Path
    """Folder for what TensorRT builds, named by the content of the ONNX file and by what built it."""
    missing: str
    """Why the target's runtime is not here, and what to do; empty where it is."""

    @classmethod
    def here(cls, target: Target, engines: Path) -> "Runner":
        """Return the runner of this machine."""
        if (reason := missing(target)) is None:
            return cls(target, engines, "")
        if target.runtime == "tensorrt":
            step = f"Build and time the files where it runs: tlc build model.onnx --target {target.name} -o model.plan."
        else:
            step = "Install it, and run again with --resume."
        return cls(target, engines, f"{reason[0].upper()}{reason[1:]}. {step}")

    @property
    def runtime(self) -> str:
        """What files run in, with its version, and on which GPU: `onnxruntime 1.31.1`, `tensorrt 10.3.0 on Orin`."""
        if self.missing or self.target.runtime == "onnxruntime":
            return f"onnxruntime {onnxruntime.__version__}"
        machine = this_machine()
        here = f"{self.target.runtime} {machine.packages[self.target.runtime].version}"
        return f"{here} on {machine.gpus[0].name}" if self.target.runtime == "tensorrt" else here

    def deployed(self, path: Path) -> Path:
        """Return what the runtime loads: the file itself, or the engine that TensorRT builds from it."""
        if self.missing or self.target.runtime != "tensorrt" or path.suffix in ENGINES:
            return path
        plan = self.engines / f"{sha256_json([sha256_file(path), self.runtime])[:16]}.plan"
        if not plan.exists():
            self.engines.mkdir(parents=True, exist_ok=True)
            build_engine(path, plan, self.target, BuildOptions(precision=self._built_in(path)))
        return plan

    def _built_in(self, path: Path) -> Literal["auto", "fp32", "fp16", "int8", "best"]:
        """Return what the builder may use: what the file holds, and float16 around int8."""
        assert self.target.tensorrt is not None
        if self.target.tensorrt.strongly_typed:
            return "auto"  # it takes precisions from the graph
        facts = read_onnx_facts(path)
        if facts.is_quantized:
            return "best" if "fp16" in self.target.precisions else "int8"
        return "fp16" if facts.has_float16 else "fp32"

    def open(self, path: Path, *, threads: int) -> Session:
        """Return a session of an ONNX file or an engine."""
        if self.missing and path.suffix not in ENGINES:
            return OrtSession(path, threads=threads)
        return open_session(self.deployed(path), self.target, threads=threads)

    def case(self, name: str, path: Path, *, feeds: Path | None = None, sizes: Mapping[str, int] | None = None) -> Case:
        """Return the file as it is measured: on the target's threads, where `open` would open it."""
        target = None if self.missing else self.target
        deployed = self.deployed(path)
        return Case(name, deployed, target, threads=self.target.threads, feeds=feeds, sizes=sizes or {})

    def layers(self, path: Path) -> LayerPrecisions | None:
        """Return what the runtime says its layers run in; None where it does not tell."""
        if self.missing or self.target.runtime == "onnxruntime":
            return None
        if self.target.runtime == "tensorrt":
            summary = read_record(self.deployed(path)).layers
            if summary is None:
                return None
            return LayerPrecisions(
                layers=summary.layers_by_precision,
                time_ratios=summary.time_ratio_by_precision or {},
                reformats=summary.reformats,
            )
        with OpenVinoSession(path, threads=self.target.threads) as session:
            return LayerPrecisions(layers=session.product_precisions, time_ratios={}, reformats=None)

    def largest_batch(self, path: Path) -> int | None:
        """Return how many samples an engine takes at once; None for a file without such a limit of its own."""
        file = self.deployed(path)
        if file.suffix not in ENGINES:
            return None
        return next(iter(read_record(file).profile.values())).max[0]
