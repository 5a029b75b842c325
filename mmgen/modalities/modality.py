"""The description of a modality in a config: its kind and shape, and the settings of its encoder and decoder."""

import inspect
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.modalities.kinds import KINDS, build_encoder, check_name
from mmgen.modalities.sequence import SequenceEncoder


@dataclass(frozen=True)
class Modality:
    """Description of a modality.

    Args:
        kind: a key of `KINDS`, or "sequence".
        shape: shape of a value: image (c, h, w), audio (mels, frames), vector (d,), text (vocabulary size,), sequence (d,).
        encoder: settings of the kind's encoder; two encoders are built, for the label factor and the private factor.
        decoder: settings of the kind's decoder; text needs ``length`` and ``stop``, a sequence that is one item ``length``.
        code: size of z_m.
        factor: size of f_m.
        weight: weight of -log p(x_m | f_y, f_m) in the loss.
        noise: standard deviation s of noise added to the values in training; values are always divided by sqrt(1 + s^2). The
            noisy values are also the reconstruction target, as the label factor would otherwise learn to denoise. It removes
            what features that were trained on the training labels reveal about these labels only.
    """

    kind: str
    shape: list[int]
    encoder: dict[str, Any] = field(default_factory=dict)
    decoder: dict[str, Any] = field(default_factory=dict)
    code: int = 16
    factor: int = 16
    weight: float = 0.01
    noise: float = 0.0


def check_modality(name: str, values: dict[str, Any]) -> Modality:
    """Check the values of a `Modality`.

    Raises:
        UserError: an unknown, missing or impossible one; the message begins with ``modalities.NAME``.
    """
    for key in values:
        check_one_of(f"modalities.{name}.{key}", key, inspect.signature(Modality).parameters)
    check_name(name)
    if name == "label":
        raise UserError("modality", got=name, expected="another name than that of the labels", fix="rename it")
    for key in ("kind", "shape"):
        if key not in values:
            fix = f"add modalities.{name}.{key}"
            raise UserError(f"modalities.{name}", got=sorted(values), expected="kind and shape", fix=fix)
    check_one_of(f"modalities.{name}.kind", values["kind"], [*KINDS, "sequence"])
    for key, low in (("noise", 0), ("weight", 0), ("code", 1), ("factor", 1)):
        check_at_least(f"modalities.{name}.{key}", values.get(key, low), low)
    if values.get("noise") and values["kind"] in KINDS and KINDS[values["kind"]].tokens:
        raise UserError(f"modalities.{name}.noise", got=values["noise"], expected="0 for a text", fix="leave it out")
    return Modality(**values)


def spread(modality: Modality) -> float:
    """Standard deviation of values of variance one after their noise."""
    return (1 + modality.noise**2) ** 0.5


def encoder_of(name: str, modality: Modality) -> nn.Module:
    """A new encoder as the modality has it.

    Raises:
        UserError: a setting that it has not.
    """
    if modality.kind != "sequence":
        return build_encoder(modality.kind, modality.shape, modality.encoder)
    for key in modality.encoder:
        check_one_of(f"modalities.{name}.encoder.{key}", key, inspect.signature(SequenceEncoder).parameters)
    return SequenceEncoder(modality.shape[0], **modality.encoder)
