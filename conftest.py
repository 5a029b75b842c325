"""Modules whose doctests are left out where the optional packages that they import are not installed."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("stable_baselines3") else ["mmgen/judging/policy.py"]
