"""Stages of the recipes ``vision_touch`` and ``peg_policy``: codes of all senses, of vision and of touch."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from mmgen.data.cards import check_column, open_card, read_card
from mmgen.data.touch import Transitions, fit_processors
from mmgen.errors import Mistakes, UserError
from mmgen.models.vision_touch import TOUCH, VISION, VisionTouch
from mmgen.ranges import AtLeast
from mmgen.training.config import FitConfig, check_decided, section, section_of
from mmgen.training.recipe import RecipeConfig, stage
from mmgen.training.run import Run

CODES = {"full": (*VISION, *TOUCH), "vision": VISION, "touch": TOUCH}  # stage -> the senses that its model reads


@dataclass
class Episodes:
    """A data card whose column ``episode`` holds paths of HDF5 files.

    Args:
        card: the data card, by name or path.
        size: side of the pictures in pixels.
        episodes: number of episodes of each split; 0 takes all.
        in_memory: keep the training pictures in memory, half a gigabyte of 15,000 at 64 pixels.
    """

    card: str = "peg_insertion"
    size: Annotated[int, AtLeast(1)] = 64
    episodes: Annotated[int, AtLeast(0)] = 0
    in_memory: bool = True

    def check(self, path: str, errors: Mistakes) -> None:
        """Check that the card has episodes."""
        check_column(read_card(self.card), "episode", "episode", "id")

    def files(self, split: str) -> list[str]:
        """The files of a split.

        Raises:
            UserError: it has no episode.
        """
        simulated = any("simulator" in source for source in read_card(self.card).sources)
        options: dict[str, Any] = {"size": self.size, "episodes": self.episodes} if simulated else {}
        found = open_card(self.card, split, limit=self.episodes or None, **options)["episode"][:]
        if not found:
            fix = "choose another split, or give the card more files"
            raise UserError(f"{self.card}: {split}", got="no episode", expected="at least one", fix=fix)
        return found


@dataclass
class VisionTouchConfig(RecipeConfig):
    """The config of the recipe ``vision_touch``."""

    data: Episodes = section()
    model: section_of(VisionTouch) = section()  # type: ignore[valid-type]
    fit: FitConfig = section()

    def check(self, errors: Mistakes) -> None:
        """Check that model arguments set by stages and data keep their defaults, and that the model can be made."""
        with errors:
            check_decided("model", self.model, ["senses"], "the stages set")
        with errors:
            check_decided("model", self.model, ["size"], "the data set", fix="set data.size")
        VisionTouch(**{**asdict(self.model), "senses": CODES["full"], "size": self.data.size})  # before anything is simulated


@stage()
def full(run: Run, config: VisionTouchConfig) -> None:
    """Train a model of the stage's senses on the moments of the card's training episodes; validation is not read."""
    files = config.data.files("train")
    model = VisionTouch(**{**asdict(config.model), "senses": CODES[run.stage], "size": config.data.size})
    model.processors |= fit_processors(files, config.data.size, config.model.readings)
    run.fit(model, Transitions(files, model.processors, in_memory=config.data.in_memory), config.fit)


STAGES = [full.named(name) for name in CODES]
