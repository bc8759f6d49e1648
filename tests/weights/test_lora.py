"""LoRA files of every layout, read to the same factors."""

import json

import jax
import numpy as np
import pytest

from ldm_jax import weights
from ldm_jax.weights import layouts, naming, safetensors_files, torch_files

from . import test_read

OF = {"network": test_read.NETWORK, "conditioner": test_read.CLIP}
RNG = np.random.default_rng(0)
LAYERS = {  # as in diffusers -> (inputs, outputs)
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": 64,
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0": 64,
}
WORDS = "text_model.encoder.layers.1.self_attn.q_proj"


def weight_of(layout, name: str) -> naming.Weight:
    return next(w for w in layout if f"{name}.weight" in w.diffusers)


@pytest.fixture(scope="module")
def pairs() -> dict:
    """name -> (down [r, in], up [out, r]); of rank 2."""
    unet, text = layouts.unet(OF["network"]), layouts.clip_text(OF["conditioner"])
    found = {}
    for name in (*LAYERS, WORDS):
        weight = weight_of(text if name == WORDS else unet, name)
        out, into = weight.shape[:2]
        found[name] = RNG.standard_normal((2, into), np.float32), RNG.standard_normal((out, 2), np.float32)
    return found


def delta(tree: dict, at: tuple) -> np.ndarray:
    for scope in at:
        tree = tree[scope]
    return tree["down"] @ tree["up"]


def expected(pairs: dict, scale: float = 1.0) -> dict:
    unet, text = layouts.unet(OF["network"]), layouts.clip_text(OF["conditioner"])
    found = {}
    for name, (down, up) in pairs.items():
        part, layout = ("conditioner", text) if name == WORDS else ("network", unet)
        found[part, *weight_of(layout, name).path] = scale * (up @ down).T
    return found


def check(path, pairs: dict, scale: float = 1.0) -> None:
    tree = weights.read_lora(path, OF)
    for at, wanted in expected(pairs, scale).items():
        np.testing.assert_allclose(delta(tree, at), wanted, rtol=1e-5, atol=1e-6)
    assert len(jax.tree.leaves(tree)) == 2 * len(pairs)


def part(name: str) -> str:
    return "text_encoder" if name == WORDS else "unet"


def peft(pairs):
    return {f"{part(n)}.{n}.lora_{x}.weight": a for n, pair in pairs.items() for x, a in zip("AB", pair)}


def old(pairs):
    """diffusers' before peft: attention processors, and layers of text encoders."""
    found = {}
    for name, pair in pairs.items():
        block, layer = name.rsplit(".", 1)
        if layer == "0":
            block, layer = block.rsplit(".", 1)
        spelled = f"{block}.processor.{layer}_lora" if part(name) == "unet" else f"{name}.lora_linear_layer"
        found |= {f"{part(name)}.{spelled}.{x}.weight": a for x, a in zip(("down", "up"), pair)}
    return found


def oldest(pairs):
    """Its text encoders' layers as a network's are called."""
    return {name.replace("q_proj.lora_linear_layer", "to_q_lora"): array for name, array in old(pairs).items()}


def kohya(pairs, alpha: float | None = 1.0, compvis: bool = False):
    names = {n: n for n in pairs}
    if compvis:
        names |= {n: weight_of(layouts.unet(OF["network"]), n).name.removesuffix(".weight") for n in LAYERS}
    found = {}
    for name, (down, up) in pairs.items():
        base = f"lora_{'te' if name == WORDS else 'unet'}_{names[name].replace('.', '_')}"
        found |= {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up}
        if alpha is not None:
            found[f"{base}.alpha"] = np.float32(alpha)
    return found


@pytest.mark.parametrize(
    "spelled, scale",
    [
        (peft, 1.0),
        (old, 1.0),
        (oldest, 1.0),
        (kohya, 0.5),
        (lambda p: kohya(p, 4.0), 2.0),
        (lambda p: kohya(p, None), 1.0),
        (lambda p: kohya(p, compvis=True), 0.5),
    ],
    ids=[
        "diffusers", "old diffusers", "oldest diffusers", "kohya", "kohya, alpha 4", "kohya without alpha",
        "kohya of CompVis's names",
    ],
)
def test_layouts(tmp_path, pairs, spelled, scale):
    tensors = {name: np.asarray(array) for name, array in spelled(pairs).items()}
    safetensors_files.write(tmp_path / "a.safetensors", tensors)
    check(tmp_path / "a.safetensors", pairs, scale)
    torch_files.write(tmp_path / "a.pt", tensors)
    check(tmp_path / "a.pt", pairs, scale)


def test_a_folder_of_peft_says_its_alpha(tmp_path, pairs):
    own = {name: pairs[name] for name in LAYERS}
    tensors = {f"base_model.model.{n}.lora_{x}.weight": a for n, pair in own.items() for x, a in zip("AB", pair)}
    safetensors_files.write(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6}))
    check(tmp_path, own, 3.0)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6, "use_rslora": True}))
    check(tmp_path, own, 6 / np.sqrt(2))


def test_settings_of_peft_are_for_its_own_names(tmp_path, pairs):
    """What another program saved into the same folder has its own rule: alpha is the rank unless a tensor says it."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6}))
    for spelled in (peft(pairs), kohya(pairs, None)):
        safetensors_files.write(tmp_path / "a.safetensors", spelled)
        check(tmp_path / "a.safetensors", pairs, 1.0)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{", "lora_adapter_metadata are not JSON"), ("[]", "are a list, not settings by name"),
        ('{"unet.lora_alpha": "8"}', "the alpha of unet.*is '8', not a number"),
        ('{"unet.lora_alpha": null}', "is None, not a number"),
        ('{"unet.lora_alpha": 2, "unet.alpha_pattern": {"(": 3}}', "alpha_pattern=.*unterminated"),
        ('{"unet.lora_alpha": 2, "unet.alpha_pattern": ["to_q"]}', "alpha_pattern="),
    ],
)  # fmt: skip
def test_settings_that_are_none(tmp_path, pairs, said, message):
    safetensors_files.write(tmp_path / "a.safetensors", peft(pairs), {"lora_adapter_metadata": said})
    with pytest.raises(ValueError, match=f"a.safetensors: .*{message}"):
        weights.read_lora(tmp_path / "a.safetensors", OF)
    if said[-2:] == "l}":
        own = {f"base_model.model.{n}.lora_{x}.weight": a for n in LAYERS for x, a in zip("AB", pairs[n])}
        safetensors_files.write(tmp_path / "a.safetensors", own)
        (tmp_path / "adapter_config.json").write_text('{"lora_alpha": null}')
        with pytest.raises(ValueError, match=f"adapter_config.json: .*{message}"):
            weights.read_lora(tmp_path / "a.safetensors", OF)


def test_a_model_that_is_told_a_picture_besides_takes_the_prompts_part(tmp_path, pairs):
    """Of Stable Diffusion for holes, and with several text encoders."""
    parts = {"picture": {"kind": "inpaint"}, "prompt": OF["conditioner"]}
    of = OF | {"conditioner": {"kind": "combined", "parts": parts}}
    for name, spelled in (("kohya", kohya(pairs, None)), ("diffusers", peft(pairs))):
        safetensors_files.write(tmp_path / f"{name}.safetensors", spelled)
        found, alone = (weights.read_lora(tmp_path / f"{name}.safetensors", each) for each in (of, OF))
        jax.tree.map(np.testing.assert_array_equal, found["conditioner"], {"prompt": alone["conditioner"]})
    weights.write_lora(tmp_path / "written.safetensors", of, found)
    check(tmp_path / "written.safetensors", pairs)
    towers = {"text_encoder": OF["conditioner"], "text_encoder_2": OF["conditioner"]}
    of["conditioner"]["parts"]["prompt"] = {"kind": "sdxl", "towers": towers}
    second = {name.replace("lora_te_", "lora_te2_"): array for name, array in kohya(pairs, None).items()}
    safetensors_files.write(tmp_path / "two.safetensors", second)
    found = weights.read_lora(tmp_path / "two.safetensors", of)["conditioner"]
    jax.tree.map(np.testing.assert_array_equal, found, {"prompt": {"text_encoder_2": alone["conditioner"]}})


def test_metadata_of_diffusers(tmp_path, pairs):
    said = {"unet.lora_alpha": 4, "unet.r": 2, "text_encoder.lora_alpha": 4, "text_encoder.r": 2}
    safetensors_files.write(tmp_path / "a.safetensors", peft(pairs), {"lora_adapter_metadata": json.dumps(said)})
    check(tmp_path / "a.safetensors", pairs, 2.0)


@pytest.mark.parametrize(
    ("pattern", "changed"),
    [
        (r"^mid_block\..*\.to_out\.0", 1), ("to_q", 0), ("attn1.to_q|attn9.to_v", 0), ("attn9.to_v|attn2.to_out.0", 1),
        ("^attn1.to_q", None), ("o_q", None), ("attn1", None), ("attn1|to_k", None),
    ],
)  # fmt: skip
def test_alphas_by_pattern(tmp_path, pairs, pattern, changed):
    """peft's rule: the layer's name in its model, all of it, or its end behind a dot, is the expression."""
    own = {name: pairs[name] for name in LAYERS}
    scales = [4.0 if index == changed else 2.0 for index in range(2)]
    scaled = {name: (down, scale * up) for scale, (name, (down, up)) in zip(scales, own.items())}
    tensors = {f"base_model.model.{n}.lora_{x}.weight": a for n, pair in own.items() for x, a in zip("AB", pair)}
    said = {"r": 2, "lora_alpha": 4, "alpha_pattern": {pattern: 8}}
    (tmp_path / "peft").mkdir()
    safetensors_files.write(tmp_path / "peft" / "adapter_model.safetensors", tensors)
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(said))
    check(tmp_path / "peft", scaled)
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in said.items()})}
    safetensors_files.write(tmp_path / "a.safetensors", peft(own), metadata)
    check(tmp_path / "a.safetensors", scaled)


def test_what_is_written_is_read(tmp_path, pairs):
    safetensors_files.write(tmp_path / "a.safetensors", kohya(pairs))
    factors = weights.read_lora(tmp_path / "a.safetensors", OF)
    weights.write_lora(tmp_path / "b", OF, factors)
    check(tmp_path / "b", pairs, 0.5)
    pair = {"down": np.ones((4, 2), np.float32), "up": np.ones((2, 4), np.float32)}
    for more in ({"first_stage": {"conv": {"kernel": pair}}}, {"conditioner": {"elsewhere": {"kernel": pair}}}):
        with pytest.raises(ValueError, match="which is no layer of this model that LoRA files may change"):
            weights.write_lora(tmp_path / "c", OF, factors | more)
    assert not (tmp_path / "c").exists()
    with pytest.raises(ValueError, match="exists already"):
        weights.write_lora(tmp_path / "b", OF, factors)


def test_a_folder_that_holds_it_twice(tmp_path, pairs):
    """Many on the hub have a .bin beside the .safetensors, which is read, as in diffusers."""
    torch_files.write(tmp_path / "pytorch_lora_weights.bin", peft({name: (2 * down, up) for name, (down, up) in pairs.items()}))
    check(tmp_path, pairs, 2.0)
    safetensors_files.write(tmp_path / "pytorch_lora_weights.safetensors", peft(pairs))
    check(tmp_path, pairs)
    safetensors_files.write(tmp_path / "adapter_model.safetensors", peft(pairs))
    with pytest.raises(ValueError, match="one LoRA is expected, .* there are 2 files"):
        weights.read_lora(tmp_path, OF)


def test_kernels_that_are_three_at_once(tmp_path):
    """The attention of networks without a context: q, k and v of one kernel, head by head."""
    of = {"network": test_read.PLAIN}
    layout = layouts.unet(of["network"])
    weight = next(w for w in layout if len(w.diffusers) == 3 and w.kind == "kernel")
    width = weight.shape[1]
    tensors, parts = {}, []
    for name in weight.diffusers[:2]:  # v is left as it is
        down, up = RNG.standard_normal((2, width), np.float32), RNG.standard_normal((width, 2), np.float32)
        parts.append(naming._stored(up @ down))
        base = f"unet.{name.removesuffix('.weight')}"
        tensors |= {f"{base}.lora_A.weight": down, f"{base}.lora_B.weight": up}
    safetensors_files.write(tmp_path / "a.safetensors", tensors)
    parts.append(naming._stored(np.zeros((width, width), np.float32)))
    fused = np.asarray(naming._fused(weight, parts)).T
    tree = weights.read_lora(tmp_path / "a.safetensors", of)
    np.testing.assert_allclose(delta(tree, ("network", *weight.path)), fused, rtol=1e-4, atol=1e-5)
    weights.write_lora(tmp_path / "b.safetensors", of, tree)
    again = weights.read_lora(tmp_path / "b.safetensors", of)
    np.testing.assert_allclose(delta(again, ("network", *weight.path)), fused, rtol=1e-4, atol=1e-5)


def test_a_layer_in_two_spellings_is_refused(tmp_path, pairs):
    safetensors_files.write(tmp_path / "a.safetensors", kohya(pairs, None) | peft(pairs))
    with pytest.raises(ValueError, match="are the same layer"):
        weights.read_lora(tmp_path / "a.safetensors", OF)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t | {"lora_unet_x.hada_w1_a": np.ones(2, np.float32)}, "is of a LoHa"),
        (lambda t: {"lora_unet_x.alpha": np.float32(1), "lora_unet_x.hada_t1": np.ones(2, np.float32)}, "is of a LoHa"),
        (lambda t: {"lora_unet_x.lokr_t2": np.ones(2, np.float32), "lora_unet_x.lokr_w1": np.float32(1)}, "is of a LoKr"),
        (lambda t: t | {"unet.x.lora_magnitude_vector": np.ones(2, np.float32)}, "is of a DoRA"),
        (lambda t: t | {"lora_unet_x.lora_mid.weight": np.ones((2, 2, 3, 3), np.float32)}, "LoCon of three factors"),
        (lambda t: {"lora_unet_x.diff_b": np.ones(2, np.float32)}, "whole changes of layers"),
        (lambda t: t | {"unet.nowhere.lora_A.weight": np.ones((2, 3), np.float32)}, "without the rest"),
        (lambda t: t | {f"unet.nowhere.lora_{x}.weight": np.ones((2, 2), np.float32) for x in "AB"}, "another one"),
        (lambda t: t | {"something": np.ones(2, np.float32)}, "no part of a LoRA"),
        (lambda t: {n: a.astype(np.int8) for n, a in t.items()}, "whole numbers .int8., as quantised weights do"),
        (lambda t: t | {n.replace(".lora_down.", ".lora_A.other."): a for n, a in t.items()}, "two factors down.*two LoRAs"),
        (lambda t: {n: a[:, :-1] if "down" in n else a for n, a in t.items()}, "factors of shapes"),
        (lambda t: {n: np.array(a.T) if "up" in n else a for n, a in t.items()}, "of shapes .2, 64. and .2,"),
        (lambda t: {n: a[:0] if "down" in n else a[:, :0] for n, a in t.items()}, "rank 1 or more"),
        (lambda t: {n: a * np.float32(np.nan) for n, a in t.items()}, "finite"),
        (lambda t: t | {n.replace("lora_down.weight", "alpha"): np.ones(2, np.float32) for n in t if "down" in n}, "one alpha"),
        (lambda t: t | {n.replace("lora_down.weight", "alpha"): np.float32(np.inf) for n in t if "down" in n}, "finite"),
    ],
)
def test_wrong_files_are_refused(tmp_path, pairs, change, message):
    safetensors_files.write(tmp_path / "a.safetensors", change(kohya(pairs, None)))
    with pytest.raises(ValueError, match=message):
        weights.read_lora(tmp_path / "a.safetensors", OF)


TRANSFORMER = {
    "kind": "mmdit", "depth": 2, "hidden_size": 8, "num_heads": 2, "context_dim": 6, "patch_size": 2, "in_channels": 4,
    "pooled_dim": 5,
}  # fmt: skip
T5 = {"d_model": 6, "d_kv": 3, "d_ff": 10, "num_layers": 1, "num_heads": 2, "vocab_size": 9, "feed_forward_proj": "relu"}
T5 |= {"relative_attention_num_buckets": 4}


def test_transformers_with_layers_that_diffusers_turns_round(tmp_path):
    """Kohya's names are those of the model itself; where diffusers has scale and shift in another order, so has its LoRA."""
    of = {"network": TRANSFORMER, "conditioner": {"kind": "sd3", "towers": {"text_encoder_3": T5}}}
    tensors, wanted = {}, {}
    for prefix, scopes, layout in (
        ("lora_unet_", ("network",), layouts.mmdit(TRANSFORMER)),
        ("lora_te3_", ("conditioner", "text_encoder_3"), layouts.t5(T5)),
    ):
        for weight in layout:
            if weight.kind == "kernel" and weight.dense:
                out, into = weight.shape[:2]
                down, up = RNG.standard_normal((2, into), np.float32), RNG.standard_normal((out, 2), np.float32)
                name = prefix + weight.name.removesuffix(".weight").replace(".", "_")
                tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": np.float32(1)}
                wanted[*scopes, *weight.path] = 0.5 * (up @ down).T
    assert any("final_layer" in str(at) for at in wanted) and any("context_block" in at for at in wanted)
    safetensors_files.write(tmp_path / "kohya.safetensors", tensors)
    found = weights.read_lora(tmp_path / "kohya.safetensors", of)
    network = {"network": found["network"]}
    weights.write_lora(tmp_path / "diffusers", of, network)
    for tree in (found, weights.read_lora(tmp_path / "diffusers", of)):
        for at, product in wanted.items():
            if at[0] in tree:
                np.testing.assert_allclose(delta(tree, at), product, rtol=1e-5, atol=1e-5)
    written = safetensors_files.read(tmp_path / "diffusers" / "pytorch_lora_weights.safetensors")
    up, down = (np.asarray(written[f"transformer.norm_out.linear.lora_{part}.weight"]) for part in "BA")
    scale, shift = np.split(wanted["network", "final_layer", "adaLN_modulation_1", "kernel"].T, 2)[::-1]
    np.testing.assert_allclose(up @ down, np.concatenate([scale, shift]), rtol=1e-5, atol=1e-5)
