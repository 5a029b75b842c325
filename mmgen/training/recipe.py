"""A recipe: a config, an ordered list of stages, and one evaluation; the library does the rest."""

import dataclasses
import functools
import importlib.util
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from mmgen.data.card_files import absolute_card
from mmgen.errors import UserError, check_one_of
from mmgen.ranges import AtLeast, Seed
from mmgen.training.config import build_config, check_sections, parse_overrides, read_yaml, translate
from mmgen.training.result import Result
from mmgen.training.run import Run
from mmgen.training.scripts import module_name, recipe_folder, recipes_folder


@dataclass
class RecipeConfig:
    """The keys that every recipe has; a recipe's config adds sections.

    Args:
        seed: of the run, or of the first run of a study.
        seeds: runs of a study, with consecutive seeds; 1 is a single run.
    """

    #: key of an older version -> its key now, such as ``{"data.input": "data.image"}``
    renamed: ClassVar[Mapping[str, str]] = {}

    seed: Seed = 0
    seeds: Annotated[int, AtLeast(1)] = 1

    def check(self) -> None:
        """Raise UserError for values that do not fit each other or the data."""

    def nested(self) -> Mapping[str, "RecipeConfig"]:
        """The configs of the judges that evaluation trains, by the key that holds each."""
        return {}


@dataclass(frozen=True)
class Stage:
    """A named part of the training; see `stage`.

    Args:
        name: of the stage and of its folder.
        train: ``train(run, config)`` trains a model by `Run.fit`, or writes ``model/`` in the folder of the stage itself.
        made_by: keys of the config, sections or ``section.key``, that must be alike in a run that the stage is taken from.
    """

    name: str
    train: Callable[[Run, Any], None]
    made_by: Sequence[str] = ("data", "model", "encoder")

    def __call__(self, run: Run, config: Any) -> None:
        """Train it."""
        self.train(dataclasses.replace(run, stage=self.name), config)

    def named(self, name: str, **options: Any) -> "Stage":
        """The same stage under another name, with options of its function."""
        return dataclasses.replace(self, name=name, train=functools.partial(self.train, **options))


def stage(**settings: Any) -> Callable[[Callable[[Run, Any], None]], Stage]:
    """Turn a function ``train(run, config)`` into the `Stage` of its name.

    Args:
        settings: ``made_by``, see `Stage`.

    >>> @stage(made_by=["data"])
    ... def codes(run, config): ...
    >>> codes.name, codes.made_by
    ('codes', ['data'])
    """
    return lambda train: Stage(train.__name__, train, **settings)


@dataclass(frozen=True)
class Recipe:
    """The ``RECIPE`` of ``recipes/NAME/train.py``.

    Args:
        name: of the recipe and of its folder.
        config: its dataclass, a `RecipeConfig`.
        stages: run in this order; each leaves ``model/`` in its folder.
        evaluate: ``evaluate(run, config, split)`` judges a trained run on a split; None for what is only used inside others.
        main: the stage that works in the run folder itself, the others in ``RUN/stages/NAME``; by default the last.
        splits: the held-out splits it can be evaluated on, the default first.
        above: figure -> the baselines it is compared with; a study adds ``<baseline>_diff_low`` for each, the lower end of
            the 95 % interval of the difference, paired by seed.
        extendable: a list of the config to which ``--resume`` may add -> the stage that trains what is new.
    """

    name: str
    config: type[RecipeConfig]
    stages: Sequence[Stage]
    evaluate: Callable[[Run, Any, str], Result] | None = None
    main: str = ""
    splits: tuple[str, ...] = ("test", "validation")
    above: Mapping[str, Sequence[str]] = field(default_factory=dict)
    extendable: Mapping[str, str] = field(default_factory=dict)
    #: where it is, if not among the recipes that come with mmgen; known once it is loaded
    place: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder with its configs and its ``card.md``."""
        return self.place or recipes_folder() / self.name

    @property
    def reference(self) -> str:
        """The name by which `load_recipe` finds it again: its own, or the path of a recipe of one's own."""
        return str(self.place.resolve()) if self.place else self.name

    def run(self, folder: Path, seed: int = 0, resume: bool = False) -> Run:
        """The run of this recipe in a folder."""
        return Run(folder, self.main or self.stages[-1].name, seed, resume=resume)


def load_recipe(name: str) -> Recipe:
    """The ``RECIPE`` of a recipe's ``train.py``.

    Raises:
        UserError: there is no such recipe, or its script cannot be imported or defines none.
    """
    folder = recipe_folder(name)
    file, shipped = folder / "train.py", folder.resolve().parent == recipes_folder().resolve()
    try:
        module = importlib.import_module(module_name(folder, shipped))
    except (ImportError, SyntaxError) as error:
        raise UserError(str(file), got=str(error), expected="a script that imports", fix="correct it") from error
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise UserError(str(file), got="no RECIPE", expected="RECIPE = Recipe(...)", fix="see recipes/vae/train.py")
    return recipe if shipped else dataclasses.replace(recipe, place=folder)


def recipe_config(recipe: Recipe, config: str, overrides: list[str]) -> Any:
    """The resolved config: the dataclass, a named config of the recipe or a YAML file over it, ``key=value`` over that.

    Args:
        recipe: whose config.
        config: the name of a YAML file beside the recipe, or a path to one.
        overrides: ``key.sub=value`` arguments.

    Raises:
        UserError: no such config; unknown keys and wrong values, all at once.
    """
    file = Path(config)
    if file.suffix not in (".yaml", ".yml"):
        names = [f.stem for f in recipe.folder.glob("*.yaml")]
        file = recipe.folder / f"{check_one_of(f'config of {recipe.name}', config, names)}.yaml"
    layers = (sectioned(recipe.config, values) for values in (read_yaml(file), parse_overrides(overrides, recipe.config)))
    layers = (_absolute_cards(values, file.parent) for values in layers)
    return checked(build_config(recipe.config, *layers, renamed=recipe.config.renamed))


def checked(config: Any) -> Any:
    """The config, if its values fit each other and the data.

    Raises:
        UserError: they do not.
    """
    check_sections(config)
    config.check()
    return config


def sectioned(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Turn ``data: CARD`` into the section ``data``, with the keys of that section that stand beside it, as in older runs."""
    section = typing.get_type_hints(cls).get("data")
    if not isinstance(values.get("data"), str) or not dataclasses.is_dataclass(section):
        return values
    fields, inner = ({field.name for field in dataclasses.fields(of)} for of in (cls, section))
    moved = {key: value for key, value in values.items() if key in inner - fields}
    return {key: value for key, value in values.items() if key not in moved} | {"data": {**moved, "card": values["data"]}}


def kept_values(cls: type[RecipeConfig], file: Path) -> dict[str, Any]:
    """The values in the ``config.yaml`` of a run folder, by the keys of this version.

    Raises:
        UserError: it cannot be read.
    """
    return translate(sectioned(cls, read_yaml(file)), cls.renamed)


def _absolute_cards(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths of data absolute: a run is used from other folders too. ``folder``, of the config, is tried as well."""
    return {
        key: _absolute_cards(value, folder) if isinstance(value, dict)
        else absolute_card(value, folder) if key == "card" and isinstance(value, str)
        else value
        for key, value in values.items()
    }  # fmt: skip
