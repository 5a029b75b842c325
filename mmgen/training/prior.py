"""Fitting of the priors "aggregate" and "flow_matching" to the posteriors of the training data, after training."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mmgen.data.batch import collate
from mmgen.errors import UserError, counted
from mmgen.latents.spaces import AggregatePrior, FlowMatchingPrior
from mmgen.models.multimodal_vae import MultimodalVAE
from mmgen.models.vae import VAE

ITEMS = 10_000  # largest number of training items to fit to, a sample of all
AT_ONCE = 250


def prior_fit(
    model: VAE | MultimodalVAE, data: Sequence[Mapping[str, Tensor | None]], seed: int
) -> Callable[[VAE | MultimodalVAE], None] | None:
    """Make the ``finish`` function of `mmgen.training.loop.fit` that fits such a prior; None for other priors.

    Args:
        model: the model, before training.
        data: rows of training items for `collate`; the prior is fitted to a posterior draw of each, or of each of a random
            sample of `ITEMS`.
        seed: seed of the sample and of the draws.

    Raises:
        UserError: there are fewer than two items, or fewer than components, which would otherwise fail only after training.
    """
    if not isinstance(model.prior, AggregatePrior | FlowMatchingPrior):
        return None
    name, components = (
        ("aggregate", len(model.prior.weight)) if isinstance(model.prior, AggregatePrior) else ("flow_matching", 1)
    )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    items = order[:ITEMS].sort().values.tolist()
    if len(items) < max(components, 2):
        expected = f"at least {components}, its components" if components > 1 else "at least 2, for a standard deviation"
        fix = f"set model.prior_settings.components={len(items)} or less" if len(items) > 1 else "set model.prior=standard"
        raise UserError(f"prior {name}", got=counted(len(items), "training item"), expected=expected, fix=fix)

    def finish(model: VAE | MultimodalVAE) -> None:
        parts = (items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE))
        batches = (collate([data[i] for i in part], model.sequences).to(model.step.device) for part in parts)
        model.fit_prior(batches, torch.Generator().manual_seed(seed))

    return finish
