"""Every damage to every file of a checkpoint: what is read is right to the last bit, or what is wrong is said."""

import random
import shutil
import warnings

import pytest

from ldm_jax.training.checkpoint import Checkpoints, load_averaged, verify
from ldm_jax.training.checkpoint_reader import Damaged, recorded_in
from tests.training.test_checkpoint import ONE, equal, state_at, target_on


def truncated(path, rng):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path, rng):
    data = bytearray(path.read_bytes())
    start = rng.randrange(max(1, len(data) - 64))
    data[start : start + 64] = bytes(len(data[start : start + 64]))
    path.write_bytes(data)


def flipped(path, rng):
    data = bytearray(path.read_bytes())
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def deleted(path, rng):
    path.unlink()


def emptied(path, rng):
    path.write_bytes(b"")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_at(step))
    return folder


def attempt(folder):
    """(what a reader gets, what training gets): True for the newest state, False for the one before or a refusal in words."""
    newest, before = state_at(2), state_at(1)
    try:
        read = load_averaged(folder)
        assert equal(read, newest.averaged), "other numbers were read"
        read = True
    except ValueError as error:
        assert "damaged" in str(error) and "Intact older ones: [1]" in str(error)
        read = False
    said = verify(folder)
    with warnings.catch_warnings(), Checkpoints(folder) as checkpoints:
        warnings.simplefilter("ignore")
        state = checkpoints.restore(target_on(ONE))
    step = int(state.step)
    assert equal(state, {1: before, 2: newest}[step]), "other numbers were restored"
    # `verify` reads every item too; it also reads files that restoring onto known shardings does without
    assert said is not None or step == 2
    return read, step == 2


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncated, zeroed, flipped, deleted, emptied])
def test_every_file(whole, tmp_path, damage):
    names = sorted(path.relative_to(whole) for path in (whole / "2").rglob("*") if path.is_file())
    rng, found, harmless = random.Random(0), 0, []
    for name in names:
        folder = tmp_path / "checkpoints"
        shutil.copytree(whole, folder)
        damage(folder / name, rng)
        if attempt(folder)[1]:
            harmless.append(str(name))
        else:
            found += 1
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
    print(f"{damage.__name__}: {found} of {len(names)} found; no number depends on {', '.join(harmless)}")
    # what holds numbers, or says which they are, is found
    assert not [name for name in harmless if "/d/" in name and "ocdbt.process" not in name or "CHECKPOINT_METADATA" in name]


def test_any_bit_of_what_is_recorded_beside_the_arrays(whole, tmp_path):
    """Their names, types, shapes, checksums and score."""
    path = tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    shutil.copytree(whole, tmp_path / "checkpoints")
    data, rng, found = path.read_bytes(), random.Random(1), 0
    assert verify(tmp_path / "checkpoints") is None
    start = data.index(b"custom_metadata")
    for _ in range(300):
        changed = bytearray(data)
        changed[rng.randrange(start + 18, len(data) - 2)] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            recorded_in(path.parent)
        except Damaged:
            found += 1
    assert found >= 298  # a blank between two entries means nothing


@pytest.mark.slow
def test_items_that_are_gone_or_empty(whole, tmp_path):
    for item in ("params", "ema", "opt_state", "counters"):
        for empty in (False, True):
            folder = tmp_path / "checkpoints"
            shutil.copytree(whole, folder)
            shutil.rmtree(folder / "2" / item)
            if empty:
                (folder / "2" / item).mkdir()
            assert attempt(folder)[1] is False
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
