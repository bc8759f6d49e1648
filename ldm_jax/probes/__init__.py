"""Probes: small networks trained on real pictures, which say whether drawn ones show what their conditions say.

    python -m ldm_jax.probes train --kind classifier --data FLOWERS --size 64 --flip --out PROBE
    python -m ldm_jax.probes train --kind contrastive --data runs/shapes --out PROBE

    probe = probes.load("PROBE")
    probe(images)                    classifier: probabilities [N, K]; segmenter: label maps [N, H, W];
                                     contrastive: unit vectors [N, D]
    probe.words(["a red circle"])    contrastive with captions: unit vectors [N, D]

A classifier needs the column `label`, a segmenter `label_map`. A contrastive probe learns captions if there are any, and
otherwise to tell each picture from the others through crops and changes of colour (Chen et al. 2020, "SimCLR").
"""

from etils import epy

# When first used: `python -m ldm_jax.probes` reads its flags before jax is there.
with epy.lazy_api_imports(globals()):
    from ldm_jax.probes.learning import measure, train
    from ldm_jax.probes.probe import AT_ONCE, KINDS, Probe, described, in_parts, is_probe, load, seen, write

__all__ = ["AT_ONCE", "KINDS", "Probe", "described", "in_parts", "is_probe", "load", "measure", "seen", "train", "write"]
