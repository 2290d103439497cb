"""Building with NVIDIA's `trtexec`, where TensorRT's Python module is missing or belongs to another Python.

JetPack installs it as /usr/src/tensorrt/bin/trtexec. Its options changed: up to 8.3 --workspace in MiB, later
--memPoolSize; up to 8.5 --buildOnly, later --skipInference; 11 removed --fp16 and --int8: sampleOptions.cpp in
samples/common of NVIDIA/TensorRT, at the tags 8.2.1, 8.5.3, v8.6.1, v10.3.0 and v11.1.
"""

import re
import shutil
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from tlc.export.engine_process import run_child
from tlc.export.engine_request import BuildRequest, Built
from tlc.export.onnx_facts import read_onnx_facts
from tlc.runtime.errors import TlcError
from tlc.runtime.inspector import read_layers, read_profile, read_times, summarize
from tlc.runtime.plan import LayerSummary, ProfileShapes, TensorRecord, version_key
from tlc.runtime.tensor import TensorSpec

_PLACES = ("/usr/src/tensorrt/bin/trtexec", "/usr/local/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
# "[TensorRT v8502]" and "[TensorRT v100300]": before 10 two digits a number after the first, then two for each.
_VERSION = re.compile(r"\[TensorRT v(\d{4,6})\]")
_MIB = 1 << 20


def find_trtexec(named: Path | None = None) -> Path | None:
    """Return the program: the one named, on PATH, or where JetPack and NVIDIA's containers have it; None without."""
    if named is not None:
        if not named.is_file():
            raise TlcError(f"no trtexec at {named}", hint="Check the path; JetPack has it in /usr/src/tensorrt/bin.")
        return named
    on_path = shutil.which("trtexec")
    return next((Path(place) for place in (on_path, *_PLACES) if place and Path(place).is_file()), None)


def trtexec_version(program: Path) -> str:
    """Return the program's TensorRT, such as "8.5.2", from its banner. Raises TlcError when it shows none."""
    log = run_child([str(program), "--help"], what="trtexec --help", limits="", timeout_s=60, check=False)
    found = _VERSION.search(log)
    if found is None:
        raise TlcError(f"{program} does not show its version", hint="Run it by hand: a library may be missing.")
    return banner_version(found[1])


def banner_version(digits: str) -> str:
    """Return major.minor.patch of the banner's digits.

    NV_TENSORRT_VERSION is major * 1000 + minor * 100 + patch up to 9, and major * 10000 + minor * 100 + patch since.

    >>> banner_version("8502"), banner_version("100300"), banner_version("101303")
    ('8.5.2', '10.3.0', '10.13.3')
    """
    value = int(digits)
    major = value // 1000 if value < 10000 else value // 10000
    rest = value % 1000 if value < 10000 else value % 10000
    return f"{major}.{rest // 100}.{rest % 100}"


def build_command(program: Path, release: tuple[int, ...], request: BuildRequest) -> list[str]:
    """Return the command that builds without running, for that release."""
    command = [str(program), f"--onnx={request.onnx}", f"--saveEngine={request.plan}", "--profilingVerbosity=detailed"]
    command.append("--skipInference" if release >= (8, 6) else "--buildOnly")
    workspace_mib = request.pools_bytes["WORKSPACE"] // _MIB
    command.append(f"--workspace={workspace_mib}" if release < (8, 4) else f"--memPoolSize=workspace:{workspace_mib}")
    if request.strongly_typed:
        command += ["--stronglyTyped"] if release < (11,) else []
    else:
        command += {"fp32": [], "fp16": ["--fp16"], "int8": ["--int8"], "best": ["--fp16", "--int8"]}[request.precision]
    for kind in ("min", "opt", "max") if request.shapes else ():
        shapes = {name: getattr(limits, kind) for name, limits in request.shapes.items()}
        command.append(f"--{kind}Shapes={_listed(shapes)}")
    if request.builder_level is not None:
        command.append(f"--builderOptimizationLevel={request.builder_level}")
    if request.aux_streams is not None and release >= (8, 6):
        command.append(f"--maxAuxStreams={request.aux_streams}")
    if request.timing_cache is not None:
        command.append(f"--timingCacheFile={request.timing_cache}")
    command += ["--versionCompatible"] if request.version_compatible else []
    command += ["--hardwareCompatibilityLevel=ampere+"] if request.hardware_compatible else []
    command += ["--stripWeights"] if request.strip else []
    command += ["--refit"] if request.refit else []
    if request.dla_core is not None:
        command.append(f"--useDLACore={request.dla_core}")
        command += ["--allowGPUFallback"] if request.gpu_fallback else []
    return command


def build_with_trtexec(program: Path, version: str, request: BuildRequest, *, limits: str, timeout_s: float) -> Built:
    """Build one engine. Raises ChildError with trtexec's words when it cannot."""
    cache = None if request.timing_cache is None else Path(request.timing_cache)
    had_timings = cache is not None and cache.is_file()
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    command = build_command(program, version_key(version), request)
    run_child(command, what="trtexec", limits=limits, timeout_s=timeout_s)
    facts = read_onnx_facts(Path(request.onnx))
    inputs = [_record(spec) for spec in facts.inputs]
    fixed = {tensor.name: ProfileShapes(min=tensor.shape, opt=tensor.shape, max=tensor.shape) for tensor in inputs}
    return Built(
        tensorrt=version,
        inputs=inputs,
        outputs=[_record(spec) for spec in facts.outputs],
        profile={**fixed, **request.shapes},
        device_memory_bytes=None,
        timing_cache_hit=None if cache is None else had_timings,
        dla_layer_ratio=None,
        build_s=time.perf_counter() - start,
        warnings=["Built by trtexec: inputs and outputs are the ONNX file's; what runs on a DLA is not known."],
    )


def measure_command(
    program: Path, release: tuple[int, ...], plan: Path, out: Path, shapes: Mapping[str, ProfileShapes]
) -> list[str]:
    """Return the command that runs a plan and writes times.json, profile.json and layers.json into `out`.

    CUDA graph on, spinning, no copies: 11 does that by itself, before it has to be said.
    """
    command = [str(program), f"--loadEngine={plan}", "--warmUp=200", "--iterations=100", "--avgRuns=10"]
    command += (
        ["--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--separateProfileRun"] if release < (11,) else []
    )
    command += [f"--exportTimes={out / 'times.json'}", f"--exportProfile={out / 'profile.json'}"]
    command += [f"--exportLayerInfo={out / 'layers.json'}", "--profilingVerbosity=detailed"]
    dynamic = {name: limits for name, limits in shapes.items() if limits.min != limits.max}
    command += [f"--shapes={_listed({name: limits.opt for name, limits in dynamic.items()})}"] if dynamic else []
    return command


def read_measured(out: Path) -> tuple[float | None, LayerSummary | None, list[str]]:
    """Return (median GPU time in ms, layers, problems) of what `measure_command` wrote; None for what is missing."""
    problems: list[str] = []
    gpu_ms: float | None = None
    layers: LayerSummary | None = None
    try:
        gpu_ms = statistics.median(read_times((out / "times.json").read_text(encoding="utf-8", errors="replace")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"GPU time is not known: {error}.")
    try:
        profile = read_profile((out / "profile.json").read_text(encoding="utf-8", errors="replace"))
        layers = summarize(read_layers((out / "layers.json").read_text(encoding="utf-8", errors="replace")), profile)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"Layers are not known: {error}.")
    except TlcError as error:
        problems.append(f"Layers are not known: {error.message}.")
    return gpu_ms, layers, problems


def _record(spec: TensorSpec) -> TensorRecord:
    shape = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    return TensorRecord(name=spec.name, shape=shape, dtype=spec.dtype)


def _listed(shapes: Mapping[str, list[int]]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, dims))}" for name, dims in shapes.items())
