"""Captioning: a frozen language model reads a prefix made from a picture, or from a sound.

mmgen train captioning                                                     # openmoji, minutes on two CPU cores
mmgen train captioning --config full fit.steps=2000                        # more steps; any key of the config
accelerate launch recipes/captioning/train.py --config recipes/captioning/gpu.yaml
"""

import sys

from mmgen.cli import main
from mmgen.judging.captions import CaptioningConfig, judge_captioner
from mmgen.training.recipe import Recipe
from mmgen.training.stages.captioner import captioner_stages

RECIPE = Recipe(
    "captioning", CaptioningConfig, captioner_stages(), judge_captioner, main="captioner",
    splits=("test", "test_compositional", "validation", "validation_compositional"),
    above={"cider": ("cider_blind", "cider_nearest", "cider_retrieved")},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(["train", "captioning", *sys.argv[1:]]))
