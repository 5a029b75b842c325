"""Captioning by pseudo self-attention: the soft words of `captioning` as keys and values in every layer, not in a prefix.

mmgen train captioning_psa                                                         # openmoji, minutes on two CPU cores
mmgen train captioning_psa words.from=RUN blind_words.from=RUN                     # the soft words of a run of `captioning`
accelerate launch recipes/captioning_psa/train.py --config recipes/captioning_psa/gpu.yaml
"""

import sys
from dataclasses import asdict, dataclass
from functools import partial
from types import ModuleType

import torch

from mmgen import processes
from mmgen.cli import main
from mmgen.errors import check_at_least
from mmgen.models.captioner import Captioner
from mmgen.models.psa_captioner import PseudoSelfAttentionCaptioner
from mmgen.training.recipe import Recipe, load_recipe

AT_ONCE = 32  # captions that the language model reads together before training


def captioning() -> ModuleType:
    """The recipe ``captioning``, of whose data, stages and evaluation this one is made."""
    return sys.modules[load_recipe("captioning").config.__module__]


@dataclass
class Config(captioning().Config):
    """The config of ``captioning``, and how its soft words reach the language model.

    Args:
        scale: see `PseudoSelfAttentionCaptioner`.
        imitated: training captions that U starts from, see `PseudoSelfAttentionCaptioner.imitate`; 0: it starts small.
    """

    scale: float = 1.0
    imitated: int = 256


def check(config: Config) -> None:
    """As ``captioning``; and U can start."""
    captioning().check(config)
    check_at_least("imitated", config.imitated, 0)


def attending(config: Config, model: Captioner) -> PseudoSelfAttentionCaptioner:
    """A captioner with the soft words of ``model``, which the language model attends to."""
    torch.manual_seed(config.seed)
    values = {**asdict(config.model), "vocabulary": model.vocabulary.tolist()}
    attending = PseudoSelfAttentionCaptioner(values, config.scale)
    attending.load_state_dict(model.own_state(), strict=False)
    if config.imitated:
        data = captioning().captions(model, config.data, "train").keep("text")
        some = torch.randperm(len(data))[: config.imitated].split(AT_ONCE)
        device = attending.to(processes.device()).place.device
        attending.imitate(data.batch(rows.tolist()).to(device) for rows in some)
    return attending


RECIPE = Recipe(
    name="captioning_psa",
    config=Config,
    stages={
        "words": captioning().train_words,
        "captioner": partial(captioning().train, reader=attending),
        "blind_words": partial(captioning().train_words, blind=True),
        "blind": partial(captioning().train, blind=True, reader=attending),
    },
    main="captioner",
    evaluate=captioning().evaluate,
    splits=captioning().RECIPE.splits,
    report=partial(
        captioning().report, recipe="captioning_psa", reads="attends in every layer to", tag="pseudo-self-attention"
    ),
    check=check,
    above=captioning().RECIPE.above,
)

if __name__ == "__main__":
    sys.exit(main(["train", "captioning_psa", *sys.argv[1:]]))
