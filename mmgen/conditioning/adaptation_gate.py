"""Multimodal Adaptation Gate (MAG): shifts a transformer's hidden states by features of other, token-aligned modalities."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmgen.errors import UserError, check_at_least, check_one_of


class AdaptationGate(nn.Module):
    """Shift of hidden states z (b, t, d) by features of other modalities m, aligned with the tokens.

    ``g_m = ReLU(W_hm [x_m; z] + b_hm)``, ``h = sum_m g_m * (W_m x_m + b_m)``, ``alpha = min(beta ||z|| / ||h||, 1)``,
    ``out = Dropout(LayerNorm(z + alpha h))``: a shift is at most beta times as long as the hidden state. A missing modality,
    an absent name or a False in a mask, adds exactly zero to h and gets a gradient of exactly zero.

    The LayerNorm applies even when everything is missing. BERT's hidden states are normalised already; those inside Llama or
    GPT-2 are not, so the layers after the gate must adapt to it.

    Args:
        width: width d of the hidden states.
        features: modality name -> width of its features.
        beta: largest ratio of the lengths of shift and hidden state, above 0.
        dropout: dropout rate of the output.

    Raises:
        UserError: there is no modality, or a number is out of its range.

    Source: Rahman et al. 2020, Integrating Multimodal Information in Large Pretrained Transformers, ACL, for vision and audio;
        as in their code, every W has a bias, and 1e-6 is added to ||h||.

    >>> gate = AdaptationGate(width=8, features={"audio": 5, "vision": 3})
    >>> gate(torch.randn(2, 4, 8), {"audio": torch.randn(2, 4, 5)}).shape
    torch.Size([2, 4, 8])
    """

    def __init__(self, width: int, features: Mapping[str, int], beta: float = 1.0, dropout: float = 0.5) -> None:
        super().__init__()
        check_at_least("modalities of the gate", len(features), 1)
        for name, size in features.items():
            check_at_least(f"features of {name}", size, 1)
        if not beta > 0:
            raise UserError("beta", got=beta, expected="a number > 0", fix="use 1.0")
        self.width, self.features, self.beta = width, dict(features), beta
        self.gates = nn.ModuleDict({name: nn.Linear(size + width, width) for name, size in features.items()})
        self.projections = nn.ModuleDict({name: nn.Linear(size, width) for name, size in features.items()})
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, z: Tensor, features: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> Tensor:
        """Shift hidden states.

        Args:
            z: (b, t, d).
            features: modality -> (b, t, f); absent modalities are missing.
            masks: modality -> bool (b,) or (b, t), False where an item or a token lacks the modality.

        Returns:
            (b, t, d), in the dtype of z.

        Raises:
            UserError: the gate does not have a modality, or features or a mask have another shape.
        """
        masks = masks or {}
        self._check(z, features, masks)
        state = z.to(next(self.parameters()).dtype)  # (b, t, d)
        h = torch.zeros_like(state)
        for name, x in features.items():
            present = masks[name].reshape(len(z), -1, 1) if name in masks else None  # (b, t or 1, 1)
            x = x.to(state.dtype) if present is None else x.to(state.dtype).masked_fill(~present, 0)  # (b, t, f)
            shift = self.gates[name](torch.cat([x, state], -1)).relu() * self.projections[name](x)  # (b, t, d)
            h = h + (shift if present is None else shift * present)
        longest = self.beta * state.norm(dim=-1, keepdim=True)  # (b, t, 1)
        alpha = (longest / (h.norm(dim=-1, keepdim=True) + 1e-6)).clamp(max=1)  # (b, t, 1)
        return self.dropout(self.norm(state + alpha * h)).to(z.dtype)

    @contextmanager
    def inside(
        self,
        model: PreTrainedModel,
        features: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        layer: int = 0,
    ) -> Iterator[None]:
        """Pass the hidden states of ``model`` through the gate for the duration of a ``with`` block.

        Every forward pass must read as many tokens as there are features, so decoding token by token from a cache is not
        possible. The model's weights and modules are not changed.

        Args:
            model: an encoder or causal language model of transformers, whose layers return hidden states (b, t, d).
            features, masks: see `forward`.
            layer: 0 for the embeddings, i for the output of the i-th layer.

        Raises:
            UserError: the model does not have the layer; when the model runs, see `forward`.

        >>> from mmgen.conditioning.language_model import load_language_model
        >>> model, _ = load_language_model("tiny", "fp32")
        >>> gate = AdaptationGate(width=32, features={"audio": 5})
        >>> with gate.inside(model, {"audio": torch.randn(1, 3, 5)}, layer=1):
        ...     model(input_ids=torch.tensor([[5, 6, 7]])).logits.shape
        torch.Size([1, 3, 259])
        """
        layers = layers_of(model)
        if layer not in range(len(layers) + 1):
            expected = f"0 to {len(layers)}, the layers of this {model.config.model_type} model"
            raise UserError("layer", got=layer, expected=expected, fix="use 0 for the embeddings")

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (self(args[0], features, masks), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self(kwargs["hidden_states"], features, masks)}

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                return (self(output[0], features, masks), *output[1:])
            return self(output, features, masks)

        if layer == 0:
            hook = layers[0].register_forward_pre_hook(before, with_kwargs=True)
        else:
            hook = layers[layer - 1].register_forward_hook(after)
        try:
            yield
        finally:
            hook.remove()

    def _check(self, z: Tensor, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        if z.ndim != 3 or z.shape[2] != self.width:
            fix = "build the gate with the width of the model"
            raise UserError("hidden states", got=f"shape {tuple(z.shape)}", expected=f"(b, t, {self.width})", fix=fix)
        b, t, _ = z.shape
        for name, x in features.items():
            expected = (b, t, self.features[check_one_of("modality", name, self.features)])
            if x.shape != expected:
                fix = "give one vector for each token that the model reads"
                raise UserError(f"features of {name}", got=f"shape {tuple(x.shape)}", expected=f"{expected}", fix=fix)
        for name, mask in masks.items():
            check_one_of("modality of a mask", name, self.features)
            if mask.shape not in ((b,), (b, t)) or mask.dtype != torch.bool:
                got = f"{mask.dtype} of shape {tuple(mask.shape)}"
                fix = "give True where the modality is present"
                raise UserError(f"mask of {name}", got=got, expected=f"torch.bool of shape ({b},) or ({b}, {t})", fix=fix)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The model's layers: the outermost `ModuleList` with as many modules as its config has layers.

    Raises:
        UserError: it has no such list.

    >>> from mmgen.conditioning.language_model import load_language_model
    >>> len(layers_of(load_language_model("tiny", "fp32")[0]))
    2
    """
    n = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n:
            return module
    got, fix = f"a {model.config.model_type} model with no list of {n} layers", "choose a model such as BERT or Llama"
    raise UserError("model", got=got, expected="a stack of layers", fix=fix)
