"""Judges: classifiers of generated pictures, sounds or texts.

mmgen train judge                                                          # scikit-learn's digits, seconds
mmgen train judge --config mnist                                           # any card, column and label: data.card=...
accelerate launch recipes/judge/train.py --config recipes/judge/gpu.yaml

Other recipes train their judges this way, so config, stage and evaluation are in `mmgen.judging.classifier`.
"""

import sys

from mmgen.cli import main
from mmgen.judging.classifier import JUDGE

RECIPE = JUDGE

if __name__ == "__main__":
    sys.exit(main(["train", "judge", *sys.argv[1:]]))
