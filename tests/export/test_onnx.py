import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from tlc.export.onnx import onnx_from_torch
from tlc.export.opset import opset_of
from tlc.runtime.errors import TlcError


class Attention(nn.Module):
    """Patches, attention, pooling: the batch is folded into other axes and out again."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.block(tokens).mean(1))
        return logits


class FixedBatch(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.reshape(2, -1)[:, :4]


class ValueDependent(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3)) if image.sum() > 0 else image.amax((2, 3))


def convnet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(32, 5),
    )


def run(path: Path, batch: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": batch})
    return np.asarray(logits)


@pytest.mark.parametrize("make", [convnet, Attention])
@pytest.mark.parametrize("count", [1, 3])
def test_the_file_gives_the_outputs_of_torch_at_any_batch_size(
    tmp_path: Path, make: type[nn.Module], count: int
) -> None:
    module = make().eval()
    onnx_from_torch(module, (3, 16, 16), tmp_path / "m.onnx", opset=17)
    batch = np.random.default_rng(1).random((count, 3, 16, 16), dtype=np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(run(tmp_path / "m.onnx", batch), module(torch.from_numpy(batch)), atol=1e-5)


def test_names_batch_dimension_and_opset_are_those_promised(tmp_path: Path) -> None:
    onnx_from_torch(convnet(), (3, 16, 16), tmp_path / "m.onnx", opset=17)
    model = onnx.load(tmp_path / "m.onnx")
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]) == (
        "input",
        ["N", 3, 16, 16],
    )
    assert (logits.name, [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim]) == (
        "logits",
        ["N", 5],
    )
    assert opset_of(model) == 17


def test_batch_normalisation_is_folded_into_the_convolution(tmp_path: Path) -> None:
    onnx_from_torch(convnet(), (3, 16, 16), tmp_path / "m.onnx", opset=17)
    assert "BatchNormalization" not in [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]


def test_exporting_leaves_mode_and_weights_of_the_module_alone(tmp_path: Path) -> None:
    module = convnet()
    module[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    onnx_from_torch(module, (3, 16, 16), tmp_path / "m.onnx", opset=17)
    assert [part.training for part in module] == [True, False, True, True, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_exporter_reads_its_table_of_operators_once(tmp_path: Path) -> None:
    from torch.onnx._internal.exporter import _registration

    for name in ("first.onnx", "second.onnx"):
        onnx_from_torch(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), (1, 8, 8), tmp_path / name, opset=18)

    exporter: Any = _registration
    read = exporter.onnxscript_apis.get_torchlib_ops.cache_info()
    assert read.misses == 1
    assert read.hits >= 1


def test_the_file_names_no_path_of_this_machine(tmp_path: Path) -> None:
    onnx_from_torch(Attention(), (3, 16, 16), tmp_path / "m.onnx", opset=17)
    content = (tmp_path / "m.onnx").read_bytes()
    assert b".py" not in content
    assert b"stack_trace" not in content


def test_nothing_but_the_file_is_left_behind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export = onnx_from_torch(convnet(), (3, 16, 16), tmp_path / "m.onnx", opset=17)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert export.simplified
    assert capfd.readouterr() == ("", "")


SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_onnx import Attention
from tlc.export.onnx import onnx_from_torch
torch.manual_seed(0)
onnx_from_torch(Attention(), (3, 16, 16), Path(sys.argv[2]), opset=17)
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    onnx_from_torch(Attention(), (3, 16, 16), tmp_path / "here.onnx", opset=17)
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path / "there.onnx")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "1"})
    assert (tmp_path / "here.onnx").read_bytes() == (tmp_path / "there.onnx").read_bytes()


@pytest.mark.parametrize("make", [convnet, Attention])
@pytest.mark.parametrize("opset", [13, 18, 19, 20])
def test_older_and_newer_opsets_give_the_same_outputs(tmp_path: Path, make: type[nn.Module], opset: int) -> None:
    module = make().eval()
    onnx_from_torch(module, (3, 16, 16), tmp_path / "m.onnx", opset=opset)
    assert opset_of(onnx.load(tmp_path / "m.onnx")) == opset
    batch = np.random.default_rng(1).random((2, 3, 16, 16), dtype=np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(run(tmp_path / "m.onnx", batch), module(torch.from_numpy(batch)), atol=1e-5)


class Negated(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return (~image.to(torch.int32)).float().mean((2, 3))


def test_an_operator_missing_from_the_opset_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match=r"BitwiseNot .* opset 13: the operator exists from opset 18 on"):
        onnx_from_torch(Negated(), (3, 16, 16), tmp_path / "m.onnx", opset=13)
    assert not list(tmp_path.iterdir())


def test_an_ancient_opset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match="opset 9 is too old: the limit is 13"):
        onnx_from_torch(convnet(), (3, 16, 16), tmp_path / "m.onnx", opset=9)


def test_a_fixed_batch_is_refused_with_the_name_of_the_module(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match="FixedBatch"):
        onnx_from_torch(FixedBatch(), (3, 16, 16), tmp_path / "m.onnx", opset=17)
    assert not list(tmp_path.iterdir())


def test_a_branch_on_values_is_refused_in_the_words_of_the_exporter(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match=r"torch cannot export ValueDependent to ONNX: .*data-dependent") as caught:
        onnx_from_torch(ValueDependent(), (3, 16, 16), tmp_path / "m.onnx", opset=17)
    assert "Rewrite" in caught.value.hint


def test_outputs_that_are_no_logits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match=r"Conv2d returns torch.float32 \(1, 4, 16, 16\), not float32 logits \(N, K\)"):
        onnx_from_torch(nn.Conv2d(3, 4, 1), (3, 16, 16), tmp_path / "m.onnx", opset=17)


def test_a_graph_that_the_simplifier_breaks_is_kept_as_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def negate(model: onnx.ModelProto) -> onnx.ModelProto:
        last = model.graph.node[-1]
        last.output[0] = "inner"
        model.graph.node.append(onnx.helper.make_node("Neg", ["inner"], ["logits"]))
        return model

    monkeypatch.setattr("onnxslim.slim", negate)
    export = onnx_from_torch(convnet(), (3, 16, 16), tmp_path / "m.onnx", opset=17)
    assert not export.simplified
    assert "other outputs than torch" in export.note
    assert "Neg" not in [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
