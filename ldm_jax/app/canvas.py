"""A picture that a visitor paints on with a round brush."""

import base64
from collections.abc import Callable

import numpy as np
from nicegui import events, ui

from ldm_jax.app.uploads import Picture, mask_of
from ldm_jax.pictures import encoded


def address(data: bytes, kind: str = "image/png") -> str:
    """The bytes themselves as an address, which no other page can ask for."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


class Canvas:
    """`width`: how wide the brush is, in pixels of the picture; all strokes have the width that it has now."""

    def __init__(self, classes: str, width: Callable[[], float]):
        self.place, self.classes, self.width = ui.column(), classes, width
        self.image: ui.interactive_image | None = None
        self.lay(None)

    def lay(self, picture: Picture | None) -> None:
        """Another picture, without strokes."""
        self.picture, self.strokes, self.painting, self.image = picture, [], False, None
        self.place.clear()
        with self.place:
            if picture is None:
                ui.label("No picture yet: upload one, or take one that was drawn.").classes("quiet")
                return
            source, mouse = address(encoded(picture.pixels, {})), ["mousedown", "mousemove", "mouseup"]
            self.image = ui.interactive_image(source, on_mouse=self.paint, events=mouse).classes(self.classes)
            ui.label("Paint over what is to be drawn anew.").classes("quiet")

    def paint(self, event: events.MouseEventArguments) -> None:
        """A stroke goes from a button pressed to the button released, or the mouse coming back without it."""
        if event.type == "mousedown":
            self.painting = True
            self.strokes.append([])
        elif event.type == "mousemove" and not event.buttons:
            self.painting = False
        if self.painting:
            self.strokes[-1].append((event.image_x, event.image_y))
            self.show()
        self.painting = self.painting and event.type != "mouseup"

    def clear(self) -> None:
        """No strokes."""
        self.strokes, self.painting = [], False
        self.show()

    def show(self) -> None:
        """Draws the strokes on the picture."""
        if self.image is None:
            return
        lines = [" ".join(f"{x:.2f},{y:.2f}" for x, y in (stroke * 2)[: max(2, len(stroke))]) for stroke in self.strokes]
        self.image.content = "".join(
            f'<polyline points="{line}" fill="none" stroke="#ff4081" stroke-opacity="0.65" stroke-width="{self.width():g}" '
            'stroke-linecap="round" stroke-linejoin="round"/>'
            for line in lines
        )

    def mask(self) -> np.ndarray | None:
        """float32 [H, W], 1 where was painted; None where nothing was."""
        if self.picture is None or not self.strokes:
            return None
        return mask_of(self.strokes, self.picture.pixels.shape[:2], self.width())
