"""Where the families of text encoders keep their layers: one table of paths, and what is read off it.

Paths are those of transformers 5 (`transformers/models/*/modeling_*.py`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from tlc.runtime.errors import TlcError


@dataclass(frozen=True, slots=True)
class Family:
    """Paths within the encoder (`layers`, `embeddings`, `words`) or within one of its layers (all others)."""

    layers: str = "encoder.layer"
    """The list of repeated layers."""
    embeddings: str = "embeddings"
    words: str = "embeddings.word_embeddings"
    attention: str = "attention.self"
    qkv: tuple[str, ...] = ("query", "key", "value")
    """Linear layers of the attention that make queries, keys and values: three, or one for all."""
    packing: Literal["separate", "part", "head"] = "separate"
    """How one layer's outputs lie: all queries, all keys, all values; or those of one head after the other."""
    head_width: str = "attention_head_size"
    """The attribute of the attention that holds the channels of a head."""
    positions: tuple[str, ...] = ()
    """Linear layers of the attention with outputs per head, made of relative positions; absent in some configs."""
    counts: tuple[str, ...] = ("num_attention_heads", "all_head_size")
    """Attributes of the attention that hold the number of heads, then the channels of all heads together."""
    attention_output: str = "attention.output.dense"
    intermediate: str = "intermediate.dense"
    output: str = "output.dense"
    gated: bool = False
    """Whether the outputs of `intermediate` are two halves, of which one scales the other."""


FAMILIES: dict[str, Family] = {
    "bert": Family(),  # MiniLM too
    "roberta": Family(),
    "electra": Family(),
    "distilbert": Family(
        layers="transformer.layer",
        attention="attention",
        qkv=("q_lin", "k_lin", "v_lin"),
        counts=("n_heads", "dim"),
        attention_output="attention.out_lin",
        intermediate="ffn.lin1",
        output="ffn.lin2",
    ),
    "albert": Family(
        layers="encoder.albert_layer_groups",
        attention="attention",
        attention_output="attention.dense",
        intermediate="ffn",
        output="ffn_output",
    ),
    "deberta": Family(qkv=("in_proj",), packing="head", positions=("pos_proj", "pos_q_proj")),
    "deberta-v2": Family(qkv=("query_proj", "key_proj", "value_proj"), positions=("pos_key_proj", "pos_query_proj")),
    "modernbert": Family(
        layers="layers",
        words="embeddings.tok_embeddings",
        attention="attn",
        qkv=("Wqkv",),
        packing="part",
        head_width="head_dim",
        counts=(),
        attention_output="attn.Wo",
        intermediate="mlp.Wi",
        output="mlp.Wo",
        gated=True,
    ),
}
"""transformers' model_type -> where its encoder keeps what."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """The part of a text model below its head."""

    name: str
    """Its dotted name in the model: "model.bert"."""
    kind: str
    """transformers' model_type."""
    family: Family
    config: Any
    """transformers' config of the model."""

    def path(self, inner: str) -> str:
        """Return the name in the model of a path of the family's table."""
        return f"{self.name}.{inner}" if self.name else inner


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """One module of self-attention: its linear layers by their names in the model, and how its heads lie in them."""

    name: str
    qkv: tuple[str, ...]
    """Linear layers that make queries, keys and values: three, or one for all."""
    heads: int
    head_width: int
    """Channels of a head."""
    packing: Literal["separate", "part", "head"]

    def split(self, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (N, heads, T, head_width) from the outputs (N, T, channels) of `qkv`.

        They are what the linear layers give: before ModernBERT's rotation and DeBERTa's (v1) separate biases.
        """
        if self.packing == "separate":
            parts = [output.reshape(*output.shape[:2], self.heads, self.head_width) for output in outputs]
        elif self.packing == "part":
            parts = list(outputs[0].reshape(*outputs[0].shape[:2], 3, self.heads, self.head_width).unbind(-3))
        else:
            parts = list(outputs[0].reshape(*outputs[0].shape[:2], self.heads, 3, self.head_width).unbind(-2))
        queries, keys, values = (part.transpose(1, 2) for part in parts)
        return queries, keys, values


def encoder_of(module: nn.Module) -> Encoder:
    """Return where the encoder of a transformers text model is, which may stand inside another module.

    Raises TlcError if there is none, or none of a family in the table.
    """
    from transformers import PreTrainedModel

    for name, part in module.named_modules():
        if isinstance(part, PreTrainedModel):
            kind = part.config.model_type
            if kind not in FAMILIES:
                raise TlcError(
                    f"{type(part).__name__} is of the family {kind}, whose layers are not known here",
                    hint=f"Families: {', '.join(FAMILIES)}.",
                )
            inner = part.base_model_prefix if hasattr(part, part.base_model_prefix) else ""
            return Encoder(".".join(filter(None, (name, inner))), kind, FAMILIES[kind], part.config)
    raise TlcError(
        f"{type(module).__name__} holds no encoder of transformers", hint=f"Families: {', '.join(FAMILIES)}."
    )


def transformer_layers(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the repeated layers in the order in which they run.

    ALBERT runs one layer many times: its name is there once for every time.
    """
    encoder = encoder_of(module)
    path = encoder.path(encoder.family.layers)
    names = [f"{path}.{key}" for key in module.get_submodule(path)._modules]
    if encoder.kind != "albert":
        return tuple(names)
    repeats = encoder.config.num_hidden_layers
    # Which group runs when: AlbertTransformer.forward.
    groups = [names[int(index / (repeats / len(names)))] for index in range(repeats)]
    return tuple(
        f"{group}.albert_layers.{key}"
        for group in groups
        for key in module.get_submodule(f"{group}.albert_layers")._modules
    )


def self_attentions(module: nn.Module) -> tuple[SelfAttention, ...]:
    """Return the self-attention of each of `transformer_layers`, in their order."""
    family = encoder_of(module).family
    found = []
    for layer in transformer_layers(module):
        name = f"{layer}.{family.attention}"
        width = getattr(module.get_submodule(name), family.head_width)
        rows = module.get_parameter(f"{name}.{family.qkv[0]}.weight").shape[0]
        heads = rows // width // (1 if family.packing == "separate" else 3)
        found.append(SelfAttention(name, tuple(f"{name}.{q}" for q in family.qkv), heads, width, family.packing))
    return tuple(found)


def embeddings_name(module: nn.Module) -> str:
    """Return the name of the part that makes the first hidden states of the tokens."""
    encoder = encoder_of(module)
    return encoder.path(encoder.family.embeddings)


@contextmanager
def recorded(module: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Give a list that collects what the parts `names` return, call after call, each name hooked once.

    The list is in the order in which the parts run, which is the order of `transformer_layers`; of a tuple its first
    item counts. Whoever calls `module` again empties it before.
    """
    outputs: list[Tensor] = []

    def record(_part: nn.Module, _args: object, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [module.get_submodule(name).register_forward_hook(record) for name in dict.fromkeys(names)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
