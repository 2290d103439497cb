"""What passes the layers of a text network while it runs, for losses between a student and its teacher."""

from typing import Any

import torch
from torch import Tensor, nn

from tlc.compress.text_layers import SelfAttention, self_attentions, transformer_layers


class LayerFeatures:
    """What passes a network's layers: their outputs or, with `inputs`, what goes into each one's self-attention.

    Recorded by every call but those in inference mode, in the order of the layers.
    """

    def __init__(self, module: nn.Module, *, inputs: bool) -> None:
        self._module = module
        self._states: list[Tensor] = []
        self._attentions: tuple[SelfAttention, ...] = self_attentions(module) if inputs else ()
        names = [attention.name for attention in self._attentions] if inputs else transformer_layers(module)
        parts = [module.get_submodule(name) for name in dict.fromkeys(names)]
        self._handles = [
            part.register_forward_pre_hook(self._enter, with_kwargs=True)
            if inputs
            else part.register_forward_hook(self._leave)
            for part in parts
        ]

    def _enter(self, _part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keep(args[0] if args else kwargs["hidden_states"])

    def _leave(self, _part: nn.Module, _args: object, output: Any) -> None:
        self._keep(output[0] if isinstance(output, tuple) else output)

    def _keep(self, states: Tensor) -> None:
        if not torch.is_inference_mode_enabled():
            self._states.append(states)

    def take(self) -> list[Tensor]:
        """Return the (N, T, channels) of each layer since the last time."""
        states, self._states = self._states, []
        return states

    def attend(self, layer: int, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (N, heads, T, width) that a layer makes of what went into its attention."""
        attention = self._attentions[layer]
        return attention.split([self._module.get_submodule(name)(states) for name in attention.qkv])

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
