"""A run of a recipe: its folder, and the models of its stages there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from mmgen import processes
from mmgen.models.base import Model, load
from mmgen.training.config import FitConfig
from mmgen.training.loop import fit

Samples = Callable[[Any], Image.Image | str]  # model -> a sample to show during training


@dataclass(frozen=True)
class Run:
    """One run of a recipe, the argument of its stages and evaluation.

    Args:
        folder: the run folder.
        main: stage that uses the folder itself; the others use ``stages/NAME``.
        seed: seed of this run.
        stage: stage being trained; empty during evaluation.
        resume: continue from the stage's newest checkpoint.
    """

    folder: Path
    main: str
    seed: int = 0
    stage: str = ""
    resume: bool = False

    def stage_folder(self, name: str = "") -> Path:
        """The folder of a stage, by default of the one being trained or else the main one."""
        name = name or self.stage or self.main
        return self.folder if name == self.main else self.folder / "stages" / name

    def load(self, stage: str = "", **overrides: Any) -> Any:
        """Load the model of a stage, by default the main one; during evaluation onto the device.

        Args:
            stage: name of the stage.
            overrides: constructor values that replace saved ones, such as ``dtype``.

        Raises:
            UserError: there is no trained model.
        """
        model = load(self.stage_folder(stage or self.main), **overrides)
        return model if self.stage else model.to(processes.device())

    def fit(
        self,
        model: Model,
        data: Sequence[Mapping[str, Tensor | None]],
        config: FitConfig,
        samples: Samples | None = None,
        finish: Callable[[Any], None] | None = None,
        phases: Sequence[str] | None = None,
    ) -> None:
        """Train a model in the folder of the stage, with the seed of the run; see `mmgen.training.loop.fit`.

        Args:
            model, data, config, finish, phases: see there.
            samples: ``samples(model)`` returns a picture or a text, written to ``samples/step_N`` every
                ``config.sample_every`` steps.
        """
        write = partial(_write_sample, samples) if samples else None
        fit(model, data, replace(config, seed=self.seed), self.stage_folder(), write, self.resume, phases, finish)


def _write_sample(samples: Samples, model: Model, place: Path) -> None:
    shown = samples(model)
    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(shown, str):
        place.with_suffix(".txt").write_text(shown, encoding="utf-8")
    else:
        shown.save(place.with_suffix(".png"))
