"""The base class of all models, with the methods they share, and `load` for saved models."""

import importlib
import inspect
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from mmgen.data.batch import Batch
from mmgen.data.processors import Source, load_processors, save_processors
from mmgen.distributions import draw
from mmgen.errors import UserError, check_at_least, check_one_of, counted, first_line
from mmgen.modalities.frozen import frozen_prefixes
from mmgen.modalities.kinds import PROCESSORS
from mmgen.models import MODELS
from mmgen.processes import world_size

REST = "rest"  # in `Model.usable`: all terms of the losses without an entry of their own


class Losses(dict[str, Tensor]):
    """Named loss terms, each a mean over the batch; `total` is their sum.

    >>> Losses(reconstruction=torch.tensor(2.0), kl=torch.tensor(0.5)).total.item()
    2.5
    """

    @property
    def total(self) -> Tensor:
        """The sum of all terms, which training minimises."""
        return torch.stack(list(self.values())).sum()

    def divided(self, divisors: Mapping[str, float]) -> Tensor:
        """The sum of all terms, each divided by the entry of ``divisors`` of its name, or of `REST`.

        >>> Losses(label=torch.tensor(2.0), kl=torch.tensor(0.5)).divided({"label": 4.0, REST: 1.0}).item()
        1.0
        """
        own = [divisors.get(name, divisors[REST]) for name in self]
        if len(set(own)) == 1:
            return self.total / own[0]
        return torch.stack([term / divisor for term, divisor in zip(self.values(), own)]).sum()


class Model(nn.Module, ModelHubMixin):
    """A model of one system; subclasses define the methods that their mathematics defines.

    A subclass takes JSON values in ``__init__`` (saved in ``config.json``), is listed in `MODELS` under its `name`, and
    overrides those of `losses`, `encode`, `decode`, `generate` and `log_likelihood` that apply. Systems with several
    optimisers list them in `phases` and split their parameters in `phase_parameters`.
    """

    name: ClassVar[str]
    phases: tuple[str, ...] = ("train",)
    #: submodule trained by the phase of the same name; the other phases train the rest
    adversary: ClassVar[str | None] = None
    #: batch entries of variable length, for `mmgen.data.batch.collate`
    sequences: tuple[str, ...] = ()
    #: True if `generate` draws an item without any modality from the prior
    from_prior: ClassVar[bool] = False
    #: options of `generate` that combine items, so that all items must be in one batch
    across_items: ClassVar[tuple[str, ...]] = ()
    #: constructor argument with the settings of an inner model, which `load` may override too
    inside: ClassVar[str] = ""

    if TYPE_CHECKING:  # buffers and submodules: torch's own `Tensor | Module` fits neither

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self) -> None:
        super().__init__()
        self.processors: dict[str, Any] = {}  # a `Processor` for each modality
        #: figures of the last `losses`, without gradient, which the training loop logs with the loss terms
        self.monitored: dict[str, Tensor] = {}
        #: optimiser steps done, set by the training loop and read by schedules; a tensor, so compiled code stays valid
        self.register_buffer("step", torch.zeros((), dtype=torch.long), persistent=False)

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """Named terms whose sum ``phase`` minimises: summed over event dimensions, averaged over the batch."""
        raise self._undefined("losses")

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """Masks of the items (or positions) that the terms of `losses` are means over.

        The training loop weights the terms of accumulated batches and of several processes by these numbers, so that their
        gradient is that of one batch of all items. This is exact for means over items; a term of a batch as a whole, such as
        a contrastive one or a divergence between samples, is a weighted mean of that of each batch.

        Returns:
            Bool masks by name of the term; that of `REST` belongs to all other terms. The names depend on the model and the
            phase only; a term that the losses lack where nobody has it needs an entry.
        """
        return {REST: batch.rows}

    def zero_losses(self, *terms: str) -> Losses:
        """Zero terms with a zero gradient for every trained parameter: the loss of a batch without usable items."""
        parts = [p.flatten()[:0].sum() for p in self.parameters() if p.requires_grad]  # 0, even for an infinite p
        zero = sum(parts, start=torch.zeros((), device=self.step.device))
        return Losses(dict.fromkeys(terms, zero))

    def encode(self, batch: Batch) -> Distribution:
        """The posterior of the latents given the modalities present in ``batch``; a `Delta` for a point."""
        raise self._undefined("encode")

    def decode(self, z: Any, to: str) -> Distribution:
        """The distribution p(to | z)."""
        raise self._undefined("decode")

    def generate(self, given: Batch, to: str, n: int = 1, generator: torch.Generator | None = None) -> Any:
        """``n`` samples of ``to`` for each item of ``given``, grouped by item: b * n values, or strings."""
        raise self._undefined("generate")

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """log p(batch) of each item, (b,): exact, or a bound where the model's documentation says so."""
        raise self._undefined("log_likelihood")

    def restyle(self, texts: Sequence[str], target: str) -> list[str]:
        """Rewrite texts in the style ``target``."""
        raise self._undefined("restyle")

    def upper_part(self, source: Source) -> Tensor:
        """The upper part of a picture, which `generate` completes: (c, h0, w)."""
        raise self._undefined("upper_part")

    @classmethod
    def defines(cls, verb: str) -> bool:
        """True if this class overrides the method ``verb``, such as "restyle"."""
        return getattr(cls, verb) is not getattr(Model, verb)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modalities that `generate` can start from."""
        return tuple(self.processors)

    @property
    def encoded(self) -> tuple[str, ...]:
        """The modalities that `encode` can read."""
        return self.inputs

    def generation_options(self) -> list[str]:
        """Names of the options of this model's `generate` beyond the common ones."""
        common = inspect.signature(Model.generate).parameters
        return [name for name in inspect.signature(type(self).generate).parameters if name not in common]

    def forward(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """`losses` as the ``forward`` that data-parallel wrappers call, a plain dict, in which they find the tensors.

        The gradient must reach the same parameters in every process, also where the items of only one lack a modality.
        """
        losses = self.losses(batch, phase)
        if world_size() > 1:
            needed = [*self.usable(batch, phase).values(), batch.having(*self.inputs)]
            if not torch.stack([rows.all() for rows in needed]).all():
                first = next(iter(losses))
                losses[first] = losses[first] + self.zero_losses(first)[first]
        return dict(losses)

    def phase_parameters(self, phase: str) -> list[dict[str, Any]]:
        """The parameters that ``phase`` trains, as optimiser groups.

        A group holds ``params`` and, where they differ from the config, ``weight_decay`` and ``scale``, a factor of the
        learning rate.
        """
        named = [(name.partition(".")[0], p) for name, p in self.named_parameters() if p.requires_grad]
        return decayed([p for part, p in named if (part == self.adversary) == (phase == self.adversary)])

    def own_state(self) -> dict[str, Tensor]:
        """The state dict without frozen parts, which the config names, and with tied weights once.

        Sharded tensors are gathered, so every process of a sharded model must call this.
        """
        return {key: whole(value) for key, value in self._own().items()}

    def load_own_state(self, state: dict[str, Tensor], source: str = "weights") -> None:
        """Load what `own_state` returned.

        Raises:
            UserError: the names or shapes are those of another model.
        """
        own = self._own()
        wrong = sorted(own.keys() ^ state.keys()) or [k for k in own if own[k].shape != state[k].shape]
        if wrong:
            expected = f"the weights of this {self.name}"
            raise UserError(
                source,
                got=f"{counted(len(wrong), 'differing tensor')} ({wrong[0]}, ...)",
                expected=expected,
                fix="use the config and the weights of one run",
            )
        self.load_state_dict({key: like(value, own[key]) for key, value in state.items()}, strict=False)

    def _own(self) -> dict[str, Tensor]:
        tied = {name for name, _ in self.named_parameters(remove_duplicate=False)} - dict(self.named_parameters()).keys()
        skipped = frozen_prefixes(self)
        return {key: value for key, value in self.state_dict().items() if key not in tied and not key.startswith(skipped)}

    def _undefined(self, verb: str) -> UserError:
        defined = [verb for verb in VERBS if self.defines(verb)]
        return UserError(
            f"{self.name}.{verb}",
            got="a call",
            expected=f"one of {', '.join(defined)}",
            fix=f"{self.name} does not define {verb}",
        )

    def write(self, folder: Path, state: dict[str, Tensor]) -> None:
        """Write ``config.json``, ``state`` as ``model.safetensors`` and the processors to an existing folder."""
        config = {"model": self.name, **(self._hub_mixin_config or {})}  # type: ignore[dict-item]
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        state = {key: value.contiguous() for key, value in state.items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        save_processors(self.processors, folder / "processors")

    def _save_pretrained(self, save_directory: Path) -> None:
        self.write(save_directory, self.own_state())

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> "Model":
        """Load a model of this class that `save_pretrained` or `push_to_hub` wrote.

        Args:
            pretrained_model_name_or_path: the folder, or a Hub name.
            revision, cache_dir, token, force_download, local_files_only: options of the download, see
                ``huggingface_hub.snapshot_download``.
            overrides: constructor values in place of the saved ones.

        Returns:
            The model in eval mode, its processors in ``model.processors``.

        Raises:
            UserError: there is no model, it is damaged or of another class, or its constructor rejects a value.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = download(
                str(pretrained_model_name_or_path),
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        elif revision is not None:
            _refuse_revision(folder, revision)
        config = read_config(folder)
        if (name := config.pop("model")) != cls.name:
            raise UserError(str(folder), got=name, expected=cls.name, fix="use mmgen.load")
        allowed = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
        for key in config:
            check_one_of(f"{folder / 'config.json'}: key", key, allowed)
        nested = config.get(cls.inside, {})
        for key in overrides:
            check_one_of(f"override of {cls.name}", key, [*allowed, *nested])
        if deeper := {key: value for key, value in overrides.items() if key not in allowed}:
            config[cls.inside] = nested | deeper
        try:
            model = cls(**{**config, **{key: value for key, value in overrides.items() if key in allowed}})
        except UserError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            what, fix = str(folder / "config.json"), "take the config.json that save_pretrained wrote"
            if overrides:
                given = ", ".join(f"{key}={value!r}" for key, value in overrides.items())
                what, fix = f"override of {cls.name}: {given}", "correct it, or leave it out"
            raise UserError(what, got=str(error), expected=f"values of a {cls.name}", fix=fix) from error
        model.load_own_state(read_weights(folder / "model.safetensors"), str(folder / "model.safetensors"))
        model.processors = {**model.processors, **load_processors(folder / "processors", PROCESSORS)}
        return model.eval()


class LabelModel(Model):
    """A model of p(label | batch): subclasses define `predict`."""

    def predict(self, batch: Batch) -> Categorical:
        """p(label | batch), one distribution for each item."""
        raise NotImplementedError

    @torch.no_grad()
    def generate(self, given: Batch, to: str = "label", n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """``n`` labels drawn from `predict` for each item in order, (b * n,); ``predict(given).mode`` is the likeliest.

        Raises:
            UserError: ``to`` is not "label", or ``n`` is below 1.
        """
        check_generate(to, n, ["label"])
        return draw(self.predict(given).probs, n, generator).flatten()


VERBS = ("losses", "encode", "decode", "generate", "log_likelihood", "restyle", "upper_part")


def check_generate(to: str, n: int, known: Collection[str]) -> None:
    """Check the arguments that every ``generate`` shares.

    Raises:
        UserError: ``to`` is none of ``known``, or ``n`` is below 1.
    """
    check_one_of("to", to, known)
    check_at_least("n", n, 1)


def check_class_names(names: list[str] | None, classes: int | None) -> list[str] | None:
    """Return ``names`` if there is one for each class, or None.

    Raises:
        UserError: there are more or fewer.
    """
    if names is not None and len(names) != classes:
        expected = counted(classes or 0, "name")
        raise UserError("class_names", got=names, expected=expected, fix=f"set classes={len(names)}")
    return names


def check_labels(labels: Tensor, classes: int) -> Tensor:
    """Return ``labels`` if they are numbers of classes, 0 to ``classes`` - 1.

    Raises:
        UserError: one is not.
    """
    if labels.is_floating_point():
        raise UserError("label", got=str(labels.dtype), expected="torch.int64", fix="convert it with .long()")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        expected, fix = f"0 to {classes - 1}", "check the number of classes"
        raise UserError("label", got=wrong[0].item(), expected=expected, fix=fix)
    return labels


def labels_of(batch: Batch, classes: int) -> Tensor:
    """The labels of all items, ``classes`` for those without one or if it is 0: (b,) int64."""
    none, there = torch.full((batch.size,), classes, device=batch.rows.device), batch.having("label")
    return none.masked_scatter(there, check_labels(batch["label"][there], classes)) if classes and there.any() else none


def dropped(labels: Tensor, classes: int, share: float) -> Tensor:
    """Labels (b,) of which a random ``share`` becomes ``classes``, no label, for classifier-free guidance."""
    return labels.masked_fill(torch.rand(len(labels), device=labels.device) < share, classes)


def model_class(name: str) -> type[Model]:
    """The class that `MODELS` lists under ``name``.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    module, cls = MODELS[check_one_of("model", name, MODELS)].split(":")
    return getattr(importlib.import_module(module), cls)


def decayed(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Two optimiser groups: matrices, and biases and norms, which get no weight decay."""
    matrices, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, in all processes at once; return a plain tensor unchanged."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """``tensor`` on the device of ``other``, and sharded like it."""
    tensor = tensor.to(other.device)
    if not hasattr(other, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # here, as it is slow to import and one process has no shards

    return distribute_tensor(tensor, other.device_mesh, other.placements)  # type: ignore[attr-defined]


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a saved model."""
    file = folder / "config.json"
    fix = "give a folder that save_pretrained wrote, or a run folder"
    if not file.is_file():
        raise UserError(str(folder), got="no config.json", expected="a saved model", fix=fix)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(str(file), got=str(error), expected="a JSON object", fix=fix) from error
    if not isinstance(config, dict) or "model" not in config:
        raise UserError(str(file), got="no key 'model'", expected="a config written by mmgen", fix=fix)
    return config


def read_weights(file: Path, fix: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        file: path of the file.
        fix: advice of the error message; "": that for a saved model.

    Raises:
        UserError: the file is missing or damaged.
    """
    if not file.is_file():
        fix = fix or "give a folder that save_pretrained wrote"
        raise UserError(str(file), got="no such file", expected="weights", fix=fix)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        fix = fix or "the file is damaged: train or download the model again"
        raise UserError(str(file), got=str(error), expected="a whole safetensors file", fix=fix) from error


def download(name: str, **options: Any) -> Path:
    """The folder of a model on the Hub, downloaded once.

    Args:
        name: user/model.
        options: options of ``huggingface_hub.snapshot_download``, such as ``revision``.

    Raises:
        UserError: the Hub has no such model or revision, or cannot be reached.
    """
    try:
        return Path(snapshot_download(name, **options))
    except (OSError, ValueError) as error:  # the base classes of huggingface_hub's errors
        what = f"model {name}" + (f" at {options['revision']}" if options.get("revision") else "")
        if isinstance(error, RevisionNotFoundError):
            fix = "check the revision"
        elif isinstance(error, LocalEntryNotFoundError | ConnectionError):  # not cached, and the Hub cannot be reached
            fix = "check the network and HF_HUB_OFFLINE, or give a folder"
        else:
            fix = "check the name"
        raise UserError(what, got=first_line(error), expected="a folder or a Hub name", fix=fix) from error


def load(
    place: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    **overrides: Any,
) -> Model:
    """Load a trained model from a run folder, a folder written by ``save_pretrained``, or the Hub.

    Args:
        place: the folder or Hub name; for a run folder, its ``model/`` is loaded.
        revision, cache_dir, token, force_download, local_files_only: options of the download, see
            ``huggingface_hub.snapshot_download``.
        overrides: constructor values that differ on this machine, such as ``dtype="fp32"`` or ``language_model=FOLDER``.

    Returns:
        The model in eval mode, its processors in ``model.processors``.

    Raises:
        UserError: there is no model, it is damaged or of an unknown class, its constructor rejects a value, or ``revision``
            is given for a folder.
    """
    folder = Path(place)
    if folder.is_dir():
        if revision is not None:
            _refuse_revision(folder, revision)
        if (folder / "run.json").is_file() and (studied := sorted(folder.glob("seed_*"))):
            raise UserError(str(place), got="a study of several seeds", expected="one run", fix=f"give {studied[0]}")
        folder = folder / "model" if (folder / "model").is_dir() else folder
    elif re.fullmatch(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", str(place)) and not str(place).startswith((".", "runs/")):
        folder = download(
            str(place),
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            force_download=force_download,
            local_files_only=local_files_only,
        )
    else:
        fix = "train one with `mmgen train RECIPE`, see `mmgen list`"
        raise UserError(str(place), got="no such folder", expected="a run folder or a Hub name", fix=fix)
    return model_class(read_config(folder)["model"]).from_pretrained(folder, **overrides)


def _refuse_revision(folder: Path, revision: str) -> None:
    fix = "leave revision out, or give a Hub name"
    raise UserError("revision", got=f"{revision!r} of the folder {folder}", expected="one of a Hub name", fix=fix)
