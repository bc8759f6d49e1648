"""A folder of pictures -> a config: what is decided from what is there, the machine and a time budget.

    survey(path)                          what is there            (data.survey)
    decide(found, machine) -> Decision    condition, sizes, split, model, batches, and why
    measure(config, stage) -> Cost        what starting and a step take on this machine
    budget(seconds, costs, ...)           the steps that fit
    script(base, config) -> text          the config as a file like those of configs/
"""

from ldm_jax.own_data.budget import Cost, Plan, budget, in_words, measure, with_steps
from ldm_jax.own_data.decision import Decision, Machine, apply, decide, unconditional
from ldm_jax.own_data.script import script

__all__ = [
    "Cost", "Decision", "Machine", "Plan", "apply", "budget", "decide", "in_words", "measure", "script", "unconditional",
    "with_steps",
]  # fmt: skip
