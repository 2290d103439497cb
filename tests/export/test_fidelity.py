import numpy as np
import onnx
import pytest
from graphs import CHANNELS, Net, residual

from tlc.calibration.metrics import sqnr_db
from tlc.export.fidelity import measured_ranges, output_sqnr_db

FEEDS = [{"x": np.random.default_rng(seed).standard_normal((2, CHANNELS, 8, 8), dtype=np.float32)} for seed in range(3)]


def scaled(*factors: float) -> onnx.ModelProto:
    net = Net()
    return net.model(*(net.op("Mul", "x", net.constant(np.float32(factor))) for factor in factors))


def test_the_ratio_is_that_of_signal_to_difference() -> None:
    values = np.random.default_rng(0).standard_normal((4, 5))

    assert sqnr_db(values, 1.1 * values) == pytest.approx(20.0)
    assert sqnr_db(values, values) == np.inf
    assert sqnr_db(np.zeros(3), np.ones(3)) == -np.inf
    with pytest.raises(ValueError, match=r"outputs of shape \(2,\) against \(3,\)"):
        sqnr_db(np.zeros(3), np.zeros(2))


def test_every_output_of_every_candidate_is_compared() -> None:
    reference, close, far = scaled(1.0, 2.0), scaled(1.01, 2.0), scaled(1.1, 2.2)
    names = [value.name for value in reference.graph.output]

    first, second = output_sqnr_db(reference, [close, far], FEEDS)

    assert first == {names[0]: pytest.approx(40, abs=0.01), names[1]: np.inf}
    assert second == {names[0]: pytest.approx(20, abs=0.01), names[1]: pytest.approx(20, abs=0.01)}


def test_ranges_cover_all_inputs() -> None:
    model = residual()
    relu = model.graph.node[0].output[0]

    low, high = measured_ranges(model, [relu], FEEDS)[relu]

    assert low == 0
    assert high == pytest.approx(max(feed["x"].max() for feed in FEEDS))
