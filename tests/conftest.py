"""Tests never touch the user's cache and always run on two threads."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("mmgen", deadline=None, max_examples=25)  # a shared machine is slow at times
settings.load_profile("mmgen")


@pytest.fixture(autouse=True, scope="session")
def _threads():
    torch.set_num_threads(2)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
