"""The loop: what must be equal is equal to the bit, and what goes wrong loses nothing."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import fully_shard

from mmgen.data.batch import Batch
from mmgen.errors import UserError
from mmgen.models import base
from mmgen.models.base import Losses, Model
from mmgen.training import checkpoint
from mmgen.training.config import FitConfig
from mmgen.training.loop import Order, fit, learning_rate


class Regression(Model):
    """y = Wx by least squares, through dropout so that random generators matter."""

    name = "regression"

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(3, 2), nn.Dropout(dropout)

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        error = self.linear(self.dropout(batch["x"])) - batch["y"]  # (b, 2)
        return Losses(squared=error.square().sum(-1).mean())


class Adversaries(Model):
    """Two phases: one moves `a` towards `b`, the other `b` away from `a`."""

    name = "adversaries"
    phases = ("near", "far")

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))

    def phase_parameters(self, phase: str) -> list[dict]:
        return [{"params": [self.a if phase == "near" else self.b], "scale": 2.0}]

    def losses(self, batch: Batch, phase: str = "near") -> Losses:
        gap = (self.a - self.b).square().sum()
        return Losses(gap=gap if phase == "near" else -0.1 * gap)


def rows(n: int = 40) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator)
    return [{"x": x[i], "y": x[i, :2] * 2 + 1} for i in range(n)]


def settings(**changes) -> FitConfig:
    values = {"steps": 12, "batch_size": 4, "checkpoint_every": 3, "log_every": 5, "tracker": "none", "warmup": 2}
    return FitConfig(**{**values, **changes})


def make(cls=Regression, **values) -> Model:
    torch.manual_seed(1)
    return cls(**values)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def log(folder: Path, name: str = "loss") -> list[float]:
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_learns(tmp_path):
    fit(make(), rows(), settings(steps=300, learning_rate=0.05, log_every=1, weight_decay=0), tmp_path)
    losses = log(tmp_path)
    assert losses[-1] < 1e-3 < 1 < losses[0]


class Stop(Exception):
    pass


def stopped(monkeypatch, cls, at, *arguments, **options):
    """Train a model whose losses raise at a step."""
    losses = cls.losses

    def stop(self, *given):
        if self.step == at:
            raise Stop
        return losses(self, *given)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(cls, "losses", stop)
        fit(make(cls, **options), rows(), *arguments)


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"precision": "bf16"}, {"accumulation": 2}, {"workers": 1}])
@pytest.mark.parametrize("at", [1, 3, 7, 11])
def test_killed_and_resumed_is_never_stopped(tmp_path, monkeypatch, options, at):
    fit(make(dropout=0.5), rows(), settings(**options), tmp_path / "whole")
    stopped(monkeypatch, Regression, at, settings(**options), tmp_path / "stopped", dropout=0.5)
    fit(make(dropout=0.5), rows(), settings(**options), tmp_path / "stopped", resume=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    assert log(tmp_path / "whole") == log(tmp_path / "stopped")


def test_phases_train_their_own_parameters_and_resume(tmp_path, monkeypatch):
    fit(make(Adversaries), rows(), settings(weight_decay=0), tmp_path / "whole")
    now = weights(tmp_path / "whole")
    assert (now["a"] > 0).all() and (now["b"] > 1).all()
    stopped(monkeypatch, Adversaries, 3, settings(weight_decay=0), tmp_path / "stopped")
    fit(make(Adversaries), rows(), settings(weight_decay=0), tmp_path / "stopped", resume=True)
    assert equal(now, weights(tmp_path / "stopped"))


def test_a_model_knows_the_step(tmp_path):
    seen = []

    class Scheduled(Regression):
        def losses(self, batch: Batch, phase: str = "train") -> Losses:
            seen.append(int(self.step))
            return super().losses(batch, phase)

    fit(make(Scheduled), rows(), settings(steps=3, accumulation=2), tmp_path)
    assert seen == [0, 0, 1, 1, 2, 2]
    fit(make(Scheduled), rows(), settings(steps=4, accumulation=2), tmp_path, resume=True)
    assert seen[6:] == [3, 3]


def test_accumulation_equals_a_larger_batch(tmp_path):
    fit(make(), rows(), settings(batch_size=16, log_every=1), tmp_path / "16")
    fit(make(), rows(), settings(batch_size=4, accumulation=4, log_every=1), tmp_path / "4x4")
    torch.testing.assert_close(log(tmp_path / "16"), log(tmp_path / "4x4"), rtol=1e-5, atol=1e-6)
    a, b = weights(tmp_path / "16"), weights(tmp_path / "4x4")
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_every_item_once_an_epoch_on_any_number_of_processes():
    config = FitConfig(batch_size=3, accumulation=2)
    for processes in (1, 2, 4):
        orders = [Order(20, config, 0, rank, processes) for rank in range(processes)]
        stream = [item for number in range(20) for order in orders for item in order.batch(number)]
        assert sorted(stream[:20]) == sorted(stream[20:40]) == list(range(20))
        assert stream[:20] != stream[20:40]


def test_order_starts_anywhere():
    config = FitConfig(batch_size=3)
    whole, late = iter(Order(20, config, 0, 0, 1)), iter(Order(20, config, 9, 0, 1))
    assert [next(whole) for _ in range(15)][9:] == [next(late) for _ in range(6)]


def test_data_smaller_than_a_batch(tmp_path):
    fit(make(), rows(3), settings(batch_size=8), tmp_path)
    assert len(log(tmp_path)) == 3


def test_schedules():
    for name, middle in {"constant": 1.0, "linear": 0.5, "cosine": 0.5}.items():
        config = FitConfig(steps=110, warmup=10, schedule=name, learning_rate=1.0)
        assert learning_rate(config, 0) == pytest.approx(0.1)
        assert learning_rate(config, 60) == pytest.approx(middle)


def test_average_is_what_is_saved(tmp_path):
    model = fit(make(), rows(), settings(ema=0.5), tmp_path)
    last = load_file(checkpoint.checkpoints(tmp_path / "checkpoints")[-1] / "model.safetensors")
    average = load_file(checkpoint.checkpoints(tmp_path / "checkpoints")[-1] / "ema.safetensors")
    assert equal(weights(tmp_path), average) and not equal(weights(tmp_path), last)
    assert equal(dict(model.own_state()), average)


def test_what_is_done_at_the_end_is_saved(tmp_path):
    def finish(model):
        assert not model.training
        with torch.no_grad():
            model.linear.bias.fill_(7.0)

    fit(Regression(), rows(), FitConfig(steps=2, tracker="none"), tmp_path, finish=finish)
    assert load_file(tmp_path / "model" / "model.safetensors")["linear.bias"].tolist() == [7.0, 7.0]


def test_samples_draw_nothing_from_training(tmp_path):
    seen = []

    def samples(model, folder):
        assert not model.training
        seen.append((folder.name, torch.rand(3)))

    fit(make(dropout=0.5), rows(), settings(), tmp_path / "without")
    fit(make(dropout=0.5), rows(), settings(sample_every=5), tmp_path / "with", samples=samples)
    assert [name for name, _ in seen] == ["step_00000005", "step_00000010", "step_00000012"]
    assert equal(weights(tmp_path / "without"), weights(tmp_path / "with"))


def test_oldest_checkpoints_go(tmp_path):
    fit(make(), rows(), settings(keep=2), tmp_path)
    assert [c.name for c in checkpoint.checkpoints(tmp_path / "checkpoints")] == ["step_00000009", "step_00000012"]


def test_a_loss_that_is_not_finite_names_its_items(tmp_path):
    data = rows(4)
    data[2] = {**data[2], "x": torch.full((3,), float("nan"))}
    with pytest.raises(UserError, match=r"loss of step 1 on items \[.*2.*\].*nan"):
        fit(make(), data, settings(), tmp_path)
    assert not (tmp_path / "model").exists() and not checkpoint.checkpoints(tmp_path / "checkpoints")


class WithMistake(list):
    def __getitem__(self, i):
        if i == 2:
            raise UserError(f"row {i}: image", got="no picture", expected="a picture", fix="drop the row")
        return super().__getitem__(i)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_a_row_is_the_same_line_from_a_data_worker(tmp_path, workers):
    with pytest.raises(UserError) as error:
        fit(make(), WithMistake(rows(4)), settings(workers=workers), tmp_path)
    assert str(error.value) == "row 2: image: got no picture, expected a picture; drop the row"


def test_rows_that_do_not_fit_together_are_told_by_a_data_worker(tmp_path):
    data = rows(4)
    data[1] = {**data[1], "x": torch.zeros(5)}
    with pytest.raises(UserError, match=r"^[^\n]*x[^\n]*$"):
        fit(make(), data, settings(workers=1), tmp_path)


class Deadly(list):
    def __getitem__(self, i):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


def test_a_data_worker_that_is_killed(tmp_path):
    with pytest.raises(UserError, match=r"^data workers: got DataLoader worker .*lower fit\.workers or fit\.batch_size"):
        fit(make(), Deadly(rows(4)), settings(workers=1), tmp_path)


def test_no_data(tmp_path):
    with pytest.raises(UserError, match="training data: got no items"):
        fit(make(), [], settings(), tmp_path)


def test_full_disk_while_saving_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    save_file = checkpoint.save_file

    def full(tensors, file):
        if "00000006" in str(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, file)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        fit(make(dropout=0.5), rows(), settings(), tmp_path / "full")
    assert [c.name for c in (tmp_path / "full" / "checkpoints").iterdir()] == ["step_00000003"]
    monkeypatch.undo()
    fit(make(dropout=0.5), rows(), settings(), tmp_path / "full", resume=True)
    fit(make(dropout=0.5), rows(), settings(), tmp_path / "whole")
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "full"))


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device")]
)
def test_full_disk_while_the_model_is_written_loses_nothing(tmp_path, monkeypatch, error):
    def full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr(base, "save_file", full)
    with pytest.raises(UserError, match=r"model in .*full: got .*No space left.*--resume"):
        fit(make(dropout=0.5), rows(), settings(), tmp_path / "full")
    assert sorted(f.name for f in (tmp_path / "full").iterdir()) == ["checkpoints", "metrics.jsonl"]
    monkeypatch.undo()
    fit(make(dropout=0.5), rows(), settings(), tmp_path / "full", resume=True)
    fit(make(dropout=0.5), rows(), settings(), tmp_path / "whole")
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "full"))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer_train.safetensors", "state.json", "random_0.json"])
def test_a_checkpoint_cut_in_half(tmp_path, name):
    fit(make(), rows(), settings(), tmp_path)
    file = checkpoint.checkpoints(tmp_path / "checkpoints")[-1] / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=name):
        fit(make(), rows(), settings(steps=15), tmp_path, resume=True)
    assert (tmp_path / "checkpoints" / "step_00000009" / "state.json").is_file()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer_train.safetensors", "ema.safetensors", "state.json", "random_0.json"]
)
def test_a_checkpoint_that_lacks_a_file(tmp_path, name):
    fit(make(), rows(), settings(ema=0.5), tmp_path)
    (tmp_path / "checkpoints" / "step_00000012" / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: got .*remove step_00000012 to resume from the checkpoint before it"):
        fit(make(), rows(), settings(steps=15, ema=0.5), tmp_path, resume=True)


def test_a_checkpoint_of_another_model(tmp_path):
    fit(make(), rows(), settings(), tmp_path)
    with pytest.raises(UserError, match=r"got a regression, expected a adversaries"):
        fit(make(Adversaries), rows(), settings(steps=15), tmp_path, resume=True)


def test_asking_for_two_processes_and_getting_one(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="1 running, expected 2"):
        fit(make(), rows(), settings(processes=2), tmp_path)
    monkeypatch.setenv("MMGEN_PROCESSES", "2")
    with pytest.raises(UserError, match="1 running, expected 2"):
        fit(make(), rows(), settings(), tmp_path)


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_loop import *
from torch.distributed.tensor import DTensor

from mmgen.training import loop

folder, batch_size, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if sys.argv[4] == "sharded":
    loop.Accelerator.prepare = shard
config = settings(batch_size=batch_size, log_every=1, steps=steps, schedule="constant", ema=0.5)
model = fit(make(), rows(), config, folder, resume=True)
(folder / "sharded").write_text(str(isinstance(model.linear.weight, DTensor)))
if sys.argv[4] == "sharded":  # a mesh keeps gloo's thread alive after its group is destroyed, and the thread may abort exit
    torch.distributed.barrier()
    os._exit(0)
"""


def shard(accelerator, model, optimizer):
    """What accelerate's `prepare` does under FSDP2, which it offers on GPUs only; torch shards on gloo too."""
    names = {p: name for name, p in model.named_parameters()}
    groups = [{**group, "params": [names[p] for p in group["params"]]} for group in optimizer.param_groups]
    fully_shard(model)
    now = dict(model.named_parameters())
    groups = [{**group, "params": [now[name] for name in group["params"]]} for group in groups]
    return model, AcceleratedOptimizer(torch.optim.AdamW(groups))


def launch(folder: Path, batch_size: int, steps: int, kind: str) -> None:
    script = folder.parent / "run.py"
    script.write_text(RUN.format(tests=str(Path(__file__).parent)), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command += [str(folder), str(batch_size), str(steps), kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_processes_equal_one_and_resume(tmp_path, kind):
    config = settings(batch_size=16, log_every=1, schedule="constant", ema=0.5)
    fit(make(), rows(), config, tmp_path / "one")
    launch(tmp_path / "two", 8, 12, kind)
    assert (tmp_path / "two" / "sharded").read_text(encoding="utf-8") == str(kind == "sharded")
    torch.testing.assert_close(log(tmp_path / "one"), log(tmp_path / "two"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-5, atol=1e-6)
    assert len(list((tmp_path / "two" / "checkpoints" / "step_00000012").glob("random_*.json"))) == 2
    launch(tmp_path / "resumed", 8, 7, kind)
    launch(tmp_path / "resumed", 8, 12, kind)
    assert equal(weights(tmp_path / "two"), weights(tmp_path / "resumed"))
