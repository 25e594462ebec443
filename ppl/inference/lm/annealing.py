"""When to resample by how much: the rule of annealed particle filters over language-model steps."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp


def annealed(ess_share: Any, progress: Any) -> Any:
    """Soften resampling in the first half of the steps, the more the fewer particles count.

    For `ppl.smc(program, num_particles, resample_power=ppl.lm.annealed)`, which keeps the target:
    there, what resampling leaves of the weights stays on the particles. (The published rule drops
    it.)

    Args:
        ess_share: the effective share of the particles, ess / N.
        progress: how far the loop is, from 0 to 1.

    Returns:
        The inverse of the temperature max(1, (1 - progress) / ess_share) where the share is below
        a half and so is the progress; otherwise 1.

    Source: Puri et al. (2025), the annealed particle filter of its-hub.
    """
    early = (ess_share < 0.5) & (progress < 0.5)
    share = jnp.maximum(ess_share, 1e-6)
    return jnp.where(early, 1.0 / jnp.maximum(1.0, (1.0 - progress) / share), 1.0)
