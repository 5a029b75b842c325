"""The result of an evaluation, saved in the run folder: figures by system, pictures, sounds and texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import soundfile
from PIL import Image

from mmgen.errors import UserError
from mmgen.storage import read_json, write_json
from mmgen.training.report import Sample

if TYPE_CHECKING:
    from torch import Tensor

Figures = dict[str, float]


@dataclass
class Result(MutableMapping[str, Figures]):
    """The figures of each system on one split, the model first, and the other content of the report.

    ``result[system] = {metric: figure}``. In JSON, a figure of the model has the key ``metric``, one of another
    system ``metric_system``.

    Args:
        model: name of the model's row, the first system.
        labels: system -> its name in tables, if different.
        about: figures of the evaluation itself, such as the accuracy of a judge.
        outputs: JSON values saved in ``predictions/SPLIT.json``, such as all captions.
        texts: heading -> text of a collapsed section of the report.
        words: placeholder of ``card.md`` -> text.
        table: rows of the report's table if other than the systems, for example tasks.

    >>> result = Result("captioner", about={"judge_accuracy": 0.9})
    >>> result["captioner"], result["blind"] = {"cider": 4.6}, {"cider": 0.3}
    >>> result.figures()
    {'cider': 4.6, 'cider_blind': 0.3, 'judge_accuracy': 0.9}
    """

    model: str
    labels: Mapping[str, str] = field(default_factory=dict)
    about: Figures = field(default_factory=dict)
    outputs: Any = None
    texts: dict[str, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    table: dict[str, Figures] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.systems: dict[str, Figures] = defaultdict(dict, {self.model: {}})  # a new system starts without figures
        self.samples: list[tuple[str, Sample]] = []
        self.sounds: dict[str, tuple[Tensor, int]] = {}

    def __getitem__(self, system: str) -> Figures:
        return self.systems[system]

    def __contains__(self, system: object) -> bool:
        return system in self.systems

    def get(self, system: str, default: Any = None) -> Any:
        """The figures of a system that there is; nothing is added."""
        return dict.get(self.systems, system, default)

    def __setitem__(self, system: str, figures: Mapping[str, float]) -> None:
        self.systems[system] = {metric: _figure(metric, value) for metric, value in figures.items()}

    def __delitem__(self, system: str) -> None:
        del self.systems[system]

    def __iter__(self) -> Iterator[str]:
        return iter(self.systems)

    def __len__(self) -> int:
        return len(self.systems)

    def show(
        self,
        picture: bytes | Image.Image,
        text: Mapping[str, str],
        note: str = "",
        group: str = "",
        wide: bool = False,
        name: str = "",
    ) -> None:
        """Add a picture with its texts to the report, see `mmgen.training.report.Sample`.

        Args:
            picture, text, note, wide: see there.
            group: heading below that of the split.
            name: NAME of its file ``samples/SPLIT_NAME.png``; by default a number.
        """
        self.samples.append((name or f"{len(self.samples):02d}", Sample(picture, text, note, group, wide)))

    def hear(self, name: str, wave: Tensor, rate: int) -> None:
        """Save a sound (t,) of ``rate`` Hz as ``samples/SPLIT_NAME.wav``."""
        self.sounds[name] = (wave, rate)

    def figures(self) -> Figures:
        """All figures as the flat mapping of ``mmgen evaluate --json``."""
        flat: Figures = {}
        for system, figures in {**self.systems, "": self.about}.items():
            for metric, value in figures.items():
                name = metric if system in ("", self.model) else f"{metric}_{system}"
                if name in flat:
                    fix = "rename the metric or the system"
                    raise UserError(f"figure {name}", got="two of this name", expected="one", fix=fix)
                flat[name] = value
        return flat

    def save(self, run: Path, split: str) -> None:
        """Write everything to the run folder, for `read_result`."""
        samples = run / "samples"
        samples.mkdir(exist_ok=True)
        cards = []
        for name, sample in self.samples:
            content, suffix = sample.encoded()
            (samples / f"{split}_{name}.{suffix}").write_bytes(content)
            card = {"text": dict(sample.text), "note": sample.note, "group": sample.group, "wide": sample.wide}
            cards.append({"file": f"{split}_{name}.{suffix}", **card})
        for name, (wave, rate) in self.sounds.items():
            soundfile.write(samples / f"{split}_{name}.wav", wave.cpu().numpy(), rate)
        if self.outputs is not None:
            (run / "predictions").mkdir(exist_ok=True)
            write_json(run / "predictions" / f"{split}.json", self.outputs, indent=None)
        (run / "results").mkdir(exist_ok=True)
        systems = {self.labels.get(system, system): figures for system, figures in self.systems.items() if figures}
        saved = {
            "systems": self.table or systems,
            "about": self.about,
            "samples": cards,
            "texts": self.texts,
            "words": self.words,
        }
        write_json(run / "results" / f"{split}.json", saved)


@dataclass(frozen=True)
class SavedResult:
    """A saved result: figures by label of the system, figures of the evaluation, samples, texts and words."""

    systems: Mapping[str, Figures]
    about: Figures
    samples: list[Sample]
    texts: Mapping[str, str]
    words: Mapping[str, str]


def read_result(run: Path, split: str) -> SavedResult | None:
    """The result saved in a run folder; None if an earlier version of mmgen evaluated it.

    Raises:
        UserError: its file is damaged.
    """
    file = run / "results" / f"{split}.json"
    if not file.is_file():
        return None
    saved = read_json(file)
    samples = [
        Sample(file.read_bytes(), card["text"], card["note"], card["group"], card["wide"])
        for card in saved["samples"]
        if (file := run / "samples" / card["file"]).is_file()  # samples may have been deleted to save space
    ]
    return SavedResult(saved["systems"], saved["about"], samples, saved["texts"], saved["words"])


def _figure(metric: str, value: Any) -> float:
    """A number that JSON can hold; a tensor or array of one element becomes one."""
    if isinstance(value, bool | int | float):
        return value
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"figure {metric}", got=value, expected="a number", fix="give its mean") from error
