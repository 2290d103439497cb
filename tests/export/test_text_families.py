"""Every family of text networks: exported, fused and in INT8. All in one file, so that a network is exported once."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_text import FAMILIES, TASKS
from tiny_text_onnx import (
    MAX_LENGTH,
    PLAIN,
    TYPED,
    assert_same,
    ort_logits,
    signal_to_noise_db,
    tiny_fused,
    tiny_module,
    tiny_onnx,
    token_batch,
    torch_logits,
)

from tlc.export.dynamic_int8 import dynamic_int8

EXPORTED = [
    *[(family, TASKS[0], PLAIN) for family in FAMILIES],
    ("bert", TASKS[1], TYPED),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ("bert", TASKS[2], TYPED),
            ("distilbert", TASKS[1], PLAIN),
            ("modernbert", TASKS[1], PLAIN),
            ("deberta-v2", TASKS[2], PLAIN),
        ]
    ),
]
QUANTIZED = [
    *[(family, TASKS[0]) for family in FAMILIES],
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [("bert", TASKS[1]), ("electra", TASKS[2])]),
]
FUSED_ATTENTION = {"bert": 2, "minilm": 3, "distilbert": 2, "roberta": 2, "electra": 2, "albert": 2}
"""Layers whose attention has nothing between the linear layers and the products."""


@pytest.mark.parametrize(("family", "task", "inputs"), EXPORTED, ids=lambda case: "".join(case) if case else "")
def test_every_family_gives_the_logits_of_torch_at_any_batch_size_and_length(
    family: str, task: str, inputs: tuple[str, ...]
) -> None:
    module = tiny_module(family, task)
    exported = tiny_onnx(family, task, inputs)
    assert exported.simplified
    for count, length in ((1, 2), (1, 11), (4, MAX_LENGTH)):
        feeds = token_batch(count, length, inputs)
        counted = feeds["attention_mask"] == 1 if task != TASKS[0] else slice(None)
        found, expected = ort_logits(exported.path, feeds), torch_logits(module, feeds)
        np.testing.assert_allclose(found[counted], expected[counted], atol=2e-5)
    operators = {node.op_type for node in onnx.load(exported.path).graph.node}
    assert not operators & {"IsNaN", "GatherND", "If", "ScatterND"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_same_logits_fused(family: str) -> None:
    record, path = tiny_fused(family)
    assert_same(tiny_onnx(family).path, path, PLAIN)
    assert record.attention == FUSED_ATTENTION.get(family, 0)
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("Attention") + operators.count("MultiHeadAttention") == record.attention
    assert record.first_token


@pytest.mark.parametrize(("family", "task"), QUANTIZED)
def test_every_family_stays_close_to_float32(tmp_path: Path, family: str, task: str) -> None:
    plain, (_, source) = tiny_onnx(family, task).path, tiny_fused(family, task)
    record = dynamic_int8(source, tmp_path / "int8.onnx", max_length=MAX_LENGTH)
    feeds = token_batch(64, 20)
    counted = slice(None) if task == TASKS[0] else feeds["attention_mask"] == 1
    found, expected = (ort_logits(path, feeds)[counted] for path in (tmp_path / "int8.onnx", plain))
    assert signal_to_noise_db(found, expected) > 20
    assert record.embeddings
    assert record.attentions + record.matmuls >= 6
    assert (tmp_path / "int8.onnx").stat().st_size < 0.6 * source.stat().st_size
