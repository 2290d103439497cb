import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_nvml import fake_nvml
from trees import tree

from tlc.runtime import nvml
from tlc.runtime.errors import TlcError
from tlc.runtime.power import (
    NvmlMeter,
    RaplMeter,
    SampledMeter,
    TegrastatsMeter,
    device_memory_bytes,
    open_meters,
    tegrastats_milliwatts,
    total_rails,
)

_PACKAGE = "sys/class/powercap/intel-rapl:0"
_SENSOR = "sys/bus/i2c/devices/1-0040"


@pytest.fixture(autouse=True)
def _no_gpu_and_no_tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    nvml.open_nvml.cache_clear()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", "/nowhere")
    yield
    nvml.open_nvml.cache_clear()


def _gpu(monkeypatch: pytest.MonkeyPatch, **facts: object) -> SimpleNamespace:
    library = fake_nvml(**facts)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pynvml", library)
    nvml.open_nvml.cache_clear()
    return library.gpu  # type: ignore[no-any-return]


def test_a_package_counts_on_where_its_counter_wraps_around(tmp_path: Path) -> None:
    files: dict[str, str | int] = {f"{_PACKAGE}/name": "package-0", f"{_PACKAGE}/max_energy_range_uj": 1_000_000_000}
    root = tree(tmp_path, {**files, f"{_PACKAGE}/energy_uj": 999_000_000, f"{_PACKAGE}:0/energy_uj": 1})
    meters, problems = open_meters(root)
    (meter,) = meters  # not the part of the package as well
    assert (meter.name, meter.joules()) == ("rapl package-0", 0)
    tree(tmp_path, {f"{_PACKAGE}/energy_uj": 999_500_000})
    assert meter.joules() == 0.5
    tree(tmp_path, {f"{_PACKAGE}/energy_uj": 2_000_000})
    assert meter.joules() == 3
    assert not any("RAPL" in problem for problem in problems)
    (root / _PACKAGE / "energy_uj").unlink()
    with pytest.raises(TlcError, match="energy counter rapl package-0 no longer answers"):
        meter.joules()


def test_a_counter_for_root_alone_is_not_offered_and_the_reason_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, {f"{_PACKAGE}/name": "package-0", f"{_PACKAGE}/energy_uj": 1})

    def refuse(zone: Path) -> RaplMeter:
        raise PermissionError(zone)

    monkeypatch.setattr("tlc.runtime.power.RaplMeter", refuse)
    meters, problems = open_meters(tmp_path)
    assert meters == []
    assert (
        f"RAPL: {tmp_path / _PACKAGE / 'energy_uj'} is for root alone; run as root, or `sudo chmod o+r`" in problems[0]
    )


def test_a_broken_counter_is_not_offered(tmp_path: Path) -> None:
    tree(
        tmp_path, {f"{_PACKAGE}/name": "package-0", f"{_PACKAGE}/max_energy_range_uj": 9, f"{_PACKAGE}/energy_uj": "?"}
    )
    meters, problems = open_meters(tmp_path)
    assert meters == []
    assert "cannot be read: invalid literal for int()" in problems[0]


def test_a_machine_without_counters_says_so_of_each_kind(tmp_path: Path) -> None:
    meters, problems = open_meters(tmp_path)
    assert meters == []
    assert [problem.split(":")[0] for problem in problems] == ["RAPL", "NVML", "INA3221"]
    assert "the package nvidia-ml-py is not installed" in problems[1]


def test_a_gpu_counts_millijoules_and_memory_by_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = [SimpleNamespace(pid=7, usedGpuMemory=300), SimpleNamespace(pid=8, usedGpuMemory=None)]
    gpu = _gpu(monkeypatch, energy_mj=5000, processes=processes)
    meters, _ = open_meters(tmp_path)
    (meter,) = meters
    assert isinstance(meter, NvmlMeter)
    assert (meter.name, meter.joules()) == ("nvml 0", 5.0)
    gpu.energy_mj = 7500
    assert meter.joules() == 7.5
    assert [device_memory_bytes(pid) for pid in (7, 8, 9)] == [300, None, None]
    gpu.energy_mj = None
    with pytest.raises(TlcError, match="nvml 0 no longer answers"):
        meter.joules()


def test_an_old_gpu_counts_no_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _gpu(monkeypatch, energy_mj=None)
    meters, problems = open_meters(tmp_path)
    assert meters == []
    assert "NVML: GPU 0 does not count its energy; Volta and later do" in problems


def test_without_a_gpu_no_process_has_device_memory() -> None:
    assert device_memory_bytes(os.getpid()) is None


def test_sampled_power_is_integrated_by_trapezoids() -> None:
    times, powers = iter([0.0, 1.0, 3.0]), iter([10.0, 20.0, 0.0, None])
    meter = SampledMeter("ina3221 VDD_IN", lambda: next(powers), interval_s=None, clock_s=lambda: next(times, 4.0))
    assert meter.joules() == 15  # from 10 to 20 W in a second
    assert meter.joules() == 15 + 20
    with pytest.raises(TlcError, match="ina3221 VDD_IN no longer answers"):
        meter.joules()
    meter.close()


def test_the_thread_of_a_sampled_meter_reads_and_ends() -> None:
    reads: list[int] = []

    def watts() -> float:
        reads.append(1)
        return 5.0

    meter = SampledMeter("any", watts, interval_s=0.001)
    while len(reads) < 5:
        time.sleep(0.001)
    assert meter.joules() > 0
    meter.close()
    meter.close()
    done = len(reads)
    time.sleep(0.01)
    assert len(reads) == done


@pytest.mark.parametrize(
    ("files", "name", "watts"),
    [
        pytest.param(
            {
                f"{_SENSOR}/hwmon/hwmon3/in1_label": "VDD_IN",
                f"{_SENSOR}/hwmon/hwmon3/in1_input": 5000,
                f"{_SENSOR}/hwmon/hwmon3/curr1_input": 1200,
                f"{_SENSOR}/hwmon/hwmon3/in2_label": "VDD_CPU_GPU_CV",
                f"{_SENSOR}/hwmon/hwmon3/in2_input": 5000,
                f"{_SENSOR}/hwmon/hwmon3/curr2_input": 100,
                f"{_SENSOR}/hwmon/hwmon3/in3_label": "NC",
                f"{_SENSOR}/hwmon/hwmon3/in3_input": 5000,
                f"{_SENSOR}/hwmon/hwmon3/curr3_input": 100,
                f"{_SENSOR}/hwmon/hwmon3/in7_label": "sum of shunt voltages",
                f"{_SENSOR}/hwmon/hwmon3/in7_input": 3,
            },
            "ina3221 VDD_IN",
            6.0,
            id="JetPack 5, one rail is all",
        ),
        pytest.param(
            {
                **{f"{_SENSOR}/hwmon/hwmon1/in{i}_input": 10_000 for i in (1, 2, 3)},
                **{f"{_SENSOR}/hwmon/hwmon1/curr{i}_input": 100 * i for i in (1, 2, 3)},
                f"{_SENSOR}/hwmon/hwmon1/in1_label": "VDD_GPU_SOC",
                f"{_SENSOR}/hwmon/hwmon1/in2_label": "VDD_CPU_CV",
                f"{_SENSOR}/hwmon/hwmon1/in3_label": "VIN_SYS_5V0",
                "sys/bus/i2c/devices/1-0041/hwmon/hwmon2/in2_label": "VDDQ_VDD2_1V8AO",
                "sys/bus/i2c/devices/1-0041/hwmon/hwmon2/in2_input": 5000,
                "sys/bus/i2c/devices/1-0041/hwmon/hwmon2/curr2_input": 9000,
            },
            "ina3221 VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0",
            6.0,
            id="AGX Orin, three rails are all",
        ),
        pytest.param(
            {
                "sys/bus/i2c/devices/6-0040/iio:device0/rail_name_0": "POM_5V_IN",
                "sys/bus/i2c/devices/6-0040/iio:device0/in_power0_input": 2500,
                "sys/bus/i2c/devices/6-0040/iio:device0/rail_name_1": "POM_5V_GPU",
                "sys/bus/i2c/devices/6-0040/iio:device0/in_power1_input": 400,
            },
            "ina3221 POM_5V_IN",
            2.5,
            id="JetPack 4",
        ),
    ],
)
def test_only_the_input_of_a_module_is_its_energy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str | int], name: str, watts: float
) -> None:
    read: list[float | None] = []

    class Still(SampledMeter):
        def __init__(self, name: str, sensor: object) -> None:
            super().__init__(name, sensor, interval_s=None)  # type: ignore[arg-type]
            read.append(sensor())  # type: ignore[operator]

    monkeypatch.setattr("tlc.runtime.power.SampledMeter", Still)
    meters, _ = open_meters(tree(tmp_path, files))
    assert [meter.name for meter in meters] == [name]
    assert read == [pytest.approx(watts)]


def test_rails_of_an_unknown_board_are_named_and_not_summed(tmp_path: Path) -> None:
    sensor = f"{_SENSOR}/hwmon/hwmon3"
    root = tree(tmp_path, {f"{sensor}/in1_label": "VDD_X", f"{sensor}/in1_input": 5000, f"{sensor}/curr1_input": 1200})
    meters, problems = open_meters(root)
    assert meters == []
    assert "INA3221: none of the rails VDD_X is known as the input of a module" in problems


@pytest.mark.parametrize(
    ("line", "rails"),
    [
        pytest.param(
            "RAM 1223/3964MB (lfb 437x4MB) SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [8%@102,off] "
            "GR3D_FREQ 0% PLL@31C CPU@33.5C PMIC@100C POM_5V_IN 1522/1490 POM_5V_GPU 0/0 POM_5V_CPU 202/190",
            {"POM_5V_IN": 1522, "POM_5V_GPU": 0, "POM_5V_CPU": 202},
            id="JetPack 4, Nano",
        ),
        pytest.param(
            "RAM 2257/30536MB (lfb 5392x4MB) SWAP 0/15268MB (cached 0MB) CPU [1%@729,0%@729,off] EMC_FREQ 0% "
            "GR3D_FREQ 0%@[114] cpu@45.5C tj@45.5C VDD_GPU_SOC 5139mW/5139mW VDD_CPU_CV 793mW/793mW "
            "VIN_SYS_5V0 3932mW/3832mW VDDQ_VDD2_1V8AO 605mW/605mW",
            {"VDD_GPU_SOC": 5139, "VDD_CPU_CV": 793, "VIN_SYS_5V0": 3932, "VDDQ_VDD2_1V8AO": 605},
            id="JetPack 5 and 6, AGX Orin",
        ),
        pytest.param(
            "11-21-2026 10:00:00 RAM 3000/7620MB (lfb 1x4MB) CPU [1%@729] GR3D_FREQ 12%@[1300,1300] "
            "VDD_IN 4980mW/4512mW/6000mW VDD_SOC 1426mW/1400mW/1500mW",
            {"VDD_IN": 4980, "VDD_SOC": 1426},
            id="JetPack 7",
        ),
        pytest.param(
            "RAM 9/31918MB CPU [1%@1190] GPU 0/0 CPU 311/311 SOC 932/932 CV 0/0 VDDRQ 155/155 SYS5V 1547/1547",
            {"GPU": 0, "CPU": 311, "SOC": 932, "CV": 0, "VDDRQ": 155, "SYS5V": 1547},
            id="JetPack 4, AGX Xavier",
        ),
        pytest.param("RAM 9/31918MB CPU [1%@1190]", {}, id="no rail"),
    ],
)
def test_tegrastats_is_read_in_every_release(line: str, rails: dict[str, int]) -> None:
    assert tegrastats_milliwatts(line) == rails


def test_the_sum_is_of_a_boards_own_inputs() -> None:
    assert total_rails(["CPU", "GPU", "SOC", "CV", "VDDRQ", "SYS5V"]) == ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")
    assert total_rails(["GPU", "CPU"]) == ()


def _tool(folder: Path, lines: str) -> Path:
    tool = folder / "tegrastats"
    tool.write_text(f"#!{sys.executable}\nimport time\n{lines}\n", encoding="utf-8")
    tool.chmod(0o755)
    return tool


def test_tegrastats_is_a_meter_where_the_sensors_are_not_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tool(tmp_path, "print('RAM 1/2MB VDD_IN 5000mW/4000mW VDD_SOC 9mW/9mW', flush=True)\ntime.sleep(60)")
    monkeypatch.setenv("PATH", str(tmp_path))
    meters, _ = open_meters(tmp_path)
    (meter,) = meters
    assert isinstance(meter, TegrastatsMeter)
    assert meter.name == "tegrastats VDD_IN"
    before, start = meter.joules(), time.monotonic()
    time.sleep(0.02)
    energy = meter.joules() - before
    assert 5 * 0.02 <= energy <= 5 * (time.monotonic() - start) + 5 * 0.02
    meter.close()
    meter.close()


def test_tegrastats_that_ends_or_knows_no_rail_is_no_meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _tool(tmp_path, "print('RAM 1/2MB')")
    monkeypatch.setenv("PATH", str(tmp_path))
    meters, problems = open_meters(tmp_path)
    assert meters == []
    assert any(problem.startswith("tegrastats: tegrastats printed no power of a module") for problem in problems)
