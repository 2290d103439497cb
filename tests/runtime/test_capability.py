"""Whatever this machine has, or pretends to have, is told and never raises."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from machines import pc

from tlc.runtime import probes
from tlc.runtime.capability import Gpu, Machine, missing, missing_to_build, missing_to_compress, probe
from tlc.runtime.jetson import read_jetson
from tlc.runtime.probes import Package, Tool, find_trtexec, imported, nvidia_smi, output, system_tensorrt
from tlc.runtime.target import Target, load_target, target_names

CRASHES = {
    "raises": ("raise RuntimeError('libfoo is too old')", "RuntimeError: libfoo is too old"),
    "exits": ("raise SystemExit('not on this CPU')", "not on this CPU"),
    "segfaults": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the process was ended by SIGSEGV"),
    "talks": ("import sys; sys.stdout.write('hello'); sys.stdout.flush(); import os; os._exit(0)", "'hello' instead"),
    "hangs": ("import time; time.sleep(60)", "no answer in 1 s"),
}


def _write(path: Path, text: str, *, program: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if program:
        path.chmod(0o755)
    return path


def _package(name: str, **facts: Any) -> list[Package]:
    return [Package(name=name, **facts)]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.parametrize("crash", CRASHES)
def test_a_package_that_breaks_at_import_is_a_finding(
    crash: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, expected = CRASHES[crash]
    _write(tmp_path / "tensorrt.py", code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(probes, "_TIMEOUT_S", 1.0 if crash == "hangs" else 30.0)

    package = imported("tensorrt")

    assert package.version == "of unknown version"
    assert expected in (package.error or "")
    assert not package.works
    assert "tensorrt" not in sys.modules


def test_a_package_that_works_tells_its_version_and_one_that_is_not_there_has_none() -> None:
    found = imported("onnxruntime")
    assert found.works
    assert found.imported
    assert found.version is not None
    assert found.version[0].isdigit()
    assert "CPUExecutionProvider" in found.providers
    assert imported("no_such_package") == Package(name="no_such_package")


def test_this_machine_is_probed_without_importing_anything_here() -> None:
    code = (
        "import sys; from tlc.runtime.capability import probe; machine = probe();"
        "assert machine.packages['onnxruntime'].works;"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino', 'nncf', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_machine_with_nothing_is_described(tmp_path: Path, tools: Path) -> None:
    machine = probe(root=tmp_path)
    assert machine.jetson is None
    assert machine.cpu is None
    assert machine.trtexec == Tool(name="trtexec")
    assert machine.system_tensorrt.path is None
    assert machine.disk_free_bytes > 0
    assert Machine.model_validate_json(machine.model_dump_json()) == machine


def test_a_full_probe_imports_pytorch_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    _write(tmp_path / "torch.py", "raise ImportError('libtorch_cpu.so: undefined symbol')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe().packages["torch"].error is None
    broken = probe(full=True)
    assert broken.packages["torch"].error == "ImportError: libtorch_cpu.so: undefined symbol"
    assert "torch does not import: ImportError" in (missing_to_compress(broken) or "")


def test_nvidia_smi_tells_gpus_driver_and_compute_capability(tools: Path) -> None:
    _write(tools / "nvidia-smi", "#!/bin/sh\necho 'NVIDIA H200, 580.65.06, 143771, 9.0'\n", program=True)
    assert nvidia_smi() == {
        "gpus": [{"name": "NVIDIA H200", "memory_bytes": 143771 * 2**20, "sm": "9.0"}],
        "driver": "580.65.06",
    }


def test_an_old_nvidia_smi_does_not_know_the_compute_capability(tools: Path) -> None:
    script = "#!/bin/sh\ncase $1 in *compute_cap*) exit 2;; esac\necho 'Tesla P4, 460.1, [N/A]'\n"
    _write(tools / "nvidia-smi", script, program=True)
    assert nvidia_smi()["gpus"] == [{"name": "Tesla P4", "memory_bytes": None, "sm": None}]


def test_a_broken_nvidia_smi_says_so_and_a_missing_one_nothing(tools: Path) -> None:
    assert nvidia_smi() == {}
    script = "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the driver' >&2\nexit 9\n"
    _write(tools / "nvidia-smi", script, program=True)
    assert "could not communicate with the driver" in nvidia_smi()["error"]
    assert probe(root=tools).gpus == ()


@pytest.mark.parametrize(("number", "version"), [("8503", "8.5.3"), ("8601", "8.6.1"), ("100300", "10.3.0")])
def test_trtexec_is_found_outside_path_and_tells_its_version(
    tmp_path: Path, tools: Path, number: str, version: str
) -> None:
    banner = f"#!/bin/sh\necho '&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec --help'\n"
    usual = _write(tmp_path / "usr/src/tensorrt/bin/trtexec", banner, program=True)
    assert find_trtexec(tmp_path) == Tool(name="trtexec", path=str(usual), version=version)
    own = _write(tools / "trtexec", "#!/bin/sh\nexit 1\n", program=True)
    assert find_trtexec(tmp_path) == Tool(name="trtexec", path=str(own), error="it exited with status 1")


def test_tensorrt_of_the_systems_python_is_found(tmp_path: Path) -> None:
    assert system_tensorrt(tmp_path).path is None
    folder = tmp_path / "usr/lib/python3.10/dist-packages/tensorrt"
    folder.mkdir(parents=True)
    _write(tmp_path / "usr/bin/python3", "#!/bin/sh\necho 10.3.0\n", program=True)
    found = system_tensorrt(tmp_path)
    assert (found.path, found.version, found.error) == (str(folder), "10.3.0", None)


def test_a_program_that_cannot_start_is_a_finding(tmp_path: Path) -> None:
    assert output([str(tmp_path / "gone")]) == ("", f"{tmp_path / 'gone'}: No such file or directory")
    unfit = _write(tmp_path / "unfit", "\x7fELF", program=True)
    assert output([str(unfit)])[1] == f"{unfit}: Exec format error"


_CUDA = """
int cuInit(unsigned flags) { %s }
int cuDriverGetVersion(int* version) { *version = 12060; return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char* name, int length, int device) { name[0] = 'G'; name[1] = 0; return 0; }
int cuDeviceTotalMem_v2(unsigned long* bytes, int device) { *bytes = 1ul << 33; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) { *value = attribute == 75 ? 8 : 7; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="needs a C compiler")
@pytest.mark.parametrize(
    ("body", "gpus", "driver", "error"),
    [
        ("return 0;", (Gpu(name="G", sm="8.7", memory_bytes=2**33),), "for CUDA 12.6", None),
        ("return 100;", (), None, "cuInit failed with CUDA error 100"),
        ("return *(volatile int*)0;", (), None, "the process was ended by SIGSEGV"),
    ],
)
def test_cuda_is_asked_in_a_process_that_may_crash(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    gpus: tuple[Gpu, ...],
    driver: str | None,
    error: str | None,
) -> None:
    source = _write(tmp_path / "cuda.c", _CUDA % body)
    subprocess.run(["cc", "-shared", "-fPIC", "-w", source, "-o", tmp_path / "libcuda.so.1"], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    machine = probe(root=tmp_path)
    assert (machine.gpus, machine.driver.version, machine.driver.error) == (gpus, driver, error)


_DPKG = """Package: libnvinfer10
Status: install ok installed
Version: 10.3.0.30-1+cuda12.5

Package: nvidia-jetpack
Status: install ok installed
Version: 6.2+b77

Package: libnvinfer8
Status: deinstall ok config-files
Version: 8.6.2
"""


def _orin(root: Path) -> Path:
    tree = root / "proc/device-tree"
    _write(tree / "model", "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0")
    _write(tree / "compatible", "nvidia,p3768-0000+p3767-0000\0nvidia,tegra234\0")
    _write(tree / "bus@0/host1x@13e00000/nvdla0@15880000/status", "okay\0")
    _write(tree / "bus@0/host1x@13e00000/nvdla1@158c0000/status", "disabled\0")
    _write(root / "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    _write(root / "var/lib/dpkg/status", _DPKG)
    gpu = root / "sys/class/devfreq/17000000.gpu"
    _write(gpu / "min_freq", "306000000\n")
    _write(gpu / "max_freq", "918000000\n")
    return root


def _mode(command: Any) -> tuple[str, str | None]:
    assert list(command) == ["nvpmodel", "-q"]
    return "NV Power Mode: 25W\n1\n", None


def _silent(_: Any) -> tuple[str, str | None]:
    return "", "nvpmodel: No such file or directory"


def test_a_jetson_tells_what_it_is_and_what_is_on_it(tmp_path: Path) -> None:
    found = read_jetson(_orin(tmp_path), _mode)
    assert found is not None
    assert found.model == "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    assert (found.soc, found.sm, found.l4t, found.jetpack) == ("tegra234", "8.7", "36.4.3", "6.2")
    assert (found.tensorrt, found.dla_cores, found.power_mode) == ("10.3.0.30", 1, "25W")
    assert found.clocks_locked is False


def test_clocks_are_locked_when_no_frequency_can_change(tmp_path: Path) -> None:
    root = _orin(tmp_path)
    _write(root / "sys/class/devfreq/17000000.gpu/min_freq", "918000000\n")
    cpu = root / "sys/devices/system/cpu/cpu0/cpufreq"
    _write(cpu / "scaling_min_freq", "1984000\n")
    _write(cpu / "scaling_max_freq", "1984000\n")
    locked = read_jetson(root, _silent)
    assert locked is not None
    assert (locked.clocks_locked, locked.power_mode) == (True, None)
    _write(cpu / "scaling_min_freq", "729600\n")
    loose = read_jetson(root, _silent)
    assert loose is not None
    assert loose.clocks_locked is False


@pytest.mark.parametrize(
    ("release", "jetpack"),
    [
        ("R32 (release), REVISION: 7.1", "4.6.x"),
        ("R35 (release), REVISION: 4.1", "5.1.x"),
        ("R99 (release), REVISION: 1", None),
    ],
)
def test_jetpack_follows_from_jetson_linux_without_the_package(
    tmp_path: Path, release: str, jetpack: str | None
) -> None:
    _write(tmp_path / "etc/nv_tegra_release", f"# {release}, GCID: 1\n")
    found = read_jetson(tmp_path, _silent)
    assert found is not None
    assert found.jetpack == jetpack
    unknown = (found.soc, found.sm, found.tensorrt, found.dla_cores, found.power_mode, found.clocks_locked)
    assert unknown == (None,) * 6


def test_a_board_that_is_no_jetson_is_none(tmp_path: Path) -> None:
    _write(tmp_path / "proc/device-tree/model", "Raspberry Pi 5\0")
    _write(tmp_path / "proc/device-tree/compatible", "raspberrypi,5\0brcm,bcm2712\0")
    assert read_jetson(tmp_path, _silent) is None


def _target(**changes: Any) -> Target:
    return load_target("cpu-x86").model_copy(update=changes)


def test_every_target_that_fits_is_run_and_built() -> None:
    machine = pc()
    assert {name for name in target_names() if missing(load_target(name), machine) is None} == {
        *("cpu-x86", "cpu-arm", "openvino", "cuda"),
    }
    assert missing_to_build(load_target("cuda"), machine) is None
    assert missing_to_build(load_target("cpu-x86"), machine) is None
    assert missing_to_compress(machine) is None


@pytest.mark.parametrize(
    ("target", "changes", "reason"),
    [
        ("cuda", {"gpus": ()}, "there is no NVIDIA GPU"),
        ("jetson-orin", {}, "the GPU here is RTX 4090 (SM 8.9), and jetson-orin means SM 8.7"),
        ("cuda-trt11", {}, "TensorRT 10.13.3.9 is installed, and cuda-trt11 means 11."),
        ("cuda", {"packages": _package("tensorrt", version="10.3.0")}, "TensorRT 10.3.0 is installed, and cuda means"),
        ("cuda", {"packages": _package("tensorrt")}, "TensorRT is not installed in this Python"),
        ("cuda", {"packages": _package("tensorrt", version="10.13", error="oh")}, "tensorrt 10.13 does not import: oh"),
        (
            "cuda",
            {"driver": Tool(name="NVIDIA driver", error="cuInit failed with CUDA error 803")},
            "RTX 4090 is here, but CUDA cannot use it: cuInit failed with CUDA error 803",
        ),
        ("openvino", {"packages": _package("openvino")}, "openvino is not installed"),
        ("openvino", {"packages": _package("openvino", version="2026", error="no")}, "openvino 2026 does not import: "),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(target: str, changes: dict[str, Any], reason: str) -> None:
    assert (missing(load_target(target), pc(**changes)) or "").startswith(reason)


def test_a_gpu_whose_compute_capability_is_not_known_is_taken_to_fit() -> None:
    assert missing(load_target("cuda"), pc(gpus=(Gpu(name="G", sm=None, memory_bytes=None),))) is None


def test_a_newer_minor_release_of_tensorrt_will_do() -> None:
    assert missing(load_target("cuda"), pc(packages=_package("tensorrt", version="10.16.1"))) is None


def test_a_provider_that_onnx_runtime_lacks_is_named() -> None:
    reason = missing(_target(provider="cuda"), pc())
    assert reason == "onnxruntime 1.31.1 has no CUDAExecutionProvider"


def test_trtexec_builds_where_python_has_no_tensorrt() -> None:
    without = {"packages": _package("tensorrt")}
    reason = missing_to_build(load_target("cuda"), pc(**without))
    assert reason == "TensorRT is not installed in this Python, and there is no trtexec"
    assert missing_to_build(load_target("cuda"), pc(**without, trtexec=Tool(name="trtexec", path="/t"))) is None
    assert missing_to_build(load_target("cuda"), pc(gpus=())) == "there is no NVIDIA GPU"


def test_what_compression_lacks_is_named() -> None:
    reason = missing_to_compress(pc(packages=_package("torch") + _package("nncf")))
    assert reason == "torch, nncf are not installed"
    assert missing_to_compress(pc(packages=_package("torch"))) == "torch is not installed"


def test_the_cpu_of_onnx_runtime_is_here_without_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> Machine:
        raise AssertionError("probed")

    monkeypatch.setattr("tlc.runtime.capability.probe", fail)
    assert missing(load_target("cpu-x86")) is None


def test_probes_that_hang_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "openvino.py", "import time; time.sleep(600)")
    _write(tmp_path / "tensorrt.py", "import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(probes, "_TIMEOUT_S", 1.0)
    machine = probe(root=tmp_path)
    assert machine.packages["tensorrt"].error == machine.packages["openvino"].error == "no answer in 1 s"


def test_the_command_outlives_a_broken_onnx_runtime(tmp_path: Path) -> None:
    _write(tmp_path / "broken/onnxruntime.py", CRASHES["segfaults"][0])
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "broken")}
    command = [sys.executable, "-m", "tlc.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "SIGSEGV" in answer["machine"]["packages"]["onnxruntime"]["error"]
    assert "onnxruntime" in answer["targets"]["cpu-x86"]["cannot_run"]
    assert "Reinstall onnxruntime: pip install --force-reinstall onnxruntime" in answer["next_steps"]
