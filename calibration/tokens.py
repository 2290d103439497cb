"""Texts as a model with a recorded tokenizer sees them: token ids, padded batch by batch."""

from pydantic import BaseModel, ConfigDict, Field

from tlc.calibration.texts import Task


class TextInput(BaseModel):
    """How texts become a model's input. It travels with the model, so that no step tokenises in its own way."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    task: Task
    """What the model's head answers."""
    max_length: int = Field(ge=8)
    """Most tokens of one input, special ones included; longer texts are cut."""
    inputs: tuple[str, ...] = Field(min_length=2)
    """Names of the model's inputs, in its order: input_ids, attention_mask, and token_type_ids where it takes them."""
    pad_id: int = Field(ge=0)
    """Token that fills shorter inputs up; masked by attention_mask."""
    tokenizer_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of the content of tokenizer.json."""
