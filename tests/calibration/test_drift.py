"""How far outputs drift: against numpy, through odd batches, several outputs, padding and other orders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bar_nets import write_net
from numpy.typing import NDArray

import tiny
from tlc.calibration.cache import Pixels, prepare
from tlc.calibration.data import read_data
from tlc.calibration.drift import Side, output_drift
from tlc.calibration.text_set import TextSet
from tlc.calibration.token_set import TextInput, Tokens
from tlc.runtime.session import OrtSession, Session
from tlc.runtime.tensor import TensorSpec


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Pixels:
    path = tiny.write_bars(tmp_path_factory.mktemp("drift") / "bars.npz", 350)
    return prepare(read_data(path).evaluation, tiny.PREPROCESS)


def test_every_output_is_compared_row_by_row(tmp_path: Path, pixels: Pixels) -> None:
    a, b = (write_net(tmp_path / f"{bias}.onnx", bias=bias, more=True) for bias in (0.0, 0.5))

    with OrtSession(a) as first, OrtSession(b) as second:
        found, alone = output_drift(Side(first, pixels, 32), Side(second, pixels, 32))
        images = pixels.batch(np.arange(len(pixels)))
        x, y = (session.run({"input": images})["logits"].astype(np.float64) for session in (first, second))

    assert [(drift.output, drift.samples, drift.rows) for drift in found] == [("logits", 70, 70), ("rows", 70, 70)]
    assert alone == []
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert found[0].max_abs == pytest.approx(np.abs(y - x).max())
    assert found[0].mean_abs == pytest.approx(np.abs(y - x).mean())
    assert found[0].snr_db == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()))
    assert (found[0].cosine_mean, found[0].cosine_worst) == pytest.approx((cosines.mean(), cosines.min()))
    assert found[0].argmax_equal_ratio == np.mean(x.argmax(1) == y.argmax(1))
    same = found[1]
    assert (same.max_abs, same.snr_db, same.cosine_worst, same.argmax_equal_ratio) == (0, None, 1, 1)


def test_a_file_of_a_fixed_batch_and_one_of_any_give_the_same(tmp_path: Path, pixels: Pixels) -> None:
    fixed, free = write_net(tmp_path / "fixed.onnx", batch=3), write_net(tmp_path / "free.onnx")

    with OrtSession(fixed) as first, OrtSession(free) as second:
        (found,), _alone = output_drift(Side(first, pixels, 64), Side(second, pixels, 32))

    assert (found.rows, found.max_abs) == (70, 0)


def test_outputs_without_their_like_are_named(tmp_path: Path, pixels: Pixels) -> None:
    a, b = write_net(tmp_path / "a.onnx", more=True), write_net(tmp_path / "b.onnx")

    with OrtSession(a) as first, OrtSession(b) as second:
        found, alone = output_drift(Side(first, pixels, 32), Side(second, pixels, 32))
        back, alone_back = output_drift(Side(second, pixels, 32), Side(first, pixels, 32))

    assert [drift.output for drift in found] == [drift.output for drift in back] == ["logits"]
    assert alone == ["rows: only A has an output of that name."]
    assert alone_back == ["rows: only B has an output of that name."]


class _Answers(Session):
    """Gives the same answer whatever it is asked."""

    def __init__(self, spec: TensorSpec, answer: Any, inputs: tuple[str, ...] = ("input",)) -> None:
        self._inputs = tuple(TensorSpec(name, ("N", "T"), "float32") for name in inputs)
        self._outputs = (spec,)
        self._answer = answer

    @property
    def runtime(self) -> str:
        return "none"

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {self._outputs[0].name: self._answer(next(iter(feeds.values())))}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda x: np.zeros((len(x), 3)), "logits: 1 x 2 values of a sample against 1 x 3."),
        (lambda x: np.full((len(x), 2), np.nan), "logits: it holds NaN or infinity."),
        (lambda _x: np.float32(1), "logits: it has no entry for each sample."),
    ],
)
def test_what_cannot_be_compared_is_said(pixels: Pixels, answer: Any, reason: str) -> None:
    spec = TensorSpec("logits", ("N", 2), "float32")
    usual = _Answers(spec, lambda x: np.ones((len(x), 2)))

    found, alone = output_drift(Side(usual, pixels, 32), Side(_Answers(spec, answer), pixels, 32))

    assert (found, alone) == ([], [reason])


def _tokens(lengths: list[int]) -> Tokens:
    names = tuple(map(str, range(len(lengths))))
    texts = TextSet("token-classification", ("O", "X"), names, np.zeros(len(lengths), np.int64), names, names)
    fed = TextInput(
        task="token-classification", max_length=8, inputs=("input_ids", "attention_mask"), pad_id=0,
        tokenizer_sha256="0" * 64,
    )  # fmt: skip
    rows = tuple(np.ones(length, np.int64) for length in lengths)
    return Tokens(texts, fed, rows, rows, rows, texts.labels, np.zeros(len(lengths), bool))


def test_padding_is_not_compared() -> None:
    def noisy_padding(noise: float) -> Session:
        def answer(ids: NDArray[np.int64]) -> NDArray[np.float32]:
            values = np.where(ids[:, :, None] > 0, 1.0, noise)
            return np.concatenate([values, 2 * values], axis=2).astype(np.float32)

        return _Answers(TensorSpec("logits", ("N", "T", 2), "float32"), answer, ("input_ids", "attention_mask"))

    tokens = _tokens([2, 5, 3])

    (found,), _alone = output_drift(Side(noisy_padding(7), tokens, 2), Side(noisy_padding(-9), tokens, 3))

    assert (found.samples, found.rows, found.max_abs, found.argmax_equal_ratio) == (3, 10, 0, 1)
