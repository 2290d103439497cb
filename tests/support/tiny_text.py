"""Small text models, tokenizers and labelled texts for tests: no downloads, random weights, runs in milliseconds."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FAMILIES = ("bert", "minilm", "distilbert", "roberta", "electra", "albert", "deberta", "deberta-v2", "modernbert")
"""What `write_tiny` makes; minilm is a bert of another shape."""
TASKS = ("sequence-classification", "token-classification", "question-answering")

GOOD = ("good", "great", "lovely", "superb", "moving", "funny", "brilliant", "warm")
BAD = ("bad", "awful", "dull", "clumsy", "boring", "weak", "terrible", "cold")
PLAIN = (
    "a", "an", "and", "the", "this", "that", "it", "was", "is", "film", "movie", "story", "actor", "actress",
    "scene", "director", "plot", "of", "in", "with", "for", "but", "very", "quite", "rather", "almost", "never",
    "always", "who", "where", "when", "what", "played", "by", "paris", "london", "rome", "anna", "ben", "carla",
)  # fmt: skip
TAGS = ("O", "B-PER", "B-LOC")
PEOPLE, PLACES = ("anna", "ben", "carla"), ("paris", "london", "rome")

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_AUTO: dict[str, Any] = {
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
}


def tiny_tokenizer(family: str = "bert") -> Tokenizer:
    """Return a lower-case WordPiece tokenizer of the words above; byte-level BPE for roberta and modernbert."""
    if family in ("roberta", "modernbert"):
        return _byte_level_bpe()
    words = [*_BERT_SPECIAL, *_LETTERS, *(f"##{letter}" for letter in _LETTERS), *".,!?'-", *GOOD, *BAD, *PLAIN]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(_BERT_SPECIAL))
    ids = {name: vocabulary[name] for name in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=list(ids.items())
    )
    return tokenizer


def _byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(_ROBERTA_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join((*GOOD, *BAD, *PLAIN)), *GOOD, *BAD, *PLAIN], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")],
    )
    return tokenizer


def tiny_config(
    family: str,
    vocabulary: int,
    *,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    intermediate: int = 64,
    positions: int = 64,
) -> Any:
    """Return the transformers config of a small member of the family; weights are drawn wide enough to matter."""
    if family == "distilbert":
        return transformers.DistilBertConfig(
            vocab_size=vocabulary, dim=hidden, n_layers=layers, n_heads=heads, hidden_dim=intermediate,
            max_position_embeddings=positions, pad_token_id=0, initializer_range=0.2,
        )  # fmt: skip
    common: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": intermediate, "max_position_embeddings": positions, "initializer_range": 0.2,
        "pad_token_id": 0,
    }  # fmt: skip
    match family:
        case "bert":
            return transformers.BertConfig(**common)
        case "minilm":  # a narrow BERT with more layers, as nreimers/MiniLM-L6-H384-uncased
            return transformers.BertConfig(**{**common, "num_hidden_layers": layers + 1})
        case "roberta":  # positions count from pad_token_id + 1
            special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
            return transformers.RobertaConfig(**{**common, **special, "max_position_embeddings": positions + 2})
        case "electra":
            return transformers.ElectraConfig(**common, embedding_size=hidden // 2)
        case "albert":
            return transformers.AlbertConfig(
                **common, embedding_size=hidden // 2, hidden_act="gelu_new", bos_token_id=2, eos_token_id=3
            )
        case "deberta" | "deberta-v2":
            relative: dict[str, Any] = {
                "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False,
                "type_vocab_size": 0,
            }  # fmt: skip
            if family == "deberta":
                return transformers.DebertaConfig(**common, **relative)
            # as microsoft/deberta-v3-small
            more: dict[str, Any] = {"position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
            return transformers.DebertaV2Config(**common, **relative, **more)
        case "modernbert":  # every third layer attends globally, the others within a window
            special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
            return transformers.ModernBertConfig(**{**common, **special}, local_attention=16)
    raise ValueError(family)


def write_tiny(
    folder: Path,
    family: str = "bert",
    task: str = "sequence-classification",
    *,
    labels: tuple[str, ...] = ("negative", "positive"),
    seed: int = 0,
    **shape: int,
) -> Path:
    """Save a Hugging Face folder (config, safetensors, tokenizer) with random weights and return it.

    labels: class names of the two classification tasks. shape: as `tiny_config` takes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(family)
    config = tiny_config(family, tokenizer.get_vocab_size(), **shape)
    if task != "question-answering":
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: index for index, name in enumerate(labels)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _AUTO[task].from_config(config).float().eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms of fresh models are all 0 or 1
                parameter.data += torch.randn_like(parameter) * 0.05
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"model_max_length": shape.get("positions", 64), "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def write_tiny_encoder(source: Path, folder: Path) -> Path:
    """Save the encoder of a classifier that `write_tiny` made, without its head, and return its folder."""
    transformers.AutoModel.from_pretrained(source).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def reviews(count: int = 60, seed: int = 0) -> list[tuple[str, str]]:
    """Return (text, label) pairs: each review has one word that says which class it is; lengths vary."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        label = "positive" if index % 2 else "negative"
        words = [str(word) for word in rng.choice(PLAIN, rng.integers(3, 20))]
        words.insert(int(rng.integers(0, len(words) + 1)), str(rng.choice(GOOD if index % 2 else BAD)))
        made.append((" ".join(words) + " .", label))
    return made


def write_reviews(path: Path, count: int = 60, seed: int = 0) -> Path:
    """Write `reviews` as a CSV with the columns text and label."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(reviews(count, seed))
    return path


def write_entities(path: Path, count: int = 40, seed: int = 0) -> Path:
    """Write JSONL with the columns tokens and ner_tags (names of `TAGS`)."""
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            words = [str(word) for word in rng.choice([*PLAIN, *PEOPLE, *PLACES], rng.integers(3, 12))]
            tags = ["B-PER" if word in PEOPLE else "B-LOC" if word in PLACES else "O" for word in words]
            file.write(json.dumps({"tokens": words, "ner_tags": tags}) + "\n")
    return path


def write_questions(path: Path, count: int = 40, seed: int = 0) -> Path:
    """Write JSONL with the columns question, context and answers, as SQuAD has them."""
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            words = [str(word) for word in rng.choice(sorted(set(PLAIN) - set(PLACES)), 8)]
            place = str(rng.choice(PLACES))
            words.insert(int(rng.integers(0, len(words))), place)
            context = " ".join(words)
            at = words.index(place)
            start = len(" ".join(words[:at])) + (at > 0)
            answers = {"text": [place], "answer_start": [start]}
            file.write(json.dumps({"question": "where was it ?", "context": context, "answers": answers}) + "\n")
    return path
