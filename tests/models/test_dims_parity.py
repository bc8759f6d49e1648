"""U-Nets of one and three spatial axes against CompVis's own code, with random weights.

The reference is imported from a checkout of https://github.com/CompVis/latent-diffusion that LDM_COMPVIS names, and runs on
torch (both belong to the extra `parity`); without them these tests are skipped.
"""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import UNet

from .reference import assert_close, to_params

pytestmark = pytest.mark.parity
COMMON = {"in_channels": 2, "out_channels": 3, "model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2)}
CASES = {
    "1-D": (1, {"attention_resolutions": (2,), "num_heads": 2}, (12,)),
    "1-D, odd, blocks that resample": (1, {"attention_resolutions": (), "resblock_updown": True, "num_heads": 1}, (16,)),
    "1-D, pooled": (1, {"attention_resolutions": (1,), "conv_resample": False, "num_heads": 4}, (8,)),
    "2-D": (2, {"attention_resolutions": (2,), "num_heads": 2}, (8, 6)),
    "3-D": (3, {"attention_resolutions": (2,), "num_heads": 2}, (3, 8, 4)),
    "3-D, blocks that resample": (
        3, {"attention_resolutions": (2,), "resblock_updown": True, "use_scale_shift_norm": True, "num_heads": 1}, (5, 4, 8)
    ),
    "3-D, pooled": (3, {"attention_resolutions": (), "conv_resample": False, "num_heads": 2}, (2, 4, 4)),
}  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    """torch, and the reference's U-Net."""
    torch = pytest.importorskip("torch", reason="torch isn't there: pip install ldm_jax[parity]")
    folder = os.environ.get("LDM_COMPVIS", "")
    if not (Path(folder) / "ldm" / "modules" / "diffusionmodules" / "openaimodel.py").exists():
        pytest.skip("LDM_COMPVIS names no checkout of github.com/CompVis/latent-diffusion")
    sys.path.insert(0, folder)
    try:
        from ldm.modules.diffusionmodules.openaimodel import UNetModel
    finally:
        sys.path.remove(folder)
    return torch, UNetModel


@pytest.mark.parametrize("name", CASES)
def test_unets_of_any_rank(reference, name):
    torch, UNetModel = reference
    dims, options, space = CASES[name]
    torch.manual_seed(0)
    theirs = UNetModel(image_size=8, dims=dims, **COMMON, **options).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # no layer starts at zero
            fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 25
            parameter.copy_(torch.randn_like(parameter) / fan_in**0.5 + (parameter.ndim == 1) * 0.5)
        x, t = torch.randn(2, COMMON["in_channels"], *space), torch.tensor([3, 700])
        expected = np.moveaxis(theirs(x, t).numpy(), 1, -1)
    ours, inputs = UNet(**COMMON, **options, dims=dims), (jnp.asarray(np.moveaxis(x.numpy(), 1, -1)), jnp.float32([3, 700]))
    weights = {key: value.numpy() for key, value in theirs.state_dict().items()}
    with jax.default_matmul_precision("highest"):
        out = jax.jit(ours.apply)({"params": to_params(weights, ours, *inputs)}, *inputs)
    assert_close(out, expected, 2e-5, name)
