"""Training loop for any model of `mmgen.models`, in one or several processes, with bitwise exact resume."""

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object, set_seed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from mmgen.data.batch import Batch, collate
from mmgen.errors import UserError
from mmgen.models.base import REST, Losses, Model, like, whole
from mmgen.processes import check_processes, join
from mmgen.training import checkpoint as ckpt
from mmgen.training.config import FitConfig
from mmgen.training.memory import keep_freed_memory

Samples = Callable[[Model, Path], None]


class Interrupted(KeyboardInterrupt):
    """Interruption of training by SIGTERM or Ctrl-C, after saving a checkpoint."""

    def __init__(self, step: int, number: int) -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, which is saved; add --resume to go on")


class Order(Sampler[list[int]]):
    """Endless sampler of the items of this process's batches, from any step on.

    Epochs are seeded permutations, concatenated and cut into batches: every batch is full, no item is dropped, and the items
    of a batch depend on its number only.

    Args:
        size: number of items in the data.
        config: seed, batch size and accumulation.
        start: optimiser steps already done.
        rank: rank of this process.
        processes: number of processes that share each batch.
    """

    def __init__(self, size: int, config: FitConfig, start: int, rank: int, processes: int) -> None:
        self.size, self.config, self.start, self.rank, self.processes = size, config, start, rank, processes
        self._epoch, self._permutation = -1, torch.empty(0)

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start * self.config.accumulation
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> list[int]:
        """Return this process's items of batch ``number``, counted from the start of training."""
        width = self.config.batch_size
        first = (number * self.processes + self.rank) * width
        return [self._item(position) for position in range(first, first + width)]

    def _item(self, position: int) -> int:
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(hash((self.config.seed, epoch)) % 2**63)
            self._epoch, self._permutation = epoch, torch.randperm(self.size, generator=generator)
        return int(self._permutation[place])


def own_seed(seed: int, rank: int) -> int:
    """Seed of the generators of a process: ``seed`` itself for the first one, a hash of both for others.

    >>> own_seed(1, 0), own_seed(0, 1) == own_seed(1, 0)
    (1, False)
    """
    return seed if rank == 0 else int(numpy.random.SeedSequence([seed, rank]).generate_state(1)[0])


def learning_rate(config: FitConfig, step: int) -> float:
    """Learning rate of optimiser step ``step`` (from 0): linear warm-up, then the schedule.

    >>> learning_rate(FitConfig(warmup=10, learning_rate=1.0), 4)
    0.5
    """
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    done = min(1.0, max(0.0, (step - config.warmup) / max(1, config.steps - config.warmup)))
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.schedule]
    return config.learning_rate * warm * fall


def fit(
    model: Model,
    data: Sequence[Mapping[str, Tensor | None]],
    config: FitConfig,
    folder: Path,
    samples: Samples | None = None,
    resume: bool = False,
    phases: Sequence[str] | None = None,
    finish: Callable[[Model], None] | None = None,
) -> Model:
    """Train ``model`` on ``data`` and save it to ``folder/model``.

    Args:
        model: model whose `losses` are minimised, phase by phase in every step.
        data: ``data[i]`` is item i as a row for `mmgen.data.batch.collate`; it must not change between calls.
        config: see `FitConfig`.
        folder: receives ``metrics.jsonl checkpoints/ samples/ tensorboard/ model/``.
        samples: called as ``samples(model, folder / "samples" / "step_N")`` every ``config.sample_every`` steps.
        resume: continue from the newest checkpoint in ``folder``, if any; the result equals that of an uninterrupted run.
        phases: objectives of the model to optimise in each step; None: ``model.phases``.
        finish: called with the trained model in eval mode before it is saved, for example to fit its prior.

    Returns:
        The trained model (its moving average if there is one), in eval mode.

    Raises:
        UserError: there are no data, the number of processes is wrong, a loss is not finite, a checkpoint does not fit, or the
            disk is full.
        Interrupted: SIGTERM or Ctrl-C, after saving.
    """
    if len(data) == 0:
        raise UserError("training data", got="no items", expected="at least one", fix="check the card's split")
    keep_freed_memory()
    trainer = _Trainer(model, data, config, Path(folder), samples, tuple(phases or model.phases))
    trainer.finish = finish
    if resume and (found := ckpt.checkpoints(trainer.folder / "checkpoints")):
        trainer.load(found[-1])
    elif trainer.main:
        (trainer.folder / "metrics.jsonl").unlink(missing_ok=True)
    return trainer.run()


class _Trainer:
    def __init__(
        self, model: Model, data: Sequence, config: FitConfig, folder: Path, samples: Samples | None, phases: tuple[str, ...]
    ) -> None:
        self.config, self.data, self.folder, self.samples = config, data, folder, samples
        groups = {phase: model.phase_parameters(phase) for phase in phases}
        trained = sum(p.requires_grad for p in model.parameters())
        partial_phases = any(sum(len(g["params"]) for g in groups[phase]) < trained for phase in phases)
        join()
        AcceleratorState._reset_state()  # an earlier stage may have set another precision
        self.accelerator = Accelerator(
            mixed_precision=config.precision,
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=str(folder / "tensorboard"),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=partial_phases)],
        )
        check_processes("processes", config.processes, self.accelerator.num_processes)
        self.rank, self.main = self.accelerator.process_index, self.accelerator.is_main_process
        set_seed(own_seed(config.seed, self.rank))
        rate, betas, decay = config.learning_rate, config.betas, config.weight_decay
        fused = self.accelerator.device.type == "cpu"  # nine times as fast on a CPU; on a GPU torch chooses
        optimizers = [torch.optim.AdamW(groups[phase], rate, betas, weight_decay=decay, fused=fused) for phase in phases]
        self.plain = model
        prepared = self.accelerator.prepare(model, *optimizers)
        self.model, self.optimizers = prepared[0], dict(zip(phases, prepared[1:]))
        self.unwrapped = self.accelerator.unwrap_model(self.model)
        self.names = {p: name for name, p in self.unwrapped.named_parameters()}  # sharding has replaced the parameters
        self.averaged = self._averaged_tensors() if config.ema else {}
        self.average = {name: value.clone() for name, value in self.averaged.items()}
        if config.compile:
            self.model = torch.compile(self.model)
        self.step, self.items, self.seconds = 0, 0, 0.0
        self.window: dict[str, tuple[Tensor | float, int]] = {}  # sum and weight since the last line of the log
        self.finish: Callable[[Model], None] | None = None
        self.signal: int | None = None
        self.stopped: int | None = None

    def run(self) -> Model:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.config.tracker != "none":
            self.accelerator.init_trackers("mmgen")
        order = Order(len(self.data), self.config, self.step, self.rank, self.accelerator.num_processes)
        # a separate generator, so that starting the workers does not draw from the global one
        loader = iter(
            DataLoader(
                _Batches(self.data, self.plain.sequences),
                sampler=order,
                batch_size=None,  # the sampler yields whole batches
                num_workers=self.config.workers,
                collate_fn=_as_it_is,
                generator=torch.Generator().manual_seed(self.config.seed),
                pin_memory=self.accelerator.device.type == "cuda",
            )
        )
        self.model.train()
        with (
            _signals(self),
            tqdm(
                total=self.config.steps,
                initial=self.step,
                disable=not self.main,
                unit="step",
                desc=self.folder.name,
                dynamic_ncols=True,
            ) as bar,
        ):
            while self.step < self.config.steps:
                with _workers_alive():
                    self._step(loader, order)
                self._after_step(bar)
        for tracker in self.accelerator.trackers:  # not end_training(), as the next stage needs the process group
            tracker.finish()
        model = self._finish()
        if self.stopped is not None:  # the last step is done, but no further stage may begin
            raise Interrupted(self.step, self.stopped)
        return model

    def _step(self, loader: Iterator, order: Order) -> None:
        began = time.perf_counter()
        batches = [_batch(next(loader)) for _ in range(self.config.accumulation)]
        counts = self._counts(batches)  # before the batches are moved, so that no device has to be waited for
        batches = [batch.to(self.accelerator.device) for batch in batches]
        rate = learning_rate(self.config, self.step)
        self.unwrapped.step.fill_(self.step)
        for phase, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
            for number, batch in enumerate(batches):
                last = number == len(batches) - 1
                with nullcontext() if last else self.accelerator.no_sync(self.model):
                    losses = Losses(self.model(batch, phase))
                    total = losses.total
                    if not math.isfinite(value := total.item()):
                        raise _not_finite(losses, value, self.step, order.batch(self.step * len(batches) + number))
                    own, whole_step = counts[phase][number], counts[phase][-1]
                    loss = losses.divided(self._divisors(own, whole_step))
                    self.accelerator.backward(loss)
                prefix = "" if len(self.optimizers) == 1 else f"{phase}/"
                for name, term in [*losses.items(), *self.unwrapped.monitored.items()]:
                    if items := own.get(name, own[REST]):
                        self._count(prefix + name, term * items, items)
                self._count(f"{prefix}loss", loss * (whole_step[REST] / self.accelerator.num_processes), own[REST])
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            if self.config.clip:
                norm = self.accelerator.clip_grad_norm_(parameters, self.config.clip)
                if norm is not None:
                    self._count("gradient_norm" if len(self.optimizers) == 1 else f"{phase}/gradient_norm", norm, 1)
            optimizer.step()
            # clear all gradients, as a phase may also write to parameters of another phase
            self.model.zero_grad(set_to_none=True)
        if self.average:
            torch._foreach_lerp_(list(self.average.values()), list(self.averaged.values()), 1 - self.config.ema)
        self.step += 1
        self.items += sum(batch.size for batch in batches) * self.accelerator.num_processes
        self.seconds += time.perf_counter() - began

    def _counts(self, batches: Sequence[Batch]) -> dict[str, list[dict[str, int]]]:
        """Numbers of usable items by phase and term: of each batch, and last of all batches of all processes."""
        counts = {}
        for phase in self.optimizers:
            own = [{name: int(rows.sum()) for name, rows in self.unwrapped.usable(b, phase).items()} for b in batches]
            counts[phase] = [*own, {name: sum(some[name] for some in own) for name in own[0]}]
        if self.accelerator.num_processes > 1:
            totals = torch.tensor([n for some in counts.values() for n in some[-1].values()], device=self.accelerator.device)
            torch.distributed.all_reduce(totals)
            found = iter(totals.tolist())
            for some in counts.values():
                some[-1] = {name: next(found) for name in some[-1]}
        return counts

    def _divisors(self, own: Mapping[str, int], whole_step: Mapping[str, int]) -> dict[str, float]:
        """Divisors of the terms of a batch, so that the mean over processes of their sums is the mean over all items."""
        processes = self.accelerator.num_processes
        return {name: whole_step[name] / (n * processes) if n else math.inf for name, n in own.items()}

    def _count(self, name: str, value: Tensor, weight: int) -> None:
        value = whole(value.detach()).float()
        total, before = self.window.get(name, (0.0, 0))
        self.window[name] = (total + value, before + weight)

    def _window(self) -> dict[str, tuple[float, int]]:
        """Sums and weights of the logged figures over all processes, which may have counted different figures."""
        own = {name: (float(total), weight) for name, (total, weight) in self.window.items()}
        everyone = gather_object([own])
        names = dict.fromkeys(name for some in everyone for name in some)
        parts = {name: [some[name] for some in everyone if name in some] for name in names}
        return {name: (sum(total for total, _ in some), sum(n for _, n in some)) for name, some in parts.items()}

    def _after_step(self, bar: tqdm) -> None:
        bar.update(1)
        config, done = self.config, self.step == self.config.steps
        if self.step % config.log_every == 0 or done:
            self._log(bar)
        stop = self._asked_to_stop()
        if self.samples and config.sample_every and (self.step % config.sample_every == 0 or done):
            self._sample()
        if self.step % config.checkpoint_every == 0 or done or stop is not None:
            self.save()
        self.stopped = stop
        if stop is not None and not done:
            raise Interrupted(self.step, stop)

    def _log(self, bar: tqdm) -> None:
        means = {name: total / weight for name, (total, weight) in self._window().items() if weight}
        rate = learning_rate(self.config, self.step - 1)
        figures = {"step": self.step, **means, "learning_rate": rate, "items_per_s": self.items / self.seconds}
        self.window, self.items, self.seconds = {}, 0, 0.0
        if self.main:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")
            shown = {name: f"{figures[name]:.4g}" for name in figures if name.endswith("loss")}
            bar.set_postfix(None, False, lr=f"{rate:.2g}", items_per_s=f"{figures['items_per_s']:.1f}", **shown)
        if self.config.tracker != "none":
            self.accelerator.log({name: value for name, value in figures.items() if name != "step"}, step=self.step)

    def _asked_to_stop(self) -> int | None:
        if self.accelerator.num_processes == 1:
            return self.signal
        # all processes must stop at the same step, but may receive the signal at different steps
        received = torch.tensor(self.signal or 0, device=self.accelerator.device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        return int(received) or None

    def _sample(self) -> None:
        # sampling must not change the state of training's generators
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        if self.samples and self.main and self.accelerator.distributed_type != "FSDP":
            with torch.random.fork_rng(devices), self._averaged(), torch.no_grad():
                self.plain.eval()
                self.samples(self.plain, self.folder / "samples" / f"step_{self.step:08d}")
        self.model.train()
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Replace the weights temporarily by their moving average, if there is one."""
        kept = {name: value.clone() for name, value in self.averaged.items()}
        with torch.no_grad():
            for name, value in self.average.items():
                self.averaged[name].copy_(value)
            yield
            for name, value in kept.items():
                self.averaged[name].copy_(value)

    def _averaged_tensors(self) -> dict[str, Tensor]:
        """Tensors of the moving average: trained parameters, and real buffers that are saved."""
        trained = {name: p.detach() for p, name in self.names.items() if p.requires_grad}
        saved = self.unwrapped.own_state().keys()
        return trained | {n: b for n, b in self.unwrapped.named_buffers() if n in saved and b.is_floating_point()}

    def save(self) -> None:
        tensors = {"model.safetensors": self.unwrapped.own_state()}
        for phase, optimizer in self.optimizers.items():
            tensors[f"optimizer_{phase}.safetensors"] = ckpt.optimizer_tensors(optimizer.optimizer, self.names)
        if self.average:
            tensors["ema.safetensors"] = {name: whole(v) for name, v in self.average.items()}
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}
        state = {
            "step": self.step,
            "model": self.plain.name,
            "processes": self.accelerator.num_processes,
            "logged": self._window(),
            "items": self.items,
            "seconds": self.seconds,
            "scaler": scaler,
        }
        ckpt.write(
            self.folder / "checkpoints",
            self.step,
            tensors,
            state,
            self.config.keep,
            self.rank,
            self.accelerator.wait_for_everyone,
        )

    def load(self, folder: Path) -> None:
        state = ckpt.read_state(folder)
        if state["model"] != self.plain.name:
            fix = "resume with the config that wrote it, or choose another --out"
            raise UserError(str(folder), got=f"a {state['model']}", expected=f"a {self.plain.name}", fix=fix)
        if state["processes"] != self.accelerator.num_processes:
            fix = f"resume with --processes {state['processes']}"
            raise UserError(
                str(folder), got=f"{state['processes']} processes", expected=f"{self.accelerator.num_processes}", fix=fix
            )
        self.unwrapped.load_own_state(ckpt.read_tensors(folder, "model.safetensors"), str(folder))
        for phase, optimizer in self.optimizers.items():
            file = f"optimizer_{phase}.safetensors"
            ckpt.load_optimizer_tensors(optimizer.optimizer, self.names, ckpt.read_tensors(folder, file), str(folder / file))
        if self.average:
            self.averaged = self._averaged_tensors()  # loading may have replaced buffers
            saved = ckpt.read_tensors(folder, "ema.safetensors")
            self.average = {name: like(saved[name], value) for name, value in self.averaged.items()}
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.main:  # it is that of all processes
            device = self.accelerator.device
            self.window = {name: (torch.tensor(total, device=device), n) for name, (total, n) in state["logged"].items()}
        self.step, self.items, self.seconds = state["step"], state["items"], state["seconds"]
        ckpt.restore_random_state(folder, self.rank)
        if self.main:
            _cut_log(self.folder / "metrics.jsonl", self.step)

    def _finish(self) -> Model:
        with torch.no_grad():
            for name, value in self.average.items():
                self.averaged[name].copy_(value)
        if self.finish:
            self.finish(self.unwrapped.eval())
        state = self.unwrapped.own_state()
        if self.main:
            partial_folder = self.folder / ".partial_model"
            shutil.rmtree(partial_folder, ignore_errors=True)
            with ckpt.whole_or_nothing(f"model in {self.folder}", partial_folder):
                partial_folder.mkdir()
                self.unwrapped.write(partial_folder, state)
                shutil.rmtree(self.folder / "model", ignore_errors=True)
                partial_folder.rename(self.folder / "model")
        self.accelerator.wait_for_everyone()
        return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False, keep_torch_compile=False).eval()


class _Batches(Dataset):
    """Batches by lists of items; a `UserError` is returned, as raising it in a data worker would lose its message."""

    def __init__(self, data: Sequence[Mapping[str, Tensor | None]], sequences: Sequence[str]) -> None:
        self.data, self.sequences = data, sequences

    def __getitem__(self, items: list[int]) -> Batch | UserError:
        try:
            return collate([self.data[i] for i in items], self.sequences)
        except UserError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _batch(batch: Batch | UserError) -> Batch:
    if isinstance(batch, UserError):
        raise batch
    return batch


@contextmanager
def _workers_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        expected = "all to run until the end"
        fix = "see above; usually a lack of memory: lower fit.workers or fit.batch_size, and continue with --resume"
        raise UserError("data workers", got=str(error), expected=expected, fix=fix) from error


@contextmanager
def _signals(trainer: _Trainer) -> Iterator[None]:
    def note(number: int, frame: FrameType | None) -> None:
        trainer.signal = number

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # only the main thread may handle signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _not_finite(losses: Mapping[str, Tensor], value: float, step: int, items: list[int]) -> UserError:
    terms = ", ".join(f"{name} {term.item():.4g}" for name, term in losses.items())
    return UserError(
        f"loss of step {step + 1} on items {items[:8]}{' and others' if len(items) > 8 else ''}",
        got=f"{value} ({terms})",
        expected="a finite number",
        fix="check these items, or lower fit.learning_rate; the previous checkpoint is intact",
    )


def _cut_log(file: Path, step: int) -> None:
    """Drop lines logged after the checkpoint, which will be written again."""
    if file.is_file():
        # a killed process may have left an incomplete last line
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        file.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")
