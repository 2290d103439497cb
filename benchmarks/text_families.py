"""Every family of text models with random weights through the chain: load, save, reload, export, quantise, run, agree.

    PYTHONPATH=tests/support OMP_NUM_THREADS=1 python benchmarks/text_families.py > benchmarks/results/text_families.md

Four layers, 128 wide, 4 heads; texts of random words. Errors are the largest difference from transformers' own logits,
over the largest of these; SNR is that of the logits against them, in dB. Random weights amplify rounding more than
trained ones do.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from tiny_text import FAMILIES, TAGS, TASKS, write_entities, write_questions, write_reviews, write_tiny

from tlc.calibration.metrics import sqnr_db
from tlc.calibration.texts import read_texts
from tlc.calibration.tokens import Tokens, encode, gather
from tlc.compress.quantize import QuantizeSettings, quantize_onnx
from tlc.compress.text_model import TextModel, load_saved_text, load_text_model, save_text_model
from tlc.export.contract import check_model
from tlc.export.dynamic_int8 import dynamic_int8
from tlc.export.metadata import write_metadata
from tlc.export.quiet import quiet
from tlc.export.text_onnx import text_onnx_from_torch
from tlc.export.transformer import fuse_for_onnxruntime
from tlc.runtime.errors import TlcError
from tlc.runtime.sessions import open_session
from tlc.runtime.target import load_target

WRITE = {
    "sequence-classification": write_reviews,
    "token-classification": write_entities,
    "question-answering": write_questions,
}
SAMPLES = 32
COLUMNS = (
    "| family | head | reload | ONNX | fused attention, error | dynamic INT8: size, SNR | static INT8 | "
    "static INT8 in OpenVINO | jetson-orin: check, SNR |"
)


def torch_answers(model: TextModel, tokens: Tokens) -> NDArray[np.float32]:
    """Return the logits of PyTorch."""

    def run(feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        with torch.inference_mode():
            output: torch.Tensor = model.module(*(torch.from_numpy(feeds[name]) for name in model.text.inputs))
        return output.numpy()

    return gather(run, tokens)


def file_answers(path: Path, tokens: Tokens, target: str) -> NDArray[np.float32]:
    """Return the logits of a file in the target's runtime, ONNX Runtime for those of TensorRT."""
    device = None if target.startswith("jetson") else load_target(target)
    with open_session(path, device) as session:
        names, output = [spec.name for spec in session.inputs], session.outputs[0].name
        return gather(lambda feeds: session.run({name: feeds[name] for name in names})[output], tokens)


def error(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> str:
    """Return the largest difference over the largest logit; masked places of answers count in neither."""
    real = wanted > -1e3
    return f"{np.abs(wanted - found)[real].max() / np.abs(wanted[real]).max():.0e}"


def snr(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> str:
    """Return the signal-to-noise ratio."""
    real = wanted > -1e3
    return f"{sqnr_db(wanted[real], found[real]):.0f} dB"


def row(family: str, task: str, folder: Path) -> str:
    """Return the table's row of one family and head."""
    labels = TAGS if task == "token-classification" else ("negative", "positive")
    shape = {"layers": 4, "hidden": 128, "heads": 4, "intermediate": 512}
    model = load_text_model(write_tiny(folder / "model", family, task, labels=labels, **shape))
    data = folder / ("data.csv" if task == "sequence-classification" else "data.jsonl")
    splits = read_texts(WRITE[task](data, 120), task=model.text.task)
    tokens = encode(splits.fit.subset(range(SAMPLES)), model.tokenizer, model.text)
    wanted = torch_answers(model, tokens)
    save_text_model(model, folder / "saved")
    same = np.array_equal(torch_answers(load_saved_text(folder / "saved"), tokens), wanted)
    cells = [family, task.partition("-")[0], "bit-equal" if same else "DIFFERS"]
    plain, fused, dynamic = (folder / f"{name}.onnx" for name in ("plain", "fused", "dynamic"))
    length = model.text.max_length
    text_onnx_from_torch(model.module, model.text.inputs, plain, opset=18, max_length=length)
    write_metadata(plain, plain, model.text, model.classes)
    cells.append(error(wanted, file_answers(plain, tokens, "cpu-x86")))
    record = fuse_for_onnxruntime(plain, fused, max_length=length)
    cells.append(f"{record.attention}, {error(wanted, file_answers(fused, tokens, 'cpu-x86'))}")
    dynamic_int8(fused, dynamic, max_length=length)
    size = dynamic.stat().st_size / plain.stat().st_size
    cells.append(f"{size:.2f}, {snr(wanted, file_answers(dynamic, tokens, 'cpu-x86'))}")
    samples = [tokens.feeds([index]) for index in range(SAMPLES)]
    for target in ("cpu-x86", "openvino", "jetson-orin"):
        out = folder / f"{target}.onnx"
        device = load_target(target)
        quantize_onnx(plain, out, samples, count=SAMPLES, target=device, settings=QuantizeSettings(samples=SAMPLES))
        write_metadata(out, out, model.text, model.classes)
        cell = snr(wanted, file_answers(out, tokens, target))
        if target == "jetson-orin":
            cell = f"{len(check_model(onnx.load(out), device))} findings, {cell}"
        cells.append(cell)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table, a row as soon as it is there."""
    print(COLUMNS)
    print("|" + ":--|" * 9)
    for family in FAMILIES:
        for task in TASKS:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    with quiet():
                        line = row(family, task, Path(folder))
                except TlcError as refusal:
                    line = f"| {family} | {task.partition('-')[0]} | {refusal.message} |"
                print(line, flush=True)


if __name__ == "__main__":
    main()
