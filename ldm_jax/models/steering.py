"""A U-Net that a ControlNet steers (Zhang et al. 2023): what the ControlNet makes of x, its condition and a picture is added to
the U-Net's skips and its middle."""

from collections.abc import Mapping
from typing import Any

import jax

PyTree = Any
HINT = ("hint", "hint_scale")  # of a cond, for the ControlNet: pictures [B, H, W, 3] in [0, 1], and how much it counts [B]


class Steered:
    """Both as one network with a Linen module's `apply`; parameters {"network", "control"}."""

    guidance_dim = 0

    def __init__(self, network: Any, control: Any):
        self.network, self.control = network, control

    def apply(
        self, variables: Mapping[str, PyTree], x: jax.Array, t: jax.Array, cond: PyTree, s: Any = None, **options: Any
    ) -> jax.Array:
        """As the U-Net's, with HINT in `cond`."""
        params = variables["params"]
        told = {name: part for name, part in cond.items() if name not in HINT}
        seen = {name: part for name, part in told.items() if name != "concat"} | {"hint": cond["hint"]}
        parts = self.control.apply({"params": params["control"]}, x, t, seen, **options)
        strength = cond["hint_scale"][:, None, None, None]
        told["residuals"] = tuple(part * strength.astype(part.dtype) for part in parts)
        second = {} if s is None else {"s": s}
        return self.network.apply({"params": params["network"]}, x, t, told, **second, **options)


def begun(control: PyTree, network: PyTree) -> PyTree:
    """A ControlNet's parameters at first: of the U-Net that it is to steer all that both have, its way down, and what
    `control` has of the rest."""
    return {**control, **{name: network[name] for name in control if name in network}}
