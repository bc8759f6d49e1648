"""Films of moving shapes, and what is read from them."""

import numpy as np
import pytest

from ldm_jax.data import moving_shapes
from ldm_jax.data.moving_shapes import DIRECTIONS, NAMES, MovingShapes, check_all, draw_film, prompts, read_films, render_film
from ldm_jax.data.source import MissingSplit


def some(n, seed=0):
    return [draw_film(seed, i)[0] for i in range(n)]


def test_every_film_is_read_back_frame_by_frame():
    asked = some(40)
    found = read_films(np.stack([render_film(film, 6, 32) for film in asked]))
    assert all(len(objects) == 1 for frames in found for objects in frames)
    right = check_all(found, asked)
    assert {name: each.all() for name, each in right.items()} == dict.fromkeys(moving_shapes.CHECKS, True)


def test_the_reader_tells_what_is_wrong():
    """Of the same films: backwards, standing still, with another thing's name, and one frame of another film."""
    asked = some(12, seed=1)
    films = np.stack([render_film(film, 4, 32) for film in asked])
    assert not check_all(read_films(films[:, ::-1]), asked)["direction"].any()
    still = check_all(read_films(films[:, :1].repeat(4, 1)), asked)
    assert not still["direction"].any() and still["bound"].all()
    shuffled = check_all(read_films(films), asked[1:] + asked[:1])
    words = [film.words for film in asked]
    same = [a == b for a, b in zip(words, words[1:] + words[:1])]
    assert shuffled["all"].tolist() == same
    other = next(i for i, film in enumerate(asked) if film.words[:2] != asked[0].words[:2])
    mixed = films.copy()
    mixed[0, 2] = films[other, 2]
    assert not check_all(read_films(mixed[:1]), asked[:1])["bound"][0]
    empty = np.full_like(films[:1], 230)
    assert not any(each[0] for each in check_all(read_films(empty), asked[:1]).values())


def test_things_move_as_is_said_and_stay_in_the_picture():
    for film in some(60):
        way = np.subtract(film.end, film.start)
        toward = np.array(DIRECTIONS[NAMES[film.direction]])
        assert way @ toward > 0.1 and abs(way @ toward[::-1]) < 1e-9
        radius = film.scene.things[0].diameter / 2
        assert all(radius < at < 1 - radius for at in (*film.start, *film.end))


def test_captions_say_colour_shape_and_direction():
    for i in range(60):
        film, said = draw_film(0, i)
        assert all(f" {word}" in f" {said}" for word in film.words), (said, film.words)


def test_prompts_run_through_all_combinations_and_are_never_learnt():
    asked = prompts(6 * 8 * 4)
    assert len({film.words for _, film in asked}) == 6 * 8 * 4
    learnt = {draw_film(0, i, 0)[0] for i in range(100)}
    assert not learnt & {film for _, film in asked}


def test_the_source():
    source = MovingShapes("train[:50%]", ("film", "caption"), 4, 16, (10, 4))
    assert len(source) == 5 and len(list(source)) == 5
    again = MovingShapes("train", None, 4, 16, (10, 4))
    np.testing.assert_array_equal(source[3]["film"], again[3]["film"])
    assert source[3]["caption"] == again[3]["caption"] and source[3]["film"].shape == (4, 16, 16, 3)
    held = MovingShapes("validation", None, 4, 16, (10, 4))
    assert not any((held[i]["film"] == again[i]["film"]).all() for i in range(4))
    assert source.stamp() != again.stamp() != held.stamp()
    with pytest.raises(MissingSplit, match="no split 'test'"):
        MovingShapes("test", None, 4, 16, (10, 4))
    with pytest.raises(ValueError, match="at least 2 frames"):
        MovingShapes("train", None, 1, 16, (10, 4))
