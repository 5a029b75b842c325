"""Tests never touch the user's cache; two of them run side by side on one thread each, or one on two."""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("mmgen", deadline=None, max_examples=25)  # a shared machine is slow at times
settings.load_profile("mmgen")


@pytest.fixture(autouse=True, scope="session")
def _threads():
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
