import copy
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_text import FAMILIES, TASKS, tiny_tokenizer, write_tiny

from tlc.compress.load import load_model
from tlc.compress.text_model import TextModel, config_of, is_text_model, load_text_model
from tlc.runtime.errors import TlcError, UsageError

transformers = pytest.importorskip("transformers")

AUTO = {
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
}


def ids_of(family: str = "bert", text: str = "a lovely film , zzz !") -> torch.Tensor:
    return torch.tensor([tiny_tokenizer(family).encode(text).ids])


def logits_of(model: TextModel, ids: torch.Tensor) -> torch.Tensor:
    fed = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    with torch.inference_mode():
        logits: torch.Tensor = model.module(*(fed[name] for name in model.text.inputs))
    return logits


def original(folder: Path, task: str = "sequence-classification") -> Any:
    module = AUTO[task].from_pretrained(folder, attn_implementation="eager").eval()
    return copy.deepcopy(module)  # out of the file's memory: the last bit may depend on where weights lie


def wanted_of(module: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        output = module(input_ids=ids, attention_mask=torch.ones_like(ids))
    wanted: torch.Tensor = (
        torch.stack((output.start_logits, output.end_logits), -1) if "start_logits" in output else output.logits
    )
    return wanted


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_head_loads_as_transformers_does_from_a_folder_and_a_whole_module(
    tmp_path: Path, family: str, task: str
) -> None:
    folder = write_tiny(tmp_path / "model", family, task)
    module = original(folder, task)
    ids = ids_of(family)
    wanted = wanted_of(module, ids)
    assert is_text_model(folder)
    model = load_text_model(folder)
    assert torch.equal(logits_of(model, ids), wanted)
    assert model.text.task == task
    assert model.num_classes == wanted.shape[-1] == 2
    assert model.classes == (() if task == "question-answering" else ("negative", "positive"))
    assert model.history == ("loaded model (Hugging Face folder, safetensors)",)
    typed = task == "question-answering" and family in ("bert", "minilm", "electra", "albert")
    assert model.text.inputs == ("input_ids", "attention_mask", *(("token_type_ids",) if typed else ()))
    torch.save(module, tmp_path / "whole.pt")
    assert is_text_model(tmp_path / "whole.pt")
    again = load_text_model(tmp_path / "whole.pt", tokenizer=folder / "tokenizer.json")
    assert torch.equal(logits_of(again, ids), wanted)
    assert again.arch.config["task"] == task


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_logits(tmp_path: Path, family: str) -> None:
    model = load_text_model(write_tiny(tmp_path / "model", family))
    ids = ids_of(family)
    padded = torch.nn.functional.pad(ids, (0, 9), value=model.text.pad_id)
    mask = (torch.arange(padded.shape[1]) < ids.shape[1]).long()[None]
    with torch.inference_mode():
        assert torch.allclose(model.module(padded, mask), logits_of(model, ids), atol=1e-5)


@pytest.mark.parametrize("form", ["state_dict.pt", "nested.pt", "legacy.pt", "half.safetensors"])
def test_weights_alone_load_with_the_folder_that_describes_them(tmp_path: Path, form: str) -> None:
    folder = write_tiny(tmp_path / "model", "distilbert")
    module = original(folder)
    file = tmp_path / form
    state = {name: value.clone() for name, value in module.state_dict().items()}
    match form:
        case "state_dict.pt":
            torch.save(state, file)
        case "nested.pt":
            torch.save({"epoch": 3, "model_state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
        case "legacy.pt":
            torch.save(state, file, _use_new_zipfile_serialization=False)
        case _:
            state = {name: value.half() for name, value in state.items()}
            module.load_state_dict({name: value.float() for name, value in state.items()})
            safetensors.torch.save_file(state, file)
    assert not is_text_model(file)
    assert is_text_model(file, f"hf:{folder}")
    model = load_text_model(file, arch=f"hf:{folder}")
    assert torch.equal(logits_of(model, ids_of()), wanted_of(module, ids_of()))
    assert model.tokenizer == (folder / "tokenizer.json").read_text(encoding="utf-8")


def test_weights_alone_without_the_folder_say_what_is_needed(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model")
    torch.save(original(folder).state_dict(), tmp_path / "m.pt")
    with pytest.raises(TlcError, match="holds weights only") as caught:
        load_text_model(tmp_path / "m.pt")
    assert "--arch hf:DIR" in caught.value.hint


def test_buffers_and_a_pooler_that_older_versions_saved_are_left_out(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model", "bert", "question-answering")
    module = original(folder, "question-answering")
    wanted = wanted_of(module, ids_of())
    state = safetensors.torch.load_file(folder / "model.safetensors")
    state["bert.embeddings.position_ids"] = torch.arange(64)[None]
    state["bert.pooler.dense.weight"], state["bert.pooler.dense.bias"] = torch.zeros(32, 32), torch.zeros(32)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    model = load_text_model(folder)
    assert torch.equal(logits_of(model, ids_of()), wanted)
    assert "left out the pooler" in model.history[0]


def test_names_of_layer_norm_before_2019_are_understood(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model")
    wanted = wanted_of(original(folder), ids_of())
    state = safetensors.torch.load_file(folder / "model.safetensors")
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in state.items()
    }
    assert older.keys() != state.keys()
    safetensors.torch.save_file(older, folder / "model.safetensors")
    assert torch.equal(logits_of(load_text_model(folder), ids_of()), wanted)


def test_pairs_are_told_apart_where_the_model_can(tmp_path: Path) -> None:
    assert load_text_model(write_tiny(tmp_path / "bert"), pairs=True).text.inputs[2:] == ("token_type_ids",)
    assert load_text_model(write_tiny(tmp_path / "roberta", "roberta"), pairs=True).text.inputs[2:] == ()


def test_how_texts_are_fed_is_recorded(tmp_path: Path) -> None:
    fed = load_text_model(write_tiny(tmp_path / "roberta", "roberta", positions=48)).text
    content = (tmp_path / "roberta" / "tokenizer.json").read_bytes()
    assert (fed.max_length, fed.pad_id) == (48, 1)
    assert fed.tokenizer_sha256 == hashlib.sha256(content).hexdigest()


def test_the_length_is_that_of_the_tokenizer_where_it_is_shorter(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 40}', encoding="utf-8")
    assert load_text_model(folder).text.max_length == 40
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1e30}', encoding="utf-8")
    assert load_text_model(folder).text.max_length == 64
    assert load_text_model(folder, max_length=24).text.max_length == 24
    assert load_text_model(folder).with_max_length(16).text.max_length == 16


@pytest.mark.parametrize(("length", "message"), [(65, "which reach 64"), (7, "no room for a text")])
def test_an_impossible_length_is_a_usage_error(tmp_path: Path, length: int, message: str) -> None:
    folder = write_tiny(tmp_path / "model")
    with pytest.raises(UsageError, match=message):
        load_text_model(folder, max_length=length)
    with pytest.raises(UsageError, match=message):
        load_text_model(folder).with_max_length(length)


def test_an_older_folder_with_a_vocabulary_alone_gives_the_same_tokens(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    tokenizer = tiny_tokenizer()
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word, _index in words), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    made = load_text_model(folder).tokenizer
    from tokenizers import Tokenizer

    for text in ("A lovely film, isn't it?", "Zzz 42"):
        assert Tokenizer.from_str(made).encode(text).ids == tokenizer.encode(text).ids


def test_a_missing_tokenizer_is_said(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TlcError, match=r"model holds no tokenizer\.json") as caught:
        load_text_model(folder)
    assert "--tokenizer" in caught.value.hint
    with pytest.raises(TlcError, match=r"none\.json holds no tokenizer"):
        load_text_model(folder, tokenizer=tmp_path / "none.json")


def test_a_tokenizer_that_disagrees_with_its_config_on_case_is_refused(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    followed = transformers.AutoTokenizer.from_pretrained(folder)
    assert followed("Good").input_ids != tiny_tokenizer().encode("Good").ids
    with pytest.raises(TlcError, match=r"says lowercase true, tokenizer_config\.json says do_lower_case false"):
        load_text_model(folder)
    followed.save_pretrained(folder)
    from tokenizers import Tokenizer

    saved = Tokenizer.from_str(load_text_model(folder).tokenizer)
    assert saved.encode("Good").ids == followed("Good").input_ids


@pytest.mark.parametrize(
    ("content", "message"), [(b"{}", "is not a tokenizer"), (b"\xff\xfe", "is not UTF-8"), (b"", "is not a tokenizer")]
)
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    folder = write_tiny(tmp_path / "model")
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(TlcError, match=rf"tokenizer\.json.*{message}"):
        load_text_model(folder)


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model")
    size = tiny_tokenizer().get_vocab_size()
    larger = tiny_tokenizer()
    larger.add_tokens(["Geschichte", "Regie"])
    larger.save(str(tmp_path / "larger.json"))
    with pytest.raises(
        TlcError, match=f"up to id {size + 1} \\('Regie'\\).* embeds {size}: 2 tokens have no embedding"
    ):
        load_text_model(folder, tokenizer=tmp_path / "larger.json")


def changed(folder: Path, **values: object) -> Path:
    """Set values of config.json; None removes."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | values
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"problem_type": "multi_label_classification"}, "several labels to one text"),
        ({"problem_type": "regression"}, "a number instead of a class"),
        ({"id2label": {"0": "LABEL_0"}}, "a number instead of a class"),
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM, which has no head for a task"),
        ({"architectures": None}, "a bert that names no class, which has no head for a task"),
        ({"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"]}, "the family gpt2, which tlc does"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "sets auto_map, which makes transformers fetch code"),
        ({"quantization_config": {"bits": 4}}, "sets quantization_config"),
        ({"id2label": {"0": "good", "1": "good"}}, "two of its 2 classes are both named 'good'"),
        ({"pad_token_id": 4000}, "BertForSequenceClassification does not build"),
        ({"num_attention_heads": 5}, "BertForSequenceClassification does not build"),
        ({"num_hidden_layers": 3}, r"16 of 57 tensors are missing: model\.bert\.encoder\.layer\.2"),
        ({"vocab_size": 50}, r"word_embeddings\.weight \d+x32 instead of 50x32"),
    ],
)
def test_a_folder_that_is_no_such_classifier_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    folder = changed(write_tiny(tmp_path / "model"), **values)
    assert is_text_model(folder)
    with pytest.raises(TlcError, match=message):
        load_text_model(folder)


def test_class_names_that_say_nothing_are_left_out(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model", labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    model = load_text_model(folder)
    assert (model.num_classes, model.classes) == (3, ())


def test_ten_classes_keep_the_order_of_the_logits(tmp_path: Path) -> None:
    names = tuple(f"topic {chr(ord('k') - index)}" for index in range(11))
    assert load_text_model(write_tiny(tmp_path / "model", labels=names)).classes == names


def test_diverged_weights_are_refused(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model")
    state = safetensors.torch.load_file(folder / "model.safetensors")
    state["classifier.bias"] = torch.tensor([float("nan"), 0.0])
    safetensors.torch.save_file(state, folder / "model.safetensors")
    with pytest.raises(TlcError, match=r"1 of \d+ tensors hold NaN or infinite values: classifier\.bias"):
        load_text_model(folder)


def test_images_and_texts_are_not_mixed_up(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model")
    with pytest.raises(TlcError, match="BertForSequenceClassification, a text model; images cannot be fed to it"):
        load_model(folder)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=3)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    assert not is_text_model(tmp_path / "resnet")
    with pytest.raises(TlcError, match="holds no text model but hf:"):
        load_text_model(tmp_path / "resnet")


def test_an_adapter_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    with pytest.raises(TlcError, match=r"holds an adapter .*, not a whole model") as caught:
        load_text_model(tmp_path)
    assert "merge_and_unload" in caught.value.hint


def test_what_is_no_model_is_no_text_model(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "linear.pt")
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    for name in ("linear.pt", "notes.txt", "empty", "archive.zip", "nothing.pt"):
        assert not is_text_model(tmp_path / name)


@pytest.mark.assets
def test_the_real_classifier_loads(assets: Path) -> None:
    folder = assets / "movie-sentiment" / "model"
    model = load_text_model(folder)
    assert model.classes == ("negative", "positive")
    assert model.text.inputs == ("input_ids", "attention_mask")
    assert (model.text.max_length, model.text.pad_id) == (512, 0)
    assert "stored as float16, used as float32" in model.history[0]
    assert config_of(model.module).num_hidden_layers == 6
    ids = torch.tensor([[101, 2307, 2143, 102]])
    assert torch.equal(logits_of(model, ids), wanted_of(original(folder).float(), ids))
