"""Plans as text: one in words, several as a table, or plain values."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ldm_jax.plan.program import Plan
from ldm_jax.plan.topology import TPUS

GB = 1e9


def in_words(plan: Plan, price: float = 0.0) -> str:
    """What one program costs. `price`: of a chip for an hour."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one chip"
    lines = [
        f"{plan.name}: batch {plan.batch_size} on {plan.chips} x {plan.topology or 'a chip, rules alone'} ({mesh})",
        f"  parameters {plan.parameters / 1e6:,.1f} M; a chip holds {plan.params / GB:.3f} GB of them and their average, "
        f"{plan.optimizer / GB:.3f} GB of moments, {plan.fixed / GB:.3f} GB that is not trained",
    ]
    if plan.peak is not None:
        fits = "fits" if plan.fits else "DOES NOT FIT"
        lines.append(
            f"  memory a chip: {plan.arguments / GB:.2f} GB arguments + {plan.temporaries / GB:.2f} GB temporaries, peak "
            f"{plan.peak / GB:.2f} of {plan.chip.memory / GB:.2f} GB: {fits}"
        )
        lines.append(f"  a step: {plan.flops / 1e12:.3f} TFLOP and {plan.traffic / GB:.2f} GB of memory traffic a chip")
        moved = "; ".join(f"{count} {kind} of {size / 1e6:.1f} MB" for kind, (count, size) in plan.collectives.items())
        lines.append(f"  between chips: {moved or 'nothing'}")
        lines.append(
            f"  roofline: {plan.seconds * 1e3:.1f} ms, {plan.batch_size / plan.seconds:.0f} images/s, "
            f"{plan.mfu:.0%} of the peak" + (f"; {schedule(plan, price)}" if plan.steps > 1 else "")
        )
    elif plan.topology:
        tpu = plan.chip.name in TPUS
        advice = "libtpu brings it (the extra tpu-plan)" if tpu else "its compiler comes with the device"
        lines.append(f"  by the rules alone: no compiler for {plan.chip.name} is here; {advice}")
    if plan.largest_batch is not None:
        lines.append(f"  largest batch that fits: {plan.largest_batch}")
    return "\n".join(lines)


def schedule(plan: Plan, price: float = 0.0) -> str:
    """How long all of the config's steps take at that speed, and what they cost."""
    hours = plan.seconds * plan.steps / 3600
    cost = f", {price * hours * plan.chips:,.0f} at {price:g} a chip and hour" if price else ""
    return f"{plan.steps:,} steps in {hours / 24:.2f} days{cost}"


def table(plans: Sequence[Plan]) -> str:
    """A row of Markdown for each."""
    rows = [
        "| topology | mesh | batch | peak GB | fits | GB moved | between chips MB | ms | images/s | MFU |",
        "|" + "---|" * 10,
    ]
    for plan in plans:
        mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "1"
        compiled = ["-"] * 7
        if plan.peak is not None:
            between = sum(size for _, size in plan.collectives.values()) / 1e6
            compiled = [
                f"{plan.peak / GB:.2f}", "yes" if plan.fits else "no", f"{plan.traffic / GB:.1f}", f"{between:.0f}",
                f"{plan.seconds * 1e3:.1f}", f"{plan.batch_size / plan.seconds:.0f}", f"{plan.mfu:.0%}",
            ]  # fmt: skip
        rows.append("| " + " | ".join([str(plan.topology), mesh, str(plan.batch_size), *compiled]) + " |")
    return "\n".join(rows)


def as_dict(plan: Plan, price: float = 0.0) -> dict[str, Any]:
    """Plain values, for JSON."""
    found = dataclasses.asdict(plan) | {"fits": plan.fits, "seconds": plan.seconds, "mfu": plan.mfu}
    if plan.seconds and price:
        found["cost"] = price * plan.seconds * plan.steps / 3600 * plan.chips
    return found
