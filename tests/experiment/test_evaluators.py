"""What looks at a model while it trains: settings, names, and the same pictures every time."""

import importlib
import types

import jax
import numpy as np
import pytest
from PIL import Image

from ldm_jax import build, scoring
from ldm_jax.data.vessels import draw_volume
from ldm_jax.experiment import evaluators
from ldm_jax.experiment.evaluators import distance, prompts
from ldm_jax.experiment.pictures import draw
from ldm_jax.experiment.stage import BEST
from ldm_jax.scoring import features as networks
from ldm_jax.scoring.drawing import Conditions, Drawer
from ldm_jax.scoring.looking import look
from ldm_jax.scoring.reference import labelled_source
from ldm_jax.training import sharding
from tests import tiny
from tests.scoring.test_evaluate import linear
from tests.test_habits import config_of


def with_evaluators(**sections):
    config = config_of()
    config["evaluation"]["evaluators"] = sections
    return config


def test_only_what_has_an_interval_is_on_and_fields_are_filled_in():
    found = evaluators.settings(with_evaluators(distance={"every": 0}, quick={"type": "distance", "every": 5, "num": 32}))
    assert found == {"quick": {"type": "distance", "every": 5, **distance.FIELDS, "num": 32}}
    assert evaluators.settings({"evaluation": {}}) == {}  # a config of an earlier version


@pytest.mark.parametrize(
    "sections, words",
    [
        ({"fid": {"every": 5}}, r"evaluators\.fid\.type.*'fid'.*'distance', 'prompts'"),
        ({"distance": {"every": 5, "nums": 3}}, r"a field of config\.evaluation\.evaluators\.distance.*'nums'.*num"),
        ({"distance": {"every": -5}}, r"evaluators\.distance\.every=-5: must be a whole number"),
        ({"distance": {"every": 5, "num": 2}}, r"evaluators\.distance\.num=2: must be at least 16"),
        ({"distance": {"every": 5, "features": "vgg"}}, r"evaluators\.distance\.features.*'vgg'"),
        ({"distance": 7}, r"evaluators\.distance=7: must be its settings"),
        ({"my distance": {"type": "distance", "every": 5}}, "a name is of letters"),
        ({"prompts": {"every": 5, "objects": 9}}, r"prompts\.objects=9: must be from 1 to 3"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_by_name(sections, words):
    with pytest.raises(ValueError, match=words):
        evaluators.settings(with_evaluators(**sections))


def test_prompts_are_only_of_pictures_that_can_be_read():
    config = with_evaluators(prompts={"every": 5})
    config["conditioner"] = {"kind": "none"}
    with pytest.raises(ValueError, match="only what is drawn of 'shapes' .conditioner.kind='text'"):
        evaluators.settings(config)


def test_prompts_ask_for_as_many_objects_as_the_data_have():
    evaluators.settings(with_evaluators(prompts={"every": 5, "objects": 2}))
    films = config_of("moving_shapes")
    films["evaluation"]["evaluators"] = {"prompts": {"every": 5, "objects": 2}}
    with pytest.raises(ValueError, match="prompts.objects=2: prompts of 'moving_shapes' ask for one; set it to 1"):
        evaluators.settings(films)


def test_sentences_are_of_text_and_distances_of_pictures(tmp_path):
    with pytest.raises(ValueError, match="sentences.every=5: it reads sentences, and this model draws none"):
        evaluators.settings(with_evaluators(sentences={"every": 5}))
    config = config_of("sentences")
    config["evaluation"]["evaluators"] = {"distance": {"every": 5}}
    with pytest.raises(ValueError, match="distance.every=5: it looks at pictures, and this model draws sentences"):
        evaluators.settings(config)
    sound = config_of("spoken_digits")
    sound["evaluation"]["evaluators"] = {"distance": {"every": 5, "features": "inception:FILE"}}
    with pytest.raises(ValueError, match="features='inception:FILE': it looks at 3 channels, and sounds have 1; choose"):
        evaluators.check(sound, tmp_path)
    config["evaluation"]["evaluators"] = {"sentences": {"every": 5}}
    config["diffusion_train"]["best"] = "sentences/valid"
    evaluators.check(config, tmp_path)
    config["data"] |= {"source": "folder", "path": "."}  # whose sentences no grammar reads
    with pytest.raises(ValueError, match="best='sentences/valid': .* sentences/perplexity, sentences/novel"):
        evaluators.check(config, tmp_path)


def test_a_judge_that_nothing_hears_is_refused_before_training(tmp_path):
    config = with_evaluators(prompts={"every": 5})
    config["diffusion_train"]["best"] = "prompts/bound"
    evaluators.check(config, tmp_path)
    config["diffusion_train"]["best"] = "prompts/beauty"
    with pytest.raises(ValueError, match="best='prompts/beauty': .* there are validation/loss, prompts/shape, prompts/colour"):
        evaluators.check(config, tmp_path)
    config["diffusion_train"].update(best=BEST["diffusion"], patience=3)
    config["log"]["validation_every"] = 0
    with pytest.raises(ValueError, match="best='validation/loss': nothing that is on gives it"):
        evaluators.check(config, tmp_path)
    config["diffusion_train"]["patience"] = 0
    evaluators.check(config | {"stages": ("diffusion", "evaluation")}, tmp_path)
    config["evaluation"]["which"] = "best"
    with pytest.raises(ValueError, match="which='best': nothing that is on gives validation/loss"):
        evaluators.check(config | {"stages": ("diffusion", "evaluation")}, tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny class model in training, as its evaluators see it."""
    root, ldm = tmp_path_factory.mktemp("photos"), tiny.model("class")
    for split, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(tiny.CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 120, (10, 12, 3)) + 60 * np.eye(3, dtype=int)[label]
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    config = dict(ldm.config) | {"seed": 0, "evaluation": {"batch_size": 8, "features": "auto"}}
    config["data"] = config_of()["data"] | {"source": "folder", "path": str(root), "image_size": 8}
    experiment = types.SimpleNamespace(config=config, condition=ldm.condition, mesh=sharding.make_mesh(), workdir=root / "run")
    first_stage = {name: ldm.params[name] for name in ("first_stage",)}
    yield ldm, evaluators.Model(experiment, ldm.specification, {**first_stage, "latents": {}})
    tiny.model.cache_clear()


def test_distances_are_those_of_the_same_pictures_every_time(model, monkeypatch):
    ldm, seen = model
    network, config = linear(), seen.experiment.config
    monkeypatch.setattr(networks, "load", lambda *args, **options: network)
    section = {**distance.FIELDS, "num": 20, "every": 5, "steps": 2, "features": "classifier"}
    hook = evaluators.named("distance", distance.make(seen, section))
    averaged = {name: part for name, part in ldm.params.items() if name != "first_stage"}
    first = hook(types.SimpleNamespace(averaged=averaged))
    assert first.scalars == hook(types.SimpleNamespace(averaged=averaged)).scalars
    names = {f"distance/{name}" for name in distance.gives(section, config | {"evaluation": {}}, seen.experiment.workdir)}
    assert set(first.scalars) == names and "distance/classifier/accuracy" in first.higher
    assert "distance/classifier/frechet_distance" in names - first.higher

    moved = hook(types.SimpleNamespace(averaged=jax.tree.map(lambda x: x * 1.1, averaged)))
    assert moved.scalars != first.scalars

    # the pictures of the full evaluation, against the same reference
    mesh, place = seen.experiment.mesh, seen.experiment.workdir / "evaluation"
    reference = scoring.of_data(config, "train", network, mesh, folder=place, count=section["reference_num"], batch_size=8)
    conditions = Conditions(config, ldm.condition, labelled_source(config, "validation"), 20)
    drawer = Drawer(ldm.specification, sharding.replicate(mesh, ldm.params), conditions, mesh)
    drawn = look(network.on(mesh), drawer.batches(np.arange(20), 8, {"steps": 2}))
    expected = scoring.measure(drawn, reference, network, resamples=0, labels=conditions.labels()).values
    assert reference.about["count"] == 24
    for name, value in first.scalars.items():
        assert value == pytest.approx(expected[name.removeprefix("distance/")], rel=1e-6)


def test_pictures_on_the_way_do_not_depend_on_the_devices(model):
    """Eight devices take eight of a batch of six at a time, one device six."""
    ldm, _ = model
    labels, drawn = np.arange(10) % 3, []
    for count in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:count])
        inputs = ldm.condition.from_batch({"label": labels.astype(np.int32)})
        drawn.append(draw(ldm.specification, sharding.replicate(mesh, ldm.params), inputs, 10, 6, mesh))
    np.testing.assert_allclose(drawn[1], drawn[0], atol=1e-4)
    key = jax.random.fold_in(jax.random.key(0), 6)  # the second batch's
    expected = ldm.sample(ldm.params, key, ldm.embed(ldm.params, [tiny.CLASSES[i] for i in labels[6:]]))
    np.testing.assert_allclose(drawn[0][6:], expected, atol=1e-4)


def test_volumes_are_asked_for_by_class_and_read_back(monkeypatch):
    """Those that are drawn are true ones, of the classes that the network was told; the last is spoiled."""
    config = importlib.import_module("configs.vessels").get_config().to_dict()
    assert prompts.readable(config) and not prompts.readable(config | {"conditioner": {"kind": "none"}})

    def true_ones(spec, params, inputs, num, batch_size, mesh):
        true = {}
        for i in range(40):
            volume, label = draw_volume(0, i, 0, (32, 32, 32))
            true.setdefault(label, volume[..., None] / np.float32(127.5) - 1)
        return np.stack([true[int(label)] for label in inputs[:-1]] + [np.full_like(true[0], -0.6)])

    monkeypatch.setattr(prompts, "draw", true_ones)
    condition = build.make_condition(config, ("spheres", "tubes"))
    model = types.SimpleNamespace(
        spec=types.SimpleNamespace(condition=condition), experiment=types.SimpleNamespace(config=config, mesh=None)
    )
    found, volumes, words = prompts.read_back(model, None, 8, 1)
    assert words == ["spheres", "tubes"] * 4 and volumes.shape == (8, 32, 32, 32, 1)
    assert found["count"] == found["kind"] == found["all"] == 7 / 8 and found["shuffled/all"] == found["shuffled/kind"] == 0
