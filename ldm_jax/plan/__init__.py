"""What a training step costs before it is paid for: compiled ahead of time for chips that aren't there, and read.

topology    chips by name, and what one of them can do
program     the compiled step: memory, operations, collectives
report      tables, days and cost
"""

from etils import epy

# When first used: `python -m ldm_jax.plan` reads its flags before jax is there.
with epy.lazy_api_imports(globals()):
    from ldm_jax.plan.program import Plan, compile_sampling, compile_training, largest_batch, sweep
    from ldm_jax.plan.report import as_dict, in_words, table
    from ldm_jax.plan.topology import CHIPS, Chip, chip_of, devices_of

__all__ = [
    "CHIPS", "Chip", "Plan", "as_dict", "chip_of", "compile_sampling", "compile_training", "devices_of", "in_words",
    "largest_batch", "sweep", "table",
]  # fmt: skip
