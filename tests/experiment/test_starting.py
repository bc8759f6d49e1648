"""What a training takes over from the model that it goes on from: by place, by axis and by word."""

import contextlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax import api, models
from ldm_jax.api import trained_on
from ldm_jax.data.tokenizer import train_tokenizer
from ldm_jax.experiment import check_start, latents, starting
from ldm_jax.models import TransformerEmbedder, UNet
from ldm_jax.primitives.files import write_json
from tests import tiny

CONFIG = {"diffusion_train": {"start_from": "elsewhere"}, "diffusion": {}, "dtype": "float32"}
FIELDS = {"in_channels": 2, "out_channels": 2, "model_channels": 8, "num_res_blocks": 1, "attention_resolutions": (1,),
          "channel_mult": (1, 1), "num_head_channels": 8, "norm_num_groups": 4}  # fmt: skip
THERE = train_tokenizer(["a red circle", "a blue circle", "a ring"])
HERE = train_tokenizer(["a circle goes", "the blue circle goes"])


def model(params, tokenizer=None, scale=1.0):
    condition = SimpleNamespace(setting=SimpleNamespace(tokenizer=tokenizer))
    spec = SimpleNamespace(condition=condition, scale=np.float32(scale), shift=np.float32(0))
    return SimpleNamespace(params=params, config=CONFIG, specification=spec)


def embedder(key, vocab_size=16, n_embed=8):
    net = TransformerEmbedder(n_embed=n_embed, n_layer=1, vocab_size=vocab_size, max_seq_len=6, heads=1, dim_head=8)
    return net, net.init(jax.random.key(key), jnp.zeros((1, 6), jnp.int32))["params"]


def test_numbers_in_another_tokenizer():
    numbers = HERE.numbers_in(THERE)
    words = THERE.encode(["a circle blue"], 6)[0]
    assert (numbers[HERE.encode(["a circle blue"], 6)[0]] == words).all()
    assert (numbers[HERE.encode(["goes the"], 4)[0][1:3]] == -1).all() and (numbers[:4] == np.arange(4)).all()
    assert (THERE.numbers_in(THERE) == np.arange(THERE.vocab_size)).all()


def test_words_keep_what_was_learnt_of_them(monkeypatch):
    """A text says the same to the new network as to the old one, though its words have other numbers; new words are fresh."""
    net, old = embedder(0)
    _, new = embedder(1)
    monkeypatch.setattr(api, "load_whole", lambda path: model({"conditioner": old}, THERE))
    found = starting.pretrained(CONFIG, {"conditioner": new}, HERE)["conditioner"]
    texts = ["a blue circle", "a circle", ""]
    assert not np.array_equal(HERE.encode(texts, 6), THERE.encode(texts, 6))
    np.testing.assert_array_equal(
        net.apply({"params": found}, HERE.encode(texts, 6)), net.apply({"params": old}, THERE.encode(texts, 6))
    )
    goes = HERE.encode(["goes"], 3)[0][1]
    table, fresh = (jax.tree.leaves(params["transformer"]["token_emb"] if "transformer" in params else params["token_emb"])[0]
                    for params in (found, new))  # fmt: skip
    np.testing.assert_array_equal(table[goes], fresh[goes])
    np.testing.assert_array_equal(table[15], jax.tree.leaves(old["transformer"]["token_emb"] if "transformer" in old
                                                            else old["token_emb"])[0][15])  # no word, such as a hole


def test_a_smaller_table_of_words_does_too(monkeypatch):
    net, new = embedder(1, vocab_size=9)
    _, old = embedder(0, vocab_size=32)
    monkeypatch.setattr(api, "load_whole", lambda path: model({"conditioner": old}, THERE))
    found = starting.pretrained(CONFIG, {"conditioner": new}, HERE)["conditioner"]
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, new)
    monkeypatch.setattr(api, "load_whole", lambda path: model({"conditioner": embedder(0, n_embed=4)[1]}, THERE))
    with pytest.raises(ValueError, match="start_from='elsewhere' is another model: .* there, .* here"):
        starting.pretrained(CONFIG, {"conditioner": new}, HERE)


@pytest.mark.slow
@pytest.mark.parametrize("words", [False, True])
def test_films_go_on_from_pictures(words, monkeypatch):
    """At first a film that stands still is to the new network what its frames are to the old one; also if words are to say
    where and when in the new one."""
    fields = FIELDS | ({"use_spatial_transformer": True, "context_dim": 5} if words else {})
    flat, more = UNet(**fields, dims=2), {"context_waves": 2} if words else {}
    deep = UNet(**fields, dims=3, strides=(1, 2, 2), kernel_size=(1, 3, 3), factorised_attention=True, **more)
    cond = {"context": jax.random.normal(jax.random.key(3), (2, 4, 5))} if words else {}
    film = jnp.repeat(jax.random.normal(jax.random.key(0), (2, 1, 8, 8, 2)), 3, axis=1)
    t = jnp.asarray([0.3, 0.6])
    old = flat.init(jax.random.key(1), film[:, 0], t, cond)["params"]
    old = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), old)
    new = deep.init(jax.random.key(2), film, t, cond)["params"]
    monkeypatch.setattr(api, "load_whole", lambda path: model({"network": old}))
    found = starting.pretrained(CONFIG, {"network": new})["network"]
    drawn = deep.apply({"params": found}, film, t, cond)
    for frame in range(3):
        np.testing.assert_allclose(drawn[:, frame], flat.apply({"params": old}, film[:, frame], t, cond), atol=2e-5)


def test_a_picture_beside_the_latents_is_not_seen_at_first(monkeypatch):
    """From a model with a prompt to one with a prompt and a picture (Brooks et al. 2023): words that both have keep what was
    learnt of them, as a part of the conditioner."""
    flat, wide = UNet(**FIELDS), UNet(**FIELDS | {"in_channels": 5})
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 2)), jnp.asarray([0.3, 0.6])
    beside = jax.random.normal(jax.random.key(3), (2, 8, 8, 3))
    old = flat.init(jax.random.key(1), x, t)["params"]
    old = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), old)
    new = wide.init(jax.random.key(2), x, t, {"concat": beside})["params"]
    net, words = embedder(0)
    _, fresh = embedder(1)
    there = model({"network": old, "conditioner": words}, THERE)
    there.config = there.config | {"conditioner": {"kind": "text"}}
    monkeypatch.setattr(api, "load_whole", lambda path: there)
    parts = {"prompt": {"kind": "text"}, "picture": {"kind": "instruct"}}
    config = CONFIG | {"conditioner": {"kind": "combined", "parts": parts}}
    said = []
    found = starting.pretrained(config, {"network": new, "conditioner": {"prompt": fresh}}, HERE, say=said.append)
    assert said == [
        "diffusion: the model to start from, elsewhere, sees less beside its latents: the other channels begin at zero"
    ]
    drawn = wide.apply({"params": found["network"]}, x, t, {"concat": beside})
    np.testing.assert_allclose(drawn, flat.apply({"params": old}, x, t), atol=2e-5)
    here, there = (of.encode(["a blue circle"], 6) for of in (HERE, THERE))
    prompt = net.apply({"params": found["conditioner"]["prompt"]}, here)
    np.testing.assert_array_equal(prompt, net.apply({"params": words}, there))


def test_frozen_models_with_other_words_are_refused(monkeypatch):
    _, old = embedder(0)
    monkeypatch.setattr(api, "load_whole", lambda path, dtype=None: model({"conditioner": old}, THERE))
    for use in (starting.base, starting.teacher):
        latents = (1.0, 0.0) if use is starting.base else 1.0
        with pytest.raises(ValueError, match="numbers words otherwise .* --config.conditioner.tokenizer=elsewhere/"):
            use(CONFIG, {"conditioner": old}, latents, HERE)
        with contextlib.nullcontext() if use is starting.base else pytest.raises(ValueError, match="numbers words otherwise"):
            use(CONFIG, {"conditioner": old}, latents, THERE.with_word("<ink>"))  # behind all that it knows
        jax.tree.map(np.testing.assert_array_equal, use(CONFIG, {"conditioner": old}, latents, THERE), {"conditioner": old})


def test_frozen_models_of_another_process_are_refused(monkeypatch):
    """A change that is learnt at one amount of noise would be used at another."""
    _, old = embedder(0)
    monkeypatch.setattr(api, "load_whole", lambda path, dtype=None: model({"conditioner": old}, THERE))
    for use, what in ((starting.base, "adapted"), (starting.teacher, "learnt from")):
        latents = (1.0, 0.0) if use is starting.base else 1.0
        other = CONFIG | {"diffusion": {"scale": 0.6}}
        said = f"scale=0.6: the model that is {what}, elsewhere, has 1.0; give both the same process, --config.diffusion.scale="
        with pytest.raises(ValueError, match=said):
            use(other, {"conditioner": old}, latents, THERE)
    told = CONFIG | {"diffusion": {"linear_start": 1e-4}}  # of which the model says nothing
    assert starting.base(told, {"conditioner": old}, (1.0, 0.0), THERE)


def test_what_has_begun_goes_on_from_the_same_weights(tmp_path):
    """Of the same shapes others would be taken without a word, and load what was learnt onto them."""
    _, old = embedder(0)
    _, other = embedder(1)
    at = SimpleNamespace(workdir=tmp_path, config=CONFIG, check_place=lambda: None)
    starting.remember(at, {"conditioner": old})
    starting.remember(at, {"conditioner": other})  # nothing is learnt yet
    (tmp_path / "diffusion" / "checkpoints" / "100").mkdir(parents=True)
    starting.remember(at, {"conditioner": jax.tree.map(lambda x: x.astype(jnp.bfloat16), other)})
    with pytest.raises(ValueError, match="start_from='elsewhere' has other weights than the model from which this training"):
        starting.remember(at, {"conditioner": old})


def test_a_model_that_was_taught_words_is_not_adapted(monkeypatch):
    """Its tokenizer's file lacks them: numbers and shapes could not be the same."""
    _, old = embedder(0)
    taught = model({"conditioner": old}, THERE.with_word("<ink>"))
    monkeypatch.setattr(api, "load_whole", lambda path, dtype=None: taught)
    with pytest.raises(ValueError, match="was taught words .<ink>., .* start from the model that it was taught on"):
        starting.base(CONFIG, {"conditioner": old}, (1.0, 0.0), THERE)


def test_a_training_does_not_start_from_itself(tmp_path, monkeypatch):
    """It would be looked for in itself for ever."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    config = {"stages": ["diffusion"], "diffusion_train": {"start_from": "../" + tmp_path.name + "/run/"}, "diffusion": {}}
    with pytest.raises(ValueError, match="diffusion_train.start_from='.*/run/' is the working directory itself"):
        check_start(config, tmp_path / "run")


def test_another_place_is_looked_at_before_it_is_written_down(tmp_path, monkeypatch):
    """The working directory would name a model that its change wasn't made for."""
    params = {name: {"network": embedder(i)[1], "conditioner": {}} for i, name in enumerate(("one", "two", "moved"))}
    params["moved"] = params["one"]
    monkeypatch.setattr(api, "load_whole", lambda path, dtype=None: model(params[path]))

    def config(name):
        return CONFIG | {"diffusion_train": {"start_from": name, "lora": {"rank": 2}}}

    write_json(tmp_path / "config.json", config("one"))
    starting.check_moved(config("two"), tmp_path)  # nothing is learnt yet
    (tmp_path / "diffusion" / "checkpoints" / "100").mkdir(parents=True)
    starting.check_moved(config("two"), tmp_path)  # an earlier version didn't say
    trained_on.remember(tmp_path, params["one"])
    starting.check_moved(config("moved"), tmp_path)
    with pytest.raises(ValueError, match="start_from='two' has other weights than the model from which this training"):
        starting.check_moved(config("two"), tmp_path)


def test_tables_that_end_at_pure_noise_are_another_process(monkeypatch):
    _, old = embedder(0)
    monkeypatch.setattr(api, "load_whole", lambda path, dtype=None: model({"conditioner": old}, THERE))
    other = CONFIG | {"diffusion": {"zero_terminal_snr": True}}
    with pytest.raises(ValueError, match="zero_terminal_snr=True: the model that is adapted, elsewhere, has False"):
        starting.base(other, {"conditioner": old}, (1.0, 0.0), THERE)


def test_a_training_says_that_it_goes_on_otherwise(monkeypatch):
    """All of a model may learn to predict something else, at other levels; but not unknown to who started it."""
    net = UNet(**FIELDS)
    params = {"network": net.init(jax.random.key(1), jnp.zeros((1, 8, 8, 2)), jnp.zeros(1))["params"]}
    there = model(params, scale=0.18215)
    there.config = CONFIG | {"diffusion": {"schedule": "scaled_linear", "prediction": "v", "linear_end": 0.012}}
    monkeypatch.setattr(api, "load_whole", lambda path: there)
    said = []
    same = CONFIG | {"diffusion": there.config["diffusion"] | {"weighting": "min_snr"}}
    assert starting.pretrained(same, params, None, (0.18215, 0.0), said.append) == params and not said
    other = CONFIG | {"diffusion": {"schedule": "scaled_linear", "prediction": "eps", "linear_end": 0.012}}
    starting.pretrained(other, params, None, (np.float32([1.0, 0.5]), 0.0), said.append)
    assert said == [
        "diffusion: the model to start from, elsewhere, was trained with prediction='v', latents' scale 0.18215; this training "
        "has prediction='eps', latents' scale 1, 0.5"
    ]


def test_latents_of_other_channels_are_refused_by_their_shapes(monkeypatch):
    """However many scales either side has."""
    narrow, wide = (
        UNet(**FIELDS | {"in_channels": n, "out_channels": n}).init(jax.random.key(1), jnp.zeros((1, 8, 8, n)), jnp.zeros(1))
        for n in (2, 4)
    )
    there = model({"network": narrow["params"]}, scale=np.ones(2, np.float32))
    there.config = CONFIG
    monkeypatch.setattr(api, "load_whole", lambda path: there)
    with pytest.raises(ValueError, match="is another model: network/input_blocks_0_0/kernel is"):
        starting.pretrained(CONFIG, {"network": wide["params"]}, None, (np.ones(4, np.float32), 0.0), print)


def test_whether_a_training_starts_on_the_same_first_stage(tmp_path):
    ldm_jax.save(tiny.model("text"), tmp_path / "saved")  # whose convolutions take over the scales of its channels
    ours = ldm_jax.load(tmp_path / "saved").params["first_stage"]

    def same(params, start=str(tmp_path / "saved")):
        return latents._starts_on_the_same({"diffusion_train": {"start_from": start}}, params)

    assert same(ours) and same(jax.tree.map(lambda x: x.astype(jnp.bfloat16), ours))
    assert same(models.inflated(ours, jax.tree.map(lambda x: jnp.zeros((3, *x.shape)), ours)))  # of films
    assert not same(ours, "") and not same({})
    assert not same(jax.tree.map(lambda x: x * 1.01, ours)) and not same(jax.tree.map(lambda x: x[None], ours))
