"""AdamW with warm-up, decay and clipping, as one optax transformation.

Adam's moments as in Kingma & Ba 2015, decoupled weight decay as in Loshchilov & Hutter 2019. torch's AdamW, which the
reference uses, decays every parameter by 1e-2 unless told otherwise; optax's default is 1e-4: configs say the number.
"""

import optax

DECAYS = ("constant", "linear", "cosine")


def learning_rate_schedule(learning_rate: float, steps: int, warmup_steps: int = 0, decay: str = "constant"):
    """step -> learning rate: linear from `learning_rate / warmup_steps` at step 0, then constant or down to 0 at `steps`."""
    if decay not in DECAYS:
        raise ValueError(f"decay={decay!r}: must be one of {', '.join(DECAYS)}")
    if not 0 <= warmup_steps <= steps:
        raise ValueError(f"warmup_steps={warmup_steps}: must lie between 0 and the number of steps, {steps}")
    after = {
        "constant": lambda n: optax.constant_schedule(learning_rate),
        "linear": lambda n: optax.linear_schedule(learning_rate, 0.0, n),
        "cosine": lambda n: optax.cosine_decay_schedule(learning_rate, n),
    }[decay](max(steps - warmup_steps, 1))
    if not warmup_steps:
        return after
    warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def adamw(
    learning_rate: float,
    steps: int,
    warmup_steps: int = 0,
    decay: str = "constant",
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.01,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW; `clip_norm` bounds the gradient's global norm (0: off)."""
    if learning_rate <= 0:
        raise ValueError(f"learning_rate={learning_rate}: must be positive")
    schedule = learning_rate_schedule(learning_rate, steps, warmup_steps, decay)
    transform = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip_norm), transform) if clip_norm else transform
