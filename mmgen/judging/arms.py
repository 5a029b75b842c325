"""Arms of a study of peg insertion, which differ in the input of the policy: senses or a code of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mmgen.data.batch import Batch, collate
from mmgen.data.rows import spread
from mmgen.data.simulate.oracle import Oracle
from mmgen.data.simulate.peg_insertion import PegInsertion
from mmgen.data.touch import Transitions, sensed
from mmgen.modalities.features import mean_and_std
from mmgen.models.vision_touch import TOUCH, VISION, VisionTouch

MOMENTS = 2000  # time steps of the training data for standardising codes
NEWEST = 8  # newest force readings; a policy without a code sees their mean
# arm -> its senses, through a frozen code; "state" reads raw proprioception, "scratch" trains its encoders by PPO, and the
# oracle arms "told" and "told_touch" read the noisy position of the hole: an upper bound for a code that encodes it
ARMS = {
    "full": (*VISION, *TOUCH),
    "vision": VISION,
    "touch": TOUCH,
    "state": ("proprioception",),
    "scratch": (*VISION, *TOUCH),
    "told": ("told",),
    "told_touch": ("told", *TOUCH),
}


def sees(arm: str) -> bool:
    """True for an arm that reads pictures."""
    return any(sense in VISION for sense in ARMS[arm])


def environment(arm: str, shape: str, size: int, clearance: float, error: float, disturbance: str | None = None) -> Any:
    """An environment that renders only for vision arms, and exposes the hole only to oracle arms.

    Args:
        arm: a key of `ARMS`.
        shape, size, clearance, disturbance: see `mmgen.data.simulate.peg_insertion.PegInsertion`.
        error: error of the oracle, m, see `mmgen.data.simulate.oracle.Oracle`.
    """
    env = PegInsertion(shape, size, clearance, disturbance=disturbance, flow=False, vision=sees(arm))
    return Oracle(env, error) if "told" in ARMS[arm] else env


def view(
    model: VisionTouch, arm: str, without: Sequence[str] = ()
) -> Callable[[Mapping[str, np.ndarray]], np.ndarray | dict[str, np.ndarray]]:
    """A function from observations (n, ...) to the input of a policy: the mean of q(z | senses), or standardised senses.

    Args:
        model: the code, whose processors standardise the senses.
        arm: a key of `ARMS`.
        without: senses to leave out.
    """
    names = [sense for sense in ARMS[arm] if sense not in (*without, "told")]

    @torch.no_grad()
    def code(observations: Mapping[str, np.ndarray]) -> Any:
        n = len(next(iter(observations.values())))
        rows = [sensed({sense: observations[sense][i] for sense in names}, model.processors) for i in range(n)]
        senses = {sense: torch.stack([row[sense] for row in rows]) for sense in names}  # (n, ...)
        if "told" in ARMS[arm]:
            if "force" in senses:
                senses["force"] = senses["force"][..., -NEWEST:].mean(2)  # (n, 6)
            told = 100 * torch.from_numpy(np.asarray(observations["told"]))  # (n, 3) cm
            return torch.cat([told, *senses.values()], 1).numpy()
        if arm == "state":
            return senses["proprioception"].numpy()
        if arm == "scratch":
            return {sense: value.numpy() for sense, value in senses.items()}
        return model.encode(Batch(senses).to(model.step.device)).mean.float().cpu().numpy()  # (n, k)

    return code


@torch.no_grad()
def code_moments(model: VisionTouch, data: Transitions) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a code over time steps of episodes, (k,) each."""
    codes, chosen = [], spread(len(data), MOMENTS)
    for start in tqdm(range(0, len(chosen), 100), "codes of the training data", dynamic_ncols=True):
        batch = collate([data[i] for i in chosen[start : start + 100]]).keep(list(model.senses))
        codes.append(model.encode(batch.to(model.step.device)).mean.float().cpu())
    return mean_and_std(torch.cat(codes))
