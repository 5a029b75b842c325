"""Captioning by pseudo self-attention: the soft words of `captioning` as keys and values in every layer, not in a prefix.

mmgen train captioning_psa                                                         # openmoji, minutes on two CPU cores
mmgen train captioning_psa words.from=RUN blind_words.from=RUN                     # the soft words of a run of `captioning`
accelerate launch recipes/captioning_psa/train.py --config recipes/captioning_psa/gpu.yaml
"""

import sys
from dataclasses import asdict, dataclass
from typing import Annotated

import torch

from mmgen import processes
from mmgen.cli import main
from mmgen.judging.captions import CaptioningConfig, judge_captioner
from mmgen.models.captioner import Captioner
from mmgen.models.psa_captioner import PseudoSelfAttentionCaptioner
from mmgen.ranges import Above, AtLeast
from mmgen.training.recipe import Recipe
from mmgen.training.stages.captioner import captioner_stages


@dataclass
class Config(CaptioningConfig):
    """The config of ``captioning``, and how its soft words reach the language model.

    Args:
        scale: learning-rate factor of U and the position embeddings, relative to the soft words.
        imitated: training captions used to initialise U, see `PseudoSelfAttentionCaptioner.imitate`; 0: small random values.
    """

    scale: Annotated[float, Above(0)] = 1.0
    imitated: Annotated[int, AtLeast(0)] = 256


def attending(config: Config, model: Captioner) -> PseudoSelfAttentionCaptioner:
    """Make a captioner with the soft words of ``model`` to which the language model attends."""
    torch.manual_seed(config.seed)  # loading ``model`` consumed random numbers
    values = {**asdict(config.model), "vocabulary": model.vocabulary.tolist()}
    attending = PseudoSelfAttentionCaptioner(values, config.scale)
    attending.load_state_dict(model.own_state(), strict=False)
    if config.imitated:
        data = config.data.items(model, "train").keep("text")
        some = torch.randperm(len(data))[: config.imitated].split(32)  # read together
        device = attending.to(processes.device()).place.device
        attending.imitate(data.batch(rows.tolist()).to(device) for rows in some)
    return attending


RECIPE = Recipe(
    "captioning_psa", Config, captioner_stages(reader=attending), judge_captioner, main="captioner",
    splits=("test", "test_compositional", "validation", "validation_compositional"),
    above={"cider": ("cider_blind", "cider_nearest", "cider_retrieved")},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(["train", "captioning_psa", *sys.argv[1:]]))
