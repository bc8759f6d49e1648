"""The clock of a process: the time tau in which the velocity of its probability-flow ODE is what the network predicts.

    dx / d tau = y      flow, alpha + sigma = 1:      tau = sigma,               y = eps - x0 (Lipman et al. 2023)
                        v, alpha^2 + sigma^2 = 1:     tau = atan2(sigma, alpha), y = alpha eps - sigma x0
                                                                                                 (TrigFlow, Lu & Song 2024)

So an average of the network's predictions over tau is an average velocity, and an Euler step in tau with it is exact.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ldm_jax.diffusion.level import Level, namespace
from ldm_jax.diffusion.schedules import Cosine, Discrete, RectifiedFlow, Schedule


@dataclass(frozen=True)
class Clock:
    """tau of a level, and the level at a tau: sigma of a rectified flow, in [0, 1], else the angle arctan(sigma / alpha)."""

    schedule: Schedule

    @property
    def straight(self) -> bool:
        """Whether tau is sigma; else it is the angle."""
        return isinstance(self.schedule, RectifiedFlow)

    @property
    def prediction(self) -> str:
        """What the velocity is called among `PREDICTIONS`."""
        return "flow" if self.straight else "v"

    @property
    def end(self) -> float:
        """tau at the schedule's most noise; at its least it is 0, or nearly."""
        return float(self.of(self.schedule(np.float64(self.schedule.span[1]))))

    def of(self, level: Level) -> Any:
        """tau of a level."""
        return level.sigma if self.straight else namespace(level.sigma, level.alpha).arctan2(level.sigma, level.alpha)

    def at(self, tau: Any) -> Level:
        """The level at tau in [0, end]; t is differentiable in tau inside."""
        if self.straight:
            return Level(self.schedule.time_scale * tau, 1 - tau, tau)
        xp = namespace(tau)
        alpha, sigma = xp.cos(tau), xp.sin(tau)
        log_snr = 2 * (xp.log(xp.maximum(alpha, 1e-20)) - xp.log(xp.maximum(sigma, 1e-20)))
        return Level(self.schedule.from_log_snr(log_snr).t, alpha, sigma)


def has_clock(schedule: Schedule, prediction: Any) -> bool:
    """Whether this prediction is the velocity of this process: "flow" of a rectified flow, "v" of a variance-preserving one."""
    kinds = {"flow": RectifiedFlow, "v": (Cosine, Discrete)}
    return isinstance(prediction, str) and prediction in kinds and isinstance(schedule, kinds[prediction])


def make_clock(schedule: Schedule, prediction: Any, what: str) -> Clock:
    """The clock of a process whose velocity `prediction` is. ValueError, naming `what` asks for one, for others."""
    if not has_clock(schedule, prediction):
        raise ValueError(
            f"{what} averages the velocity of the process, and {prediction!r} is not that of {schedule}: choose "
            "prediction='flow' with schedule='flow', or prediction='v' with a variance-preserving schedule such as 'cosine'"
        )
    return Clock(schedule)
