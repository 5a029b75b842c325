"""Memory that is kept: a large tensor made again and again touches new pages once."""

import subprocess
import sys

import pytest

from mmgen.training.memory import keep_freed_memory

FAULTS = """
import resource, sys, torch
from mmgen.training.memory import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    raise SystemExit("not taken")
torch.set_num_threads(1)
for _ in range(8):
    torch.ones(2**24)  # 64 MB, 16384 pages; an aligned tensor needs a little more than its predecessor left
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_used_again():
    given_back, kept = faults("given back"), faults("kept")
    # each of the four touches all its pages, or none but those that the system has meanwhile taken back
    assert kept < 0.5 * given_back, (kept, given_back)


def test_elsewhere_it_does_nothing(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert keep_freed_memory() is False
