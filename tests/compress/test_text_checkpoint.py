import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text import FAMILIES, TASKS, write_tiny
from torch import nn

from tlc.calibration.preprocess import Preprocess
from tlc.compress.arch import build, parse_arch
from tlc.compress.checkpoint import load_saved, save_model
from tlc.compress.model import Model
from tlc.compress.text_model import (
    TextModel,
    config_of,
    is_text_model,
    load_saved_text,
    load_text_model,
    save_text_model,
)
from tlc.runtime.errors import TlcError, UsageError

pytest.importorskip("transformers")

IDS = torch.tensor([[2, 7, 9, 30, 44, 50, 61, 3], [2, 8, 11, 3, 0, 0, 0, 0]])
MASK = (torch.arange(8) < torch.tensor([[8], [4]])).long()

READ_BACK = """
import sys, torch
from pathlib import Path
from tlc.compress.text_model import load_saved_text
for folder in map(Path, sys.argv[1:]):
    sample = torch.load(folder / "sample.pt", weights_only=True)
    model = load_saved_text(folder / "saved")
    with torch.inference_mode():
        outputs = model.module(*sample["inputs"])
    if not torch.equal(outputs, sample["outputs"]):
        sys.exit(f"{folder.name}: outputs differ by {(outputs - sample['outputs']).abs().max()}")
print("equal:", len(sys.argv) - 1)
"""


def logits_of(model: TextModel) -> torch.Tensor:
    fed = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": torch.zeros_like(IDS)}
    with torch.inference_mode():
        logits: torch.Tensor = model.module(*(fed[name] for name in model.text.inputs))
    return logits


def edited(model: TextModel, edit: Callable[[Any], None]) -> TextModel:
    """Return a student: a copy of the teacher's network that `edit` changed in place."""
    module = copy.deepcopy(model.module)
    edit(module.model)
    return model.after("edited", module.eval())


def narrow_linear(old: nn.Linear, outputs: slice, inputs: slice) -> nn.Linear:
    weight = old.weight.detach()[outputs, inputs].clone()
    new = nn.Linear(weight.shape[1], weight.shape[0])
    new.weight.data.copy_(weight)
    new.bias.data.copy_(old.bias.detach()[outputs])
    return new


def shallower(network: Any) -> None:
    network.bert.encoder.layer = nn.ModuleList([network.bert.encoder.layer[0], network.bert.encoder.layer[2]])


def fewer_heads(network: Any) -> None:
    for layer in network.bert.encoder.layer:
        attention, output = layer.attention.self, layer.attention.output
        kept = slice(0, attention.attention_head_size * 2)
        for name in ("query", "key", "value"):
            setattr(attention, name, narrow_linear(getattr(attention, name), kept, slice(None)))
        output.dense = narrow_linear(output.dense, slice(None), kept)
        attention.num_attention_heads, attention.all_head_size = 2, kept.stop


def narrower(network: Any) -> None:
    for layer in network.bert.encoder.layer:
        layer.intermediate.dense = narrow_linear(layer.intermediate.dense, slice(0, 24), slice(None))
        layer.output.dense = narrow_linear(layer.output.dense, slice(None), slice(0, 24))


def factorised(network: Any) -> None:
    table = network.bert.embeddings.word_embeddings
    left, values, right = torch.linalg.svd(table.weight.detach(), full_matrices=False)
    narrow, wide = nn.Embedding(table.num_embeddings, 8, padding_idx=0), nn.Linear(8, table.embedding_dim, bias=False)
    narrow.weight.data.copy_(left[:, :8] * values[:8])
    wide.weight.data.copy_(right[:8].T)
    network.bert.embeddings.word_embeddings = nn.Sequential(narrow, wide)


def all_of_them(network: Any) -> None:
    for edit in (shallower, fewer_heads, narrower, factorised):
        edit(network)


STUDENTS = {edit.__name__: edit for edit in (shallower, fewer_heads, narrower, factorised, all_of_them)}


def test_students_come_back_bit_equal_in_another_process(tmp_path: Path) -> None:
    teacher = load_text_model(write_tiny(tmp_path / "model", layers=3))
    for name, edit in STUDENTS.items():
        student = edited(teacher, edit)
        assert not torch.equal(logits_of(student), logits_of(teacher))
        (tmp_path / name).mkdir()
        save_text_model(student, tmp_path / name / "saved")
        sample = {"inputs": [IDS, MASK], "outputs": logits_of(student)}
        torch.save(sample, tmp_path / name / "sample.pt")
    folders = [str(tmp_path / name) for name in STUDENTS]
    done = subprocess.run([sys.executable, "-c", READ_BACK, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal: 5"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_head_comes_back(tmp_path: Path, family: str, task: str) -> None:
    model = load_text_model(write_tiny(tmp_path / "model", family, task))
    save_text_model(model, tmp_path / "saved")
    again = load_saved_text(tmp_path / "saved")
    assert torch.equal(logits_of(again), logits_of(model))
    assert replace(again, module=model.module) == model
    assert sorted(file.name for file in (tmp_path / "saved").iterdir()) == [
        "model.json",
        "model.safetensors",
        "tokenizer.json",
    ]


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("distilbert", "distilbert.transformer.layer"),
        ("roberta", "roberta.encoder.layer"),
        ("electra", "electra.encoder.layer"),
        ("deberta", "deberta.encoder.layer"),
        ("deberta-v2", "deberta.encoder.layer"),
        ("modernbert", "model.layers"),
    ],
)
def test_a_shallower_student_of_each_family_comes_back(tmp_path: Path, family: str, layers: str) -> None:
    teacher = load_text_model(write_tiny(tmp_path / "model", family, layers=4))

    def without_the_second(network: Any) -> None:
        parent, _, name = layers.rpartition(".")
        kept = [layer for index, layer in enumerate(network.get_submodule(layers)) if index != 1]
        setattr(network.get_submodule(parent), name, nn.ModuleList(kept))

    student = edited(teacher, without_the_second)
    assert not torch.equal(logits_of(student), logits_of(teacher))
    save_text_model(student, tmp_path / "saved")
    assert torch.equal(logits_of(load_saved_text(tmp_path / "saved")), logits_of(student))


def test_an_albert_that_repeats_its_layer_less_often_comes_back_by_its_recorded_config(tmp_path: Path) -> None:
    teacher = load_text_model(write_tiny(tmp_path / "model", "albert", layers=4))
    student = edited(teacher, lambda network: setattr(network.config, "num_hidden_layers", 2))
    assert not torch.equal(logits_of(student), logits_of(teacher))
    with pytest.raises(TlcError, match="runs by another num_hidden_layers than its architecture records"):
        save_text_model(student, tmp_path / "saved")
    recorded: Any = student.arch.config["config"]
    config = {**student.arch.config, "config": {**recorded, "num_hidden_layers": 2}}
    student = replace(student, arch=student.arch.model_copy(update={"config": config}))
    save_text_model(student, tmp_path / "saved")
    again = load_saved_text(tmp_path / "saved")
    assert config_of(again.module).num_hidden_layers == 2
    assert torch.equal(logits_of(again), logits_of(student))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = edited(load_text_model(write_tiny(tmp_path / "model", layers=3)), all_of_them)
    for name in ("first", "second"):
        save_text_model(model, tmp_path / name)
    save_text_model(load_saved_text(tmp_path / "first"), tmp_path / "third")
    for file in ("model.json", "model.safetensors", "tokenizer.json"):
        contents = {(tmp_path / name / file).read_bytes() for name in ("first", "second", "third")}
        assert len(contents) == 1


def test_a_saved_model_loads_as_any_other(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model")
    model = load_text_model(folder).after("trained", load_text_model(folder).module)
    save_text_model(model, tmp_path / "saved")
    assert is_text_model(tmp_path / "saved")
    again = load_text_model(tmp_path / "saved", max_length=32, pairs=True, tokenizer=folder)
    assert again.history == model.history
    assert again.text.max_length == 32
    assert again.text.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert load_text_model(tmp_path / "saved").text == model.text
    other = write_tiny(tmp_path / "other", "roberta")
    with pytest.raises(UsageError, match=r"carries its own tokenizer\.json"):
        load_text_model(tmp_path / "saved", tokenizer=other)


def test_a_changed_tokenizer_is_refused(tmp_path: Path) -> None:
    save_text_model(load_text_model(write_tiny(tmp_path / "model")), tmp_path / "saved")
    file = tmp_path / "saved" / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"lowercase": true', '"lowercase": false'))
    with pytest.raises(TlcError, match="is not the tokenizer that the model was made with"):
        load_saved_text(tmp_path / "saved")
    file.unlink()
    with pytest.raises(TlcError, match=r"holds no tokenizer\.json"):
        load_saved_text(tmp_path / "saved")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("text", {"task": "translation"}, "not a model of this version of tlc: text.task"),
        ("edit", {"attributes": {"_hooks": "x"}, "modules": []}, "do not fit"),
        ("num_classes", None, "not a model of this version of tlc: num_classes"),
    ],
)
def test_damage_in_model_json_is_said(tmp_path: Path, key: str, value: object, message: str) -> None:
    save_text_model(load_text_model(write_tiny(tmp_path / "model")), tmp_path / "saved")
    file = tmp_path / "saved" / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {key: value}), encoding="utf-8")
    with pytest.raises(TlcError, match=message):
        load_saved_text(tmp_path / "saved")


def test_saved_texts_and_images_are_not_mixed_up(tmp_path: Path) -> None:
    save_text_model(load_text_model(write_tiny(tmp_path / "model")), tmp_path / "text")
    with pytest.raises(TlcError, match="holds a text model; images cannot be fed to it"):
        load_saved(tmp_path / "text")
    arch = parse_arch("torchvision:squeezenet1_1")
    fed = Preprocess(size=(64, 64), resize=None, mean=(0.5,) * 3, std=(0.5,) * 3)
    save_model(Model(build(arch), arch, fed, 1000), tmp_path / "image")
    assert not is_text_model(tmp_path / "image")
    with pytest.raises(TlcError, match="holds an image classifier; texts cannot be fed to it"):
        load_saved_text(tmp_path / "image")
