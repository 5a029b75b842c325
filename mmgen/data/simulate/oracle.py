"""An oracle for peg insertion: observations that also hold the place of the hole, with an error."""

from typing import Any

import numpy as np

from mmgen.data.simulate.scene import DEPTH

try:
    import gymnasium

    Wrapper: Any = gymnasium.ObservationWrapper
except ImportError:  # the module can be imported without the extra; there is no environment to wrap
    Wrapper = object


class Oracle(Wrapper):
    """Peg insertion whose observation also holds, with an error, where the hole is: what a good code of vision would tell.

    ``told`` (3,) float32 is the way from the tip to the hole's mouth, m. To each number two normal errors are added, one of
    the episode and one of the moment, of the same standard deviation.

    Args:
        env: a `mmgen.data.simulate.peg_insertion.PegInsertion`.
        error: standard deviation of each error, m, >= 0.
    """

    def __init__(self, env: Any, error: float) -> None:
        super().__init__(env)
        self.error = error
        box = {"told": gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)}
        self.observation_space = gymnasium.spaces.Dict({**env.observation_space.spaces, **box})

    def reset(self, **how: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode, with errors that depend on where its hole is."""
        observation, info = self.env.reset(**how)
        self._errors = np.random.default_rng(info["hole"].view(np.uint64))
        self._of_episode = self.error * self._errors.standard_normal(3)
        return self.observation(observation), info

    def observation(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add ``told`` to an observation."""
        env = self.env.unwrapped
        way = [*env.hole[:2] - env.pose[:2], DEPTH - env.pose[2]]
        told = way + self._of_episode + self.error * self._errors.standard_normal(3)
        return observation | {"told": told.astype(np.float32)}
