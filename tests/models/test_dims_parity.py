"""U-Nets and autoencoders of one and three spatial axes against CompVis's own code, with random weights.

Its autoencoder is of two axes: here its code runs with convolutions and padding of as many axes as wanted, without attention.
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

from ldm_jax.models import Autoencoder, UNet

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
    """torch, the reference's U-Net, and its module of autoencoders."""
    torch = pytest.importorskip("torch", reason="torch isn't there: pip install ldm_jax[parity]")
    folder = os.environ.get("LDM_COMPVIS", "")
    if not (Path(folder) / "ldm" / "modules" / "diffusionmodules" / "openaimodel.py").exists():
        pytest.skip("LDM_COMPVIS names no checkout of github.com/CompVis/latent-diffusion")
    sys.path.insert(0, folder)
    try:
        from ldm.modules.diffusionmodules import model
        from ldm.modules.diffusionmodules.openaimodel import UNetModel
    finally:
        sys.path.remove(folder)
    return torch, UNetModel, model


def draw(torch, module):
    """Parameters none of which is zero."""
    for parameter in module.parameters():
        fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 25
        parameter.copy_(torch.randn_like(parameter) / fan_in**0.5 + (parameter.ndim == 1) * 0.5)


@pytest.mark.parametrize("name", CASES)
def test_unets_of_any_rank(reference, name):
    torch, UNetModel, _ = reference
    dims, options, space = CASES[name]
    torch.manual_seed(0)
    theirs = UNetModel(image_size=8, dims=dims, **COMMON, **options).eval()
    with torch.no_grad():
        draw(torch, theirs)
        x, t = torch.randn(2, COMMON["in_channels"], *space), torch.tensor([3, 700])
        expected = np.moveaxis(theirs(x, t).numpy(), 1, -1)
    ours, inputs = UNet(**COMMON, **options, dims=dims), (jnp.asarray(np.moveaxis(x.numpy(), 1, -1)), jnp.float32([3, 700]))
    weights = {key: value.numpy() for key, value in theirs.state_dict().items()}
    with jax.default_matmul_precision("highest"):
        out = jax.jit(ours.apply)({"params": to_params(weights, ours, *inputs)}, *inputs)
    assert_close(out, expected, 2e-5, name)


@pytest.mark.parametrize(("dims", "space"), [(1, (12,)), (2, (8, 4)), (3, (4, 8, 12))])
def test_autoencoders_of_any_rank(reference, dims, space, monkeypatch):
    torch, _, model = reference
    torch.manual_seed(0)
    pad = torch.nn.functional.pad
    monkeypatch.setattr(torch.nn, "Conv2d", getattr(torch.nn, f"Conv{dims}d"))
    monkeypatch.setattr(torch.nn.functional, "pad", lambda x, _, **options: pad(x, (0, 1) * dims, **options))
    fields = {"ch": 32, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "attn_resolutions": (), "resolution": 8, "z_channels": 3}
    options = {**fields, "in_channels": 2, "out_ch": 2, "attn_type": "none"}
    theirs = torch.nn.ModuleDict({"encoder": model.Encoder(**options), "decoder": model.Decoder(**options)})
    ours = Autoencoder(**options, embed_dim=3, use_quant_conv=False, use_post_quant_conv=False, dims=dims, strides=(2,) * dims)
    with torch.no_grad():
        draw(torch, theirs)
        x = torch.randn(2, 2, *space)
        moments = theirs["encoder"](x)
        expected = moments, theirs["decoder"](moments[:, :3])
    inputs = jnp.asarray(np.moveaxis(x.numpy(), 1, -1))
    params = {"params": to_params({key: value.numpy() for key, value in theirs.state_dict().items()}, ours, inputs)}
    with jax.default_matmul_precision("highest"):
        found = ours.apply(params, inputs, method="encode"), ours.apply(params, inputs)
    for out, wanted, what in zip(found, expected, ("moments", "reconstruction")):
        assert_close(out, jnp.asarray(np.moveaxis(wanted.numpy(), 1, -1)), 2e-5, f"{what}, {dims}-D")
