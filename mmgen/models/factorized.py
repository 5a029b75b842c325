"""MFM: a label factor shared by all modalities, and a private factor with the remaining information of each modality.

Codes are deterministic, and regularised toward N(0, 1) by MMD (a Wasserstein autoencoder). With all modalities present, each
code comes from its encoder; otherwise a surrogate infers it from the features of the modalities present.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Laplace, constraints
from torch.nn import functional as F

from mmgen.data.batch import Batch, masked_mean
from mmgen.distributions import AutoregressiveCategorical, Delta, Joint, draw, until_stop
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.latents.divergences import dependence, mmd
from mmgen.latents.fusion import known, lacking, subsets
from mmgen.modalities.kinds import check_values, decoder_class
from mmgen.modalities.layers.memory_fusion import MemoryFusion
from mmgen.modalities.modality import Modality, check_modality, encoder_of, spread
from mmgen.modalities.sequence import SequenceDecoder
from mmgen.modalities.vector import VectorDecoder, multilayer_perceptron
from mmgen.models.base import REST, Losses, Model, check_class_names, check_generate
from mmgen.ranges import AtLeast, Share, checked

PARTS = ("", "generative", "factorization")


@dataclass(frozen=True)
class Seen:
    """Inputs and features of a batch; ``label`` and ``private`` are (..., d), zero where a modality is missing."""

    values: dict[str, Tensor]  # inputs, with noise in training
    masks: dict[str, Tensor]
    present: dict[str, Tensor]  # modality -> (...) bool: (b,), or (b, t) with a label per position
    label: list[Tensor]  # features of each modality for the label factor
    private: list[Tensor]  # and for its private factor
    memory: Tensor | None  # (..., d) output of the memory fusion, beside `label`

    @property
    def real(self) -> Tensor:
        """(...) bool: True where any modality is present."""
        return self.all.any(0)

    @property
    def all(self) -> Tensor:
        """(m, ...) bool: `present` of every modality."""
        return torch.stack(list(self.present.values()))


class Factorized(Model):
    """The multimodal factorization model.

    ``f_y = F_y(z_y)``, ``f_m = F_m(z_m)``; ``p(x, y) = p(y | f_y) prod_m p(x_m | f_y, f_m)``, and the loss is

    ``-log p(y | f_y) - sum_m w_m log p(x_m | f_y, f_m) + lambda sum_z MMD(z, N(0, 1)) + eta sum_m D(z_m, y)``,

    D the `dependence` of a private code and the label over the items of the batch with both,

    plus the loss of the surrogates: the mean of ``|s - z|^2`` and -log p(y | F_y(s_y)) over all patterns that leave out
    modalities of an item, z the code of all its modalities (without gradient); and for each modality m left out alone,
    -w_m log p(x_m | F_y(s_y), F_m(s_m)). A surrogate s reads the features of the modalities present and their presence mask;
    that of z_m never reads x_m, and one network serves all patterns.

    With ``per_position``, all modalities are aligned sequences, and every position (such as an utterance of a video) has its
    own label, codes and reconstruction, encoded in the context of the others: labels are (b, t), and losses are means over
    positions. Items or positions without a label count in all terms but the label's.

    Args:
        modalities: name -> fields of `Modality`; one or more.
        classes: number of classes of int64 labels; None for real labels with -log p(y) = |y - y'| + log 2.
        per_position: give each position of the sequences its own label.
        code: size of z_y.
        factor: size of f_y.
        hidden: width of the networks from features to codes, factors and label.
        dropout: dropout rate of z_y and of the features it is computed from.
        fusion: input of z_y: "concatenation" of the features, or also a "memory" of aligned sequences.
        memory: size of the memory.
        mmd_weight: lambda, weight of the MMD between codes and prior.
        bandwidth: bandwidth of the kernel, see `mmgen.latents.divergences.mmd`; None takes the median rule.
        surrogate_weight: weight of the terms of the surrogates.
        independence_weight: eta, weight of the independence of private codes and label.
        without: an ablation: "generative" has neither private factors nor reconstruction, "factorization" one factor, as large
            as all together, that carries the label and all modalities.
        class_names: names of the classes, in order.

    Raises:
        UserError: an unknown setting or a value out of range; in use, an item without modalities, a feature that is not
            finite, a label out of range, or an unknown modality.

    Source: Tsai et al. 2019, Learning Factorized Multimodal Representations, arXiv 1806.06176. There each surrogate reads the
        raw values of a fixed pair of modalities; here the features of any. The MMD bandwidth is not scaled by the dimension.
        The term of eta is added here, after Lopez et al. 2018, arXiv 1805.08672: the paper assumes y and z_m independent
        without a loss.

    >>> model = Factorized({"a": {"kind": "vector", "shape": [3]}, "b": {"kind": "vector", "shape": [5]}}, classes=2)
    >>> batch = Batch({"a": torch.zeros(4, 3), "label": torch.tensor([0, 1, 0, 1])})
    >>> model.predict(batch).probs.shape, model.generate(batch, to="b").shape
    (torch.Size([4, 2]), torch.Size([4, 5]))
    """

    name = "factorized"
    across_items = ("swap",)

    @checked
    def __init__(
        self,
        modalities: dict[str, dict[str, Any]] | None = None,
        classes: Annotated[int | None, AtLeast(2)] = 2,
        per_position: bool = False,
        code: Annotated[int, AtLeast(1)] = 32,
        factor: Annotated[int, AtLeast(1)] = 16,
        hidden: Annotated[int, AtLeast(1)] = 64,
        dropout: Annotated[float, Share(0.2)] = 0.0,
        fusion: str = "concatenation",
        memory: Annotated[int, AtLeast(1)] = 32,
        mmd_weight: Annotated[float, AtLeast(0)] = 1.0,
        bandwidth: float | None = None,
        surrogate_weight: Annotated[float, AtLeast(0)] = 1.0,
        independence_weight: Annotated[float, AtLeast(0)] = 0.0,
        without: str = "",
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.modalities = {name: check_modality(name, values) for name, values in (modalities or {}).items()}
        check_at_least("modalities", len(self.modalities), 1)
        check_one_of("fusion", fusion, ["concatenation", "memory"])
        check_one_of("without", without, PARTS)
        kinds = {m.kind for m in self.modalities.values()}
        if (per_position or fusion == "memory") and kinds != {"sequence"}:
            what = "per_position" if per_position else "fusion"
            fix = "give all modalities as sequences, or switch it off"
            raise UserError(f"{what} of kinds", got=sorted(kinds), expected="sequences only", fix=fix)
        self.classes, self.class_names = classes, check_class_names(class_names, classes)
        self.per_position = per_position
        self.mmd_weight, self.bandwidth, self.surrogate_weight = mmd_weight, bandwidth, surrogate_weight
        self.independence_weight = independence_weight
        self.sequences = tuple(name for name, m in self.modalities.items() if m.kind in ("text", "sequence"))
        self.sequences += ("label",) if per_position else ()
        self.private = () if without else tuple(self.modalities)
        if without == "factorization":
            code += sum(m.code for m in self.modalities.values())
            factor += sum(m.factor for m in self.modalities.values())

        self.label_encoders = nn.ModuleDict({name: encoder_of(name, m) for name, m in self.modalities.items()})
        self.private_encoders = nn.ModuleDict({name: encoder_of(name, self.modalities[name]) for name in self.private})
        self.sizes: dict[str, Any] = {name: encoder.dim for name, encoder in self.label_encoders.items()}  # of the features
        sizes = self.sizes
        self.fusion = MemoryFusion(list(sizes.values()), memory, hidden) if fusion == "memory" else None
        self.dropout = nn.Dropout(dropout)
        together = sum(sizes.values())
        self.label_code = multilayer_perceptron([together + (memory if self.fusion else 0), hidden, code])
        self.label_factor = nn.Sequential(nn.Dropout(dropout), *multilayer_perceptron([code, hidden, factor]))
        self.label_head = multilayer_perceptron([factor, hidden, classes or 1])
        self.private_codes = nn.ModuleDict({n: nn.Linear(sizes[n], self.modalities[n].code) for n in self.private})
        self.private_factors = nn.ModuleDict(
            {n: multilayer_perceptron([m.code, hidden, m.factor]) for n, m in self.modalities.items() if n in self.private}
        )
        self.decoders = nn.ModuleDict(
            {n: self._decoder(n, m, factor) for n, m in self.modalities.items() if without != "generative"}
        )
        surrogates = len(self.modalities) > 1  # a single modality leaves nothing to infer from
        seen = together + len(sizes)  # features and presence mask
        self.label_surrogate: Any = multilayer_perceptron([seen, hidden, code]) if surrogates else None
        self.private_surrogates = nn.ModuleDict(
            {n: multilayer_perceptron([seen, hidden, self.modalities[n].code]) for n in self.private if surrogates}
        )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modalities that it encodes."""
        return tuple(self.modalities)

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items or positions with any modality; those with a label; and the patterns from which surrogates infer."""
        present, _ = self._presence(batch)
        nobody = torch.zeros_like(next(iter(present.values()), batch.rows))  # (...)
        everyone = torch.stack([present.get(name, nobody) for name in self.modalities])  # (m, ...)
        real, labelled = everyone.any(0), self._labelled(batch, nobody) if present else nobody
        found = {REST: real, "label": real & labelled, "independence": real & labelled}
        if self.label_surrogate is not None:
            _, valid = self._left_out(everyone)  # (s, ...)
            found |= {"surrogate_codes": valid, "surrogate_label": valid & labelled}
        return found

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The terms of the label, of each reconstruction, of the prior, and of the surrogates."""
        if not batch.having_any(*self.modalities).any():
            return self.zero_losses(*(f"reconstruction_{name}" for name in self.decoders), "label")
        seen = self.read(batch)
        codes = self.codes(seen)
        factors, labels, losses = self._factors(codes), self._labels(batch, seen), Losses()
        if labels is not None:
            losses["label"] = -masked_mean(self.decode(factors, "label").log_prob(labels[0]), labels[1])
        for name in self.decoders:
            losses[f"reconstruction_{name}"] = self._reconstruction(factors, name, seen, seen.present[name])
        if self.mmd_weight:
            rows = {**seen.present, "label": seen.real}
            flat = [z[rows[name]] for name, z in codes.items() if name == "label" or name in seen.values]  # (n, k) each
            terms = [mmd(z, torch.randn_like(z), self.bandwidth, unbiased=False) for z in flat]
            losses["prior"] = self.mmd_weight * torch.stack(terms).sum()
        if self.independence_weight and labels is not None and self.private:
            losses["independence"] = self.independence_weight * self._dependence(codes, seen, labels)
        if self.label_surrogate is not None and self.surrogate_weight:
            lost = self._surrogate_losses(seen, codes, labels)
            losses |= {f"surrogate_{name}": self.surrogate_weight * value for name, value in lost.items()}
        return losses

    def encode(self, batch: Batch) -> Joint:
        """The factors as points: "label" f_y (..., k) and, by modality, f_m (..., k_m), even of missing modalities.

        With modalities missing, the surrogates replace the encoders.
        """
        return Joint({name: Delta(factor) for name, factor in self._factors(self.codes(self.read(batch))).items()})

    def decode(self, factors: Mapping[str, Tensor], to: str) -> Distribution:
        """p(to | f_y, f_to), or p(label | f_y): batch shape (...) of the factors; with noise s, p of to / sqrt(1 + s^2).

        Args:
            factors: points of `encode`, ``encode(batch).mean``: "label" and, for a modality, ``to``.
            to: a modality, or "label".
        """
        if to == "label":
            scores = self.label_head(factors["label"])  # (..., classes or 1)
            scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
            return Categorical(logits=scores) if self.classes else Laplace(scores.squeeze(-1), 1.0)
        check_one_of("to", to, ["label", *self.decoders])
        return self.decoders[to](torch.cat([factors["label"], *([factors[to]] if self.private else [])], -1))

    def predict(self, batch: Batch) -> Distribution:
        """p(label | f_y) from the modalities present: batch shape (b,), or (b, t) with a label per position."""
        return self.decode(self.encode(batch).mean, "label")

    @torch.no_grad()
    def generate(
        self, given: Batch, to: str, n: int = 1, generator: torch.Generator | None = None, swap: str = "none",
        private: str = "inferred",
    ) -> Tensor:  # fmt: skip
        """``n`` values of ``to`` per item: means of p(to | f_y, f_to); texts and labels are drawn from it.

        Args:
            given: any of the modalities.
            to: a modality, or "label".
            n: values per item; they differ only where something is drawn.
            generator: makes the draws reproducible.
            swap: "label" takes f_y from the next item of ``given`` (for the last, the first), "private" f_to.
            private: "inferred" from the given modalities, or drawn from the "prior".

        Returns:
            (b * n, ...), grouped by item.

        Raises:
            UserError: an unknown ``to`` or option.
        """
        check_generate(to, n, ["label", *self.decoders])
        check_one_of("swap", swap, ["none", "label", "private"])
        check_one_of("private", private, ["inferred", "prior"])
        if not self.private and "private" in (swap, "private" if private == "prior" else ""):
            fix = "use a model that is built without an ablation"
            raise UserError("private factors", got="none in this model", expected="a model with private factors", fix=fix)
        if swap != "none" and given.size < 2:
            raise UserError(f"swap={swap}", got="one item", expected="two or more", fix="give another item to swap with")
        codes = self.codes(self.read(given.without("label")))
        if swap != "none":
            codes = {k: z.roll(-1, 0) if (k == "label") == (swap == "label") else z for k, z in codes.items()}
        codes = {k: z.repeat_interleave(n, 0) for k, z in codes.items()}  # (b n, ..., k)
        if private == "prior" and to in codes:
            device = codes[to].device if generator is None else generator.device
            codes[to] = torch.randn(codes[to].shape, generator=generator, device=device).to(codes[to])
        made = self.decode(self._factors(codes), to)
        if isinstance(made, Categorical):
            return draw(made.probs.flatten(0, -2), 1, generator).reshape(made.batch_shape)
        if isinstance(made, AutoregressiveCategorical):
            return made.sample((), generator)
        return made.mean * spread(self.modalities[to]) if to in self.modalities else made.mean

    def _decoder(self, name: str, modality: Modality, factor: int) -> nn.Module:
        latent = factor + (modality.factor if self.private else 0)
        if modality.kind != "sequence":
            shape = modality.shape[0] if len(modality.shape) == 1 else tuple(modality.shape)
            decoder, values = decoder_class(modality.kind, modality.decoder), [latent, shape]
        else:
            decoder, values = VectorDecoder if self.per_position else SequenceDecoder, [latent, modality.shape[0]]
        parameters = list(inspect.signature(decoder).parameters.values())
        for key in modality.decoder:
            check_one_of(f"modalities.{name}.decoder.{key}", key, [p.name for p in parameters])
        for absent in [p.name for p in parameters[2:] if p.default is p.empty and p.name not in modality.decoder]:
            got, fix = sorted(modality.decoder), f"add modalities.{name}.decoder.{absent}"
            raise UserError(f"modalities.{name}.decoder", got=got, expected=f"its {absent}", fix=fix)
        built: Any = decoder(*values, **modality.decoder)
        if modality.noise and built.likelihood.family.support is not constraints.real:
            expected, fix = f"0 for {built.likelihood.family.name}", "take the likelihood normal or laplace, or no noise"
            raise UserError(f"modalities.{name}.noise", got=modality.noise, expected=expected, fix=fix)
        return built

    def read(self, batch: Batch) -> Seen:
        """Encode each modality once per kind of factor; missing values and their features are zero."""
        for name in batch.values:
            check_one_of("modality", name, ["label", *self.modalities])
        (present, masks), values = self._presence(batch), {}
        for name, there in present.items():
            x = batch[name]
            values[name] = x = torch.where(there.reshape(*there.shape, *[1] * (x.ndim - there.ndim)), x, 0)
            kind, shape = self.modalities[name].kind, self.modalities[name].shape
            likelihood: Any = self.decoders[name].likelihood if name in self.decoders else None
            check_values(name, x, kind, shape, likelihood)
        nothing = torch.ones(batch.size, dtype=torch.bool)
        for there in present.values():
            nothing = nothing.to(there.device) & ~there.reshape(batch.size, -1).any(1)  # (b,)
        if nothing.any():
            got, fix = f"none for item {nothing.nonzero()[0].item()}", "leave the item out"
            raise UserError("modalities", got=got, expected=f"at least one of {', '.join(self.modalities)}", fix=fix)
        nobody = torch.zeros_like(next(iter(present.values())))
        present = {name: present.get(name, nobody) for name in self.modalities}

        values = {name: self._noisy(name, x) for name, x in values.items()}
        steps = {name: self._features(self.label_encoders[name], name, x, masks) for name, x in values.items()}
        memory = None
        if self.fusion is not None and len(values) == len(self.modalities):
            together = torch.stack(list(masks.values())).all(0)  # (b, t)
            memory = self.fusion(list(steps.values()), together)  # (b, t, memory)
            memory = memory if self.per_position else memory[:, -1]
        if self.fusion is not None and not self.per_position:
            steps = {n: x.sum(1) / masks[n].sum(1, keepdim=True).clamp(min=1) for n, x in steps.items()}  # (b, d)
        own = {n: self._features(self.private_encoders[n], n, x, masks) for n, x in values.items() if self.private}
        label = [self.dropout(self._known(steps, name, there)) for name, there in present.items()]  # (..., d) each
        private = [self._known(own, name, present[name]) for name in self.private]
        return Seen(values, masks, present, label, private, memory)

    def _presence(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Presence masks, (b,) or per position (b, t), of the modalities at hand, and masks (b, t) of their sequences."""
        present, masks = {}, {}
        for name in self.modalities:
            if name not in batch:
                continue
            x, there = batch[name], batch.present[name]  # (b, ...), (b,)
            if name in self.sequences:
                if name in batch.masks:
                    mask = batch.masks[name] & there[:, None]
                elif self.modalities[name].kind == "text":
                    mask = until_stop(x, self.modalities[name].decoder.get("stop")) & there[:, None]
                else:  # no padding
                    mask = there[:, None].expand(x.shape[:2])
                there = mask if self.per_position else there
            if not there.any():
                continue
            if name in self.sequences:
                masks[name] = mask  # (b, t)
            present[name] = there
        aligned = present if self.fusion is None else masks
        lengths = {name: tuple(where.shape) for name, where in aligned.items()}
        if len(set(lengths.values())) > 1:
            raise UserError("sequences", got=lengths, expected="one length for all", fix="align them")
        return present, masks

    def _labelled(self, batch: Batch, real: Tensor) -> Tensor:
        """Mask (...) of the items or positions with a label, of the shape of ``real``."""
        there = batch.having("label")  # (b,)
        if not there.any():
            return torch.zeros_like(real)
        if batch["label"].shape != real.shape:
            got, expected = tuple(batch["label"].shape), f"{tuple(real.shape)}, as the modalities have"
            raise UserError("label", got=got, expected=expected, fix="give each item, or each position, one label")
        if self.per_position:
            return there[:, None] & batch.masks.get("label", torch.ones_like(real))  # (b, t)
        return there

    def _left_out(self, everyone: Tensor) -> tuple[Tensor, Tensor]:
        """The modalities left by each pattern that leaves out some, (m, s, ...), and the mask (s, ...) of its places.

        A place counts where a modality is left and one was left out; ``everyone`` (m, ...) is the presence mask.
        """
        m = len(everyone)
        patterns = subsets(m, everyone.device)[:-1].T.reshape(m, -1, *[1] * (everyone.ndim - 1))  # all proper subsets
        kept = patterns & everyone[:, None]
        return kept, kept.any(0) & (kept != everyone[:, None]).any(0)

    def _noisy(self, name: str, x: Tensor) -> Tensor:
        modality = self.modalities[name]
        if not modality.noise:
            return x
        x = x + modality.noise * torch.randn_like(x) if self.training else x
        return x / spread(modality)

    def _known(self, found: dict[str, Tensor], name: str, there: Tensor) -> Tensor:
        """Features (..., d), exactly zero where ``there`` (...) is False."""
        if name in found:
            return torch.where(there[..., None], found[name], 0.0)
        return next(self.label_head.parameters()).new_zeros(*there.shape, self.sizes[name])

    def _features(self, encoder: Any, name: str, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
        """(b, ...) -> (b, d), or (b, t, d) with codes per position."""
        if name not in masks:
            return encoder(x)
        if self.per_position or (self.fusion is not None and encoder is self.label_encoders[name]):
            return encoder.steps(x, masks[name])
        return encoder(x, masks[name])

    def codes(self, seen: Seen) -> dict[str, Tensor]:
        """z_y, under "label", and z_m of every modality, (..., k), from the encoders or, with inputs missing, surrogates."""
        everyone, codes = seen.all, {}  # (m, ...)
        complete = everyone.all(0)  # (...)
        if len(seen.values) == len(self.modalities):
            codes["label"] = self.label_code(torch.cat([*seen.label, *([] if seen.memory is None else [seen.memory])], -1))
        if self.label_surrogate is not None:
            inferred = self.label_surrogate(known(seen.label, everyone))
            codes["label"] = torch.where(complete[..., None], codes["label"], inferred) if codes else inferred
        for i, name in enumerate(self.private):
            z = self.private_codes[name](seen.private[i])
            if name in self.private_surrogates:
                inferred = self.private_surrogates[name](known(seen.private, lacking(everyone, i)))
                z = torch.where(everyone[i][..., None], z, inferred)
            codes[name] = z
        return codes

    def _factors(self, codes: dict[str, Tensor]) -> dict[str, Tensor]:
        private = {name: self.private_factors[name](codes[name]) for name in self.private}
        return {"label": self.label_factor(codes["label"]), **private}

    def _reconstruction(self, factors: dict[str, Tensor], name: str, seen: Seen, rows: Tensor) -> Tensor:
        """-w_m log p(x_m | f_y, f_m), summed over ``rows`` (...), divided by the number of places with any modality."""
        if name not in seen.values:
            return factors["label"].new_zeros(())
        mask = (seen.masks[name],) if name in seen.masks and not self.per_position else ()
        log_prob = self.decode(factors, name).log_prob(seen.values[name], *mask)  # (...)
        return -self.modalities[name].weight * masked_mean(log_prob, rows, seen.real)

    def _dependence(self, codes: dict[str, Tensor], seen: Seen, labels: tuple[Tensor, Tensor]) -> Tensor:
        """sum_m D(z_m, y), over items or positions with modality m and a label."""
        y = F.one_hot(labels[0], self.classes) if self.classes else labels[0][..., None]  # (..., classes or 1)
        total = y.new_zeros((), dtype=torch.float32)
        for name in self.private:
            rows = seen.present[name] & labels[1]  # (...)
            if rows.sum() > 1:
                total = total + dependence(codes[name][rows], y[rows])
        return total

    def _surrogate_losses(
        self, seen: Seen, codes: dict[str, Tensor], labels: tuple[Tensor, Tensor] | None
    ) -> dict[str, Tensor]:
        """Losses of the surrogates: error of the inferred codes, and -log p of the label and modalities decoded from them."""
        m, everyone = len(self.modalities), seen.all  # (m, ...)
        kept, valid = self._left_out(everyone)  # (m, s, ...), (s, ...)
        inferred = {"label": self.label_surrogate(known(seen.label, kept))}  # (s, ..., k)
        error = (inferred["label"] - codes["label"].detach()).square().sum(-1)  # (s, ...)
        for i, name in enumerate(self.private):
            inferred[name] = self.private_surrogates[name](known(seen.private, lacking(kept, i)))
            miss = (inferred[name] - codes[name].detach()).square().sum(-1)
            error = error + torch.where(everyone[i] & ~kept[i], miss, 0.0)
        terms = {"codes": masked_mean(error, valid)}
        if labels is not None:
            log_prob = self.decode({"label": self.label_factor(inferred["label"])}, "label").log_prob(labels[0])
            terms["label"] = -masked_mean(log_prob, valid & labels[1])
        for i, name in enumerate(self.modalities):
            if name in self.decoders:
                row = 2**m - 2 - 2**i  # the pattern that lacks this modality alone: `subsets` counts in binary, from 1
                factors = self._factors({**codes, **{k: z[row] for k, z in inferred.items()}})
                terms[f"reconstruction_{name}"] = self._reconstruction(factors, name, seen, everyone[i] & kept[:, row].any(0))
        return terms

    def _labels(self, batch: Batch, seen: Seen) -> tuple[Tensor, Tensor] | None:
        """The labels, 0 where missing, and their presence mask, both (...); None if all are missing."""
        if not batch.having("label").any():
            return None
        there = self._labelled(batch, seen.real)
        labels = torch.where(there, batch["label"], 0)
        if self.classes is not None and labels.is_floating_point():
            fix = "convert it with .long(), or set classes=None for numbers"
            raise UserError("label", got=str(labels.dtype), expected="torch.int64", fix=fix)
        if self.classes is None:
            wrong, expected = labels[~labels.isfinite()], "a finite number"
        else:
            wrong, expected = labels[(labels < 0) | (labels >= self.classes)], f"0 to {self.classes - 1}"
        if len(wrong):
            raise UserError("label", got=wrong[0].item(), expected=expected, fix="check the column and `classes`")
        return labels, there & seen.real
