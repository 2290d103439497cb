from typing import Any

import pytest
import torch
import transformers
from tiny_text import FAMILIES, tiny_config
from torch import nn

from tlc.compress.text_layers import embeddings_name, encoder_of, recorded, self_attentions, transformer_layers
from tlc.runtime.errors import TlcError

IDS = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


AUTO: Any = transformers.AutoModelForSequenceClassification


def model_of(family: str, **shape: int) -> Any:
    torch.manual_seed(0)
    return AUTO.from_config(tiny_config(family, 40, **shape), attn_implementation="eager").eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_give_the_hidden_states_of_transformers(family: str) -> None:
    model = model_of(family, layers=3)
    names = transformer_layers(model)

    with recorded(model, names) as outputs, torch.no_grad():
        states = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states

    assert len(outputs) == len(names) == len(states) - 1
    for output, state in list(zip(outputs, states[1:], strict=True))[:-1]:  # after the last one, ModernBERT has a norm
        torch.testing.assert_close(output, state)
    assert isinstance(model.get_submodule(embeddings_name(model)), nn.Module)


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_keys_and_values_give_the_attention_of_transformers(family: str) -> None:
    model = model_of(family)
    attentions = self_attentions(model)
    with recorded(model, attentions[0].qkv) as outputs, torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=MASK, output_attentions=True).attentions[0]

    queries, keys, values = attentions[0].split(outputs[: len(attentions[0].qkv)])

    assert [(found.heads, found.head_width) for found in attentions] == [(4, 8)] * len(attentions)
    assert queries.shape == keys.shape == values.shape == (2, 4, 5, 8)
    if family not in ("deberta", "deberta-v2", "modernbert"):  # these add positions to what the layers give
        scores = queries @ keys.transpose(-1, -2) / 8**0.5
        scores = scores.masked_fill(MASK[:, None, None, :] == 0, -1e9)
        torch.testing.assert_close(scores.softmax(-1), expected)


@pytest.mark.parametrize("family", ["deberta", "modernbert"])
def test_packed_layers_are_taken_apart_as_the_model_does(family: str) -> None:
    model = model_of(family)
    attention = self_attentions(model)[0]
    packed = model.get_submodule(attention.qkv[0])
    width = packed.weight.shape[0]
    with torch.no_grad():
        packed.weight.zero_()
        packed.bias = nn.Parameter(torch.arange(width, dtype=torch.float32))

    queries, keys, values = attention.split([packed(torch.zeros(1, 2, 32))])

    firsts = [part[0, :, 0, 0].tolist() for part in (queries, keys, values)]
    if family == "modernbert":  # all heads' queries, then keys, then values
        assert firsts == [[0, 8, 16, 24], [32, 40, 48, 56], [64, 72, 80, 88]]
    else:  # queries, keys and values of one head after the other
        assert firsts == [[0, 24, 48, 72], [8, 32, 56, 80], [16, 40, 64, 88]]


def test_shared_layer_is_named_once_for_every_time_it_runs() -> None:
    names = transformer_layers(model_of("albert", layers=4))

    assert names == ("albert.encoder.albert_layer_groups.0.albert_layers.0",) * 4


def test_finds_the_encoder_inside_other_modules() -> None:
    model = AUTO.from_config(tiny_config("roberta", 40))
    wrapped = nn.ModuleDict({"inner": model})

    assert encoder_of(wrapped).name == "inner.roberta"
    assert transformer_layers(wrapped)[0] == "inner.roberta.encoder.layer.0"
    assert encoder_of(model.roberta).name == ""


def test_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TlcError, match="GPT2Model is of the family gpt2"):
        encoder_of(transformers.GPT2Model(transformers.GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=2)))
    with pytest.raises(TlcError, match="Linear holds no encoder"):
        encoder_of(nn.Linear(2, 2))
