"""Small files: whole or not at all, UTF-8, and no changed bit goes unseen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_jax.primitives.files import read_json, write_json, write_text

VALUE = {"name": "shapes", "steps": [1, 2.5, None], "words": "Käfer \u0e01\u0e34", "nested": {"a": {"b": True}}}


def test_a_round_trip_gives_the_same_value_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, VALUE)
    write_json(path, VALUE)
    assert read_json(path) == VALUE
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_every_flipped_bit_is_seen(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, VALUE)
    data = path.read_bytes()
    unseen = []
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            path.write_bytes(bytes(changed))
            try:
                found = read_json(path)
            except ValueError as error:
                assert "config.json" in str(error)
            else:
                if found != VALUE:
                    unseen.append((at, bit, bytes(changed)))
    assert not unseen  # white space between values may differ; no value does


@pytest.mark.parametrize("damage", [b"", b"{", b"[1, 2]", b'{"a": 1, "sha256": "00"}', b"\xff\xfe", b"[" * 200_000])
def test_what_is_no_such_file_is_refused_by_name_with_the_way_out(tmp_path, damage):
    path = tmp_path / "latents.json"
    path.write_bytes(damage)
    with pytest.raises(ValueError, match=r"latents\.json.*Delete it\."):
        read_json(path, "Delete it.")


def test_files_of_others_have_no_seal(tmp_path):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(VALUE))
    assert read_json(path) == VALUE


def test_utf8_whatever_the_locale(tmp_path):
    code = f"from ldm_jax.primitives.files import write_text; write_text({str(tmp_path / 'a.txt')!r}, 'K\\u00e4fer')"
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=Path(__file__).resolve().parents[2])
    assert (tmp_path / "a.txt").read_bytes() == "Käfer".encode()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \udc80")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"b": {"steps": 1, "steps": 1}}'])
def test_a_name_that_stands_twice_is_refused(tmp_path, text):
    path = tmp_path / "theirs.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"theirs\.json can't be read as JSON: the name '(a|steps)' stands there twice"):
        read_json(path)
