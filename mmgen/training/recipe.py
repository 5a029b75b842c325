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
from mmgen.errors import Mistakes, UserError, check_one_of
from mmgen.ranges import AtLeast, Seed
from mmgen.training.config import build_config, check_sections, parse_overrides, read_yaml, translate
from mmgen.training.result import Result
from mmgen.training.run import Run
from mmgen.training.scripts import module_name, recipe_folder, recipes_folder


@dataclass
class RecipeConfig:
    """The keys of every recipe, to which the config of a recipe adds sections.

    Args:
        seed: seed of the run, or of the first run of a study.
        seeds: number of runs of a study, with consecutive seeds; 1 is a single run.
    """

    #: old key -> new key, such as ``{"data.input": "data.image"}``
    renamed: ClassVar[Mapping[str, str]] = {}

    seed: Seed = 0
    seeds: Annotated[int, AtLeast(1)] = 1

    def check(self, errors: Mistakes) -> None:
        """Add to ``errors`` each inconsistency of values with each other or the data; the last one may be raised."""

    def nested(self) -> Mapping[str, "RecipeConfig"]:
        """The configs of the judges that the evaluation trains, by their keys."""
        return {}


@dataclass(frozen=True)
class Stage:
    """A named part of the training, see `stage`.

    Args:
        name: name of the stage and of its folder.
        train: ``train(run, config)`` trains a model by `Run.fit`, or writes ``model/`` in the folder of the stage.
        made_by: config keys, sections or ``section.key``, that must be equal in a run from which the stage is taken.
    """

    name: str
    train: Callable[[Run, Any], None]
    made_by: Sequence[str] = ("data", "model", "encoder")

    def __call__(self, run: Run, config: Any) -> None:
        """Train the stage."""
        self.train(dataclasses.replace(run, stage=self.name), config)

    def named(self, name: str, **options: Any) -> "Stage":
        """The same stage under another name, with options of its function."""
        return dataclasses.replace(self, name=name, train=functools.partial(self.train, **options))


def stage(train: Callable[[Run, Any], None] | None = None, **settings: Any) -> Any:
    """Decorate a function ``train(run, config)`` as the `Stage` of its name.

    Args:
        settings: ``made_by``, see `Stage`.

    >>> @stage(made_by=["data"])
    ... def codes(run, config): ...
    >>> codes.name, codes.made_by
    ('codes', ['data'])
    """
    if train is None:
        return lambda train: Stage(train.__name__, train, **settings)
    return Stage(train.__name__, train, **settings)


@dataclass(frozen=True)
class Recipe:
    """The ``RECIPE`` of ``recipes/NAME/train.py``.

    Args:
        name: name of the recipe and of its folder.
        config: dataclass of its config, a `RecipeConfig`.
        stages: stages in order; each writes ``model/`` in its folder.
        evaluate: ``evaluate(run, config, split)`` evaluates a run on a split; None for recipes used only inside others.
        main: stage that uses the run folder itself, the others ``RUN/stages/NAME``; by default the last.
        splits: held-out splits for evaluation, the default first.
        above: figure -> baselines to compare with; a study adds ``<baseline>_diff_low`` for each, the lower end of
            the 95 % interval of the difference, paired by seed.
        extendable: config key of a list that ``--resume`` may extend -> stage that trains the new entries.
    """

    name: str
    config: type[RecipeConfig]
    stages: Sequence[Stage]
    evaluate: Callable[[Run, Any, str], Result] | None = None
    main: str = ""
    splits: tuple[str, ...] = ("test", "validation")
    above: Mapping[str, Sequence[str]] = field(default_factory=dict)
    extendable: Mapping[str, str] = field(default_factory=dict)
    #: folder of a recipe outside mmgen, set when it is loaded
    place: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder with its configs and its ``card.md``."""
        return self.place or recipes_folder() / self.name

    @property
    def reference(self) -> str:
        """The argument of `load_recipe` for this recipe: its name, or the path of a recipe outside mmgen."""
        return str(self.place.resolve()) if self.place else self.name

    def run(self, folder: Path, seed: int = 0, resume: bool = False) -> Run:
        """The run of this recipe in a folder."""
        return Run(folder, self.main or self.stages[-1].name, seed, resume=resume)


def load_recipe(name: str) -> Recipe:
    """The ``RECIPE`` of a recipe's ``train.py``.

    Raises:
        UserError: there is no such recipe, or its script cannot be imported or defines no ``RECIPE``.
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
    if shipped and recipe.name != folder.resolve().name:
        fix = f'write Recipe("{folder.resolve().name}", ...)'
        raise UserError(str(file), got=f"a recipe {recipe.name!r}", expected="the name of its folder", fix=fix)
    return recipe if shipped else dataclasses.replace(recipe, place=folder)


def config_file(recipe: Recipe, config: str) -> Path:
    """The YAML file of a config: a path to one, or its name among those of the recipe.

    Raises:
        UserError: the recipe has no config of this name.
    """
    if Path(config).suffix in (".yaml", ".yml"):
        return Path(config)
    names = [file.stem for file in recipe.folder.glob("*.yaml")]
    return recipe.folder / f"{check_one_of(f'config of {recipe.name}', config, names)}.yaml"


def recipe_config(recipe: Recipe, config: str, overrides: list[str]) -> Any:
    """The resolved config: defaults of the dataclass, then a named config or YAML file, then ``key=value`` arguments.

    Args:
        recipe: recipe of the config.
        config: name of a YAML file beside the recipe, or a path to one.
        overrides: ``key.sub=value`` arguments.

    Raises:
        UserError: no such config; all unknown keys and wrong values at once.
    """
    file = config_file(recipe, config)
    layers = (sectioned(recipe.config, values) for values in (read_yaml(file), parse_overrides(overrides, recipe.config)))
    layers = (_absolute_cards(values, file.parent) for values in layers)
    return checked(build_config(recipe.config, *layers, renamed=recipe.config.renamed))


def checked(config: Any) -> Any:
    """Return the config if its values are consistent with each other and the data.

    Raises:
        UserErrors: all mistakes at once.
    """
    errors = Mistakes()
    check_sections(config, errors)
    with errors:
        config.check(errors)
    errors.fail()
    return config


def sectioned(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Turn ``data: CARD`` of older runs into a section, and move old top-level keys into it."""
    section = typing.get_type_hints(cls).get("data")
    if not isinstance(values.get("data"), str) or not dataclasses.is_dataclass(section):
        return values
    fields, inner = ({field.name for field in dataclasses.fields(of)} for of in (cls, section))
    moved = {key: value for key, value in values.items() if key in inner - fields}
    return {key: value for key, value in values.items() if key not in moved} | {"data": {**moved, "card": values["data"]}}


def saved_values(cls: type[RecipeConfig], file: Path) -> dict[str, Any]:
    """The values in the ``config.yaml`` of a run folder, by current keys.

    Raises:
        UserError: it cannot be read.
    """
    return translate(sectioned(cls, read_yaml(file)), cls.renamed)


def _absolute_cards(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make data paths absolute, as a run is used from other folders; also tried relative to the config's ``folder``."""
    return {
        key: _absolute_cards(value, folder) if isinstance(value, dict)
        else absolute_card(value, folder) if key == "card" and isinstance(value, str)
        else value
        for key, value in values.items()
    }  # fmt: skip
