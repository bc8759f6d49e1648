"""AdamW, Muon or another optimizer of optax, with warm-up, decay and clipping, as one optax transformation.

Adam's moments as in Kingma & Ba 2015, decoupled weight decay as in Loshchilov & Hutter 2019. torch's AdamW, which the
reference uses, decays every parameter by 1e-2 unless told otherwise; optax's default is 1e-4: configs say the number.

Muon (Jordan et al. 2024) orthogonalises the momentum of every kernel, convolutions as matrices [inputs, outputs]; all
else is left to Adam at a tenth of the learning rate. Updates have the size of Adam's (Liu et al. 2025), so learning
rates are alike. It learns far more from few steps; of a small model's step on a CPU it takes a sixth (docs/performance.md).
"""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import optax

from ldm_jax.primitives.choices import check_choice
from ldm_jax.training.muon import muon

DECAYS = ("constant", "linear", "cosine", "inverse_sqrt", "wsd")
FINAL = 0.2  # of the steps after warm-up: the part in which "wsd" falls


def learning_rate_schedule(learning_rate: float, steps: int, warmup_steps: int = 0, decay: str = "constant"):
    """step -> learning rate: linear from `learning_rate / warmup_steps` at step 0, then as `decay` says.

    "constant"; "linear" or "cosine" to 0 at `steps`; "inverse_sqrt": falls with 1 / sqrt(step), from the end of the warm-up
    (or from step 1); "wsd" (warm-up, stable, decay; Hu et al. 2024): constant, and linear to 0 over the last fifth.
    """
    if decay not in DECAYS:
        raise ValueError(f"decay={decay!r}: must be one of {', '.join(DECAYS)}")
    if not 0 <= warmup_steps <= steps:
        raise ValueError(f"warmup_steps={warmup_steps}: must lie between 0 and the number of steps, {steps}")
    after = {
        "constant": lambda n: optax.constant_schedule(learning_rate),
        "linear": lambda n: optax.linear_schedule(learning_rate, 0.0, n),
        "cosine": lambda n: optax.cosine_decay_schedule(learning_rate, n),
        "inverse_sqrt": lambda n: lambda step: learning_rate * (1 + step / max(warmup_steps, 1)) ** -0.5,
        "wsd": lambda n: optax.join_schedules(
            [
                optax.constant_schedule(learning_rate),
                optax.linear_schedule(learning_rate, 0.0, max(round(FINAL * n), 1)),
            ],
            [n - max(round(FINAL * n), 1)],
        ),
    }[decay](max(steps - warmup_steps, 1))
    if not warmup_steps:
        return after
    warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


OTHERS = (
    "adabelief", "adafactor", "adam", "adamax", "adamaxw", "adan", "amsgrad", "lamb", "lion", "nadam", "nadamw", "novograd",
    "radam", "rmsprop", "sgd", "yogi",
)  # of optax, by its names  # fmt: skip
OPTIMIZERS = ("adamw", "muon", *OTHERS)
MOMENTUM = ("rmsprop", "sgd")  # whose `momentum` b1 is


def make_optimizer(
    name: str,
    learning_rate: float,
    steps: int,
    warmup_steps: int = 0,
    decay: str = "constant",
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.01,
    clip_norm: float = 0.0,
    mu_dtype: str = "float32",
) -> optax.GradientTransformation:
    """One of OPTIMIZERS; `clip_norm` bounds the gradient's global norm (0: off); `mu_dtype`: of the first moments, "float32" or
    "bfloat16".

    Optimizers of optax get those of `b1`, `b2`, `weight_decay` and `mu_dtype` that they take; all else is optax's default.

    Raises:
      ValueError: for what can't be, such as a `weight_decay` or another `mu_dtype` for an optimizer that has none.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer={name!r}: must be one of {', '.join(OPTIMIZERS)}")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate={learning_rate}: must be positive and finite")
    check_choice(mu_dtype, ("float32", "bfloat16"), "mu_dtype")
    schedule = learning_rate_schedule(learning_rate, steps, warmup_steps, decay)
    if name == "muon":
        transform = muon(schedule, lambda step: 0.1 * schedule(step), b1, b2, weight_decay, mu_dtype)
    else:
        settings = {"b1": b1, "b2": b2, "weight_decay": weight_decay, "mu_dtype": mu_dtype}
        transform = getattr(optax, name)(schedule, **_taken(name, settings))
    return optax.chain(optax.clip_by_global_norm(clip_norm), transform) if clip_norm else transform


def _taken(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that an optimizer of optax takes, by its own names; ValueError for one that it lacks and is not off."""
    known = inspect.signature(getattr(optax, name)).parameters
    theirs = {"weight_decay": "weight_decay_rate", "mu_dtype": "dtype_momentum"} if name == "adafactor" else {}
    for key, off in (("weight_decay", 0.0), ("mu_dtype", "float32")):
        if settings[key] != off and theirs.get(key, key) not in known:
            raise ValueError(f"{key}={settings[key]!r}: {name} of optax has none; leave it at {off!r}")
    taken = {theirs.get(key, key): value for key, value in settings.items() if theirs.get(key, key) in known}
    return taken | ({"momentum": settings["b1"] or None} if name in MOMENTUM else {})


def by_part(optimizers: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """An optimizer for each part of the parameters (a part is a top-level name). Parts that an update has no gradient of, or
    that have no optimizer, stay as they are, moments included."""

    def init(params):
        return {name: optimizer.init(params[name]) for name, optimizer in optimizers.items()}

    def update(grads, state, params=None):
        updated = {name: optimizers[name].update(grads[name], state[name], params[name]) for name in grads}
        updates = {name: moved for name, (moved, _) in updated.items()}
        return updates, {**state, **{name: new for name, (_, new) in updated.items()}}

    return optax.GradientTransformation(init, update)


def passing_by(optimizer: optax.GradientTransformation, parts: Collection[str]) -> optax.GradientTransformation:
    """The optimizer, for parameters some parts of which are set rather than descended, and have no gradient."""

    def rest(params):
        return {name: part for name, part in params.items() if name not in parts}

    def update(grads, state, params=None):
        return optimizer.update(grads, state, rest(params))

    return optax.GradientTransformation(lambda params: optimizer.init(rest(params)), update)


def trained_only(optimizer: optax.GradientTransformation, frozen: Collection[str]) -> optax.GradientTransformation:
    """The optimizer, for all but the subtrees `frozen` of the parameters' top level."""

    def labels(params):
        return {name: "frozen" if name in frozen else "trained" for name in params}

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)
