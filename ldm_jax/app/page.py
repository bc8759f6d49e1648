"""What a browser shows: settings on the left, a tab for each thing that the model can do on the right. One `Page` a visitor,
who alone has its pictures."""

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from nicegui import events, ui

from ldm_jax.app import run, uploads
from ldm_jax.app.canvas import Canvas, address
from ldm_jax.app.pictures import Made, Shot, Studio
from ldm_jax.app.settings import FRAMES, NUMBERS, SCALES, Settings, mask_name
from ldm_jax.app.uploads import Picture
from ldm_jax.pictures import encoded

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#283593"/>'
    '<circle cx="16" cy="16" r="8" fill="#ffca28"/></svg>'
)
CSS = """
body { background: #f4f5fa }
.q-header { min-height: 56px } .q-header .q-icon { margin: 0 }
.nicegui-content { padding: 20px; gap: 20px; max-width: 1280px; margin: 0 auto }
.sheet { background: white; border-radius: 14px; box-shadow: 0 1px 4px rgba(30, 35, 90, .12); padding: 18px; gap: 10px }
.left { width: 300px; flex: none } .right { flex: 1; min-width: 0 } .wide { width: 100% }
.quiet { color: #6b7080; font-size: 12px } .value { font-weight: 600; font-size: 13px }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px; width: 100% }
.tile { background: #f7f8fc; border-radius: 10px; padding: 8px 8px 2px; gap: 2px }
.pixels img, img.pixels { image-rendering: pixelated } .shown { width: 100%; border-radius: 6px }
.canvas { width: 320px; cursor: crosshair; border-radius: 8px; overflow: hidden; touch-action: none }
.film { width: 256px; border-radius: 8px } .said { min-height: 22px }
.q-uploader__list { display: none }
.grid img { max-width: 100% } .how { white-space: pre-wrap; font: 12px monospace; color: #445 }
"""
TABS = {
    "sample": ("Draw", "brush"),
    "image_to_image": ("From a picture", "image"),
    "inpaint": ("Inpaint", "format_paint"),
    "upscale": ("Enlarge", "zoom_out_map"),
    "interpolate": ("Between", "compare_arrows"),
    "trajectory": ("From noise", "movie"),
}
MOST_SMALL = 256  # pixels a side that are enlarged


class Page:
    """`in_thread`: how to call a function that takes long."""

    def __init__(self, studio: Studio, folder: Path, in_thread: Callable[..., Awaitable[Any]]):
        self.studio, self.offer, self.folder, self.in_thread = studio, studio.offer, folder, in_thread
        self.picture: Picture | None = None
        self.followers: list[Callable[[], None]] = []  # called when there is another picture
        self.buttons: list[ui.button] = []
        self.pixelated = "pixels" if max(self.offer.size) < 256 else ""
        ui.add_css(CSS)
        ui.colors(primary="#3f51b5", secondary="#5c6bc0", accent="#ff9800")
        with ui.header().style("align-items: center"):
            ui.html(ICON, sanitize=False).style("width: 30px; height: 30px")
            ui.label("ldm_jax").classes("text-h6")
            ui.label(studio.ldm.describe().splitlines()[0]).classes("text-caption").mark("model")
        with ui.row(wrap=False).classes("wide items-start"):
            if self.offer.tasks:
                with ui.column().classes("sheet left"):
                    self.controls()
            with ui.column().classes("sheet right"):
                self.tabs()

    # Settings

    def controls(self) -> None:
        """What all drawings share."""
        offer = self.offer
        self.text = self.to_text = self.negative = self.scale = None
        if offer.told == "prompt":
            self.text = ui.input("Prompt", placeholder="what to draw").classes("wide prompt").props("outlined dense")
        if offer.told == "label":
            self.text = ui.select(list(offer.classes), label="Class", value=offer.classes[0], with_input=True)
            self.text.classes("wide prompt").props("outlined dense")
        if offer.negative and offer.told == "prompt":
            self.negative = ui.input("Negative prompt").classes("wide negative").props("outlined dense")
        with ui.row(wrap=False).classes("wide items-center"):
            self.seed = ui.number("Seed", value=0, min=0, max=2**53, precision=0).classes("seed").props("outlined dense")
            ui.button(icon="navigate_next", on_click=self.next_seed).props("flat round dense").classes("next-seed").tooltip(
                "next seed"
            )
            ui.button(icon="casino", on_click=self.any_seed).props("flat round dense").classes("any-seed").tooltip("any seed")
        self.num = self.choice("Pictures", NUMBERS, 4, "num")
        self.steps = self.choice("Steps", offer.steps, offer.own_steps, "steps")
        if offer.guided:
            low, high = min(SCALES[0], offer.scale), max(SCALES[1], offer.scale)
            self.scale = self.slider("Guidance scale", low, high, 0.5, offer.scale, "scale")
        self.sampler = ui.select(list(offer.samplers), label="Sampler", value=offer.samplers[0])
        self.sampler.classes("wide sampler").props("outlined dense")
        ui.label("Another sampler, or another number of steps or pictures, is compiled first.").classes("quiet")

    def slider(self, name: str, low: float, high: float, step: float, value: float, hook: str) -> ui.slider:
        """A slider with its name and its value above it."""
        with ui.column().classes("wide").style("gap: 0"):
            with ui.row().classes("wide justify-between"):
                ui.label(name).classes("quiet")
                shown = ui.label().classes("value")
            made = ui.slider(min=low, max=high, step=step, value=value).classes(f"wide {hook}")
            shown.bind_text_from(made, "value", lambda value: f"{value:g}")
        return made

    def choice(self, name: str, choices: tuple[int, ...], value: int, hook: str) -> Callable[[], int]:
        """A slider over a few numbers; gives what reads it."""
        with ui.column().classes("wide").style("gap: 0"):
            with ui.row().classes("wide justify-between"):
                ui.label(name).classes("quiet")
                shown = ui.label().classes("value")
            made = ui.slider(min=0, max=len(choices) - 1, step=1, value=choices.index(value)).classes(f"wide {hook}")
            shown.bind_text_from(made, "value", lambda place: str(choices[int(place)]))
        return lambda: choices[int(made.value)]

    def next_seed(self) -> None:
        """One more."""
        self.seed.value = int(self.seed.value or 0) + 1

    def any_seed(self) -> None:
        """Any of 2**31."""
        self.seed.value = random.randrange(2**31)

    def settings(self, task: str, **more: Any) -> Settings:
        """What is set. ValueError for a seed that isn't one."""
        if self.seed.value is None:
            raise ValueError("give a seed: a whole number from 0")
        return Settings(
            task=task,
            text=self.text.value or "" if self.text else "",
            negative=self.negative.value or "" if self.negative else "",
            seed=int(self.seed.value),
            num=self.num(),
            sampler=self.sampler.value,
            steps=self.steps(),
            scale=self.scale.value if self.scale else None,
            **more,
        )

    # Drawing

    def draw_button(self, task: str, more: Callable[[], dict[str, Any]] = dict) -> None:
        """A button, a line on what goes on, and the pictures."""
        with ui.row().classes("items-center wide"):
            button = ui.button("Draw", icon="auto_awesome").props("unelevated no-caps").classes(f"draw-{task}")
            spinner = ui.spinner(size="22px")
            spinner.visible = False
            said = ui.label().classes("quiet said").mark(f"said-{task}")
        shown = ui.column().classes(f"wide shown-{task}")
        self.buttons.append(button)

        async def click() -> None:
            try:
                settings = self.settings(task, **more())
                compiles = self.studio.compiles(settings)
            except ValueError as error:
                return refuse(error)
            waiting = self.studio.asked
            line = "compiling, once for these steps, sampler and number" if compiles else "drawing"
            said.text = f"{line} …" if not waiting else f"{waiting} before you, then {line} …"
            spinner.visible = True
            for each in self.buttons:
                each.disable()
            try:
                made = await self.in_thread(self.studio.make, settings)
            except ValueError as error:
                return refuse(error)
            except Exception as error:
                refuse(f"drawing failed: {type(error).__name__}; the terminal that ldm-app runs in has more")
                raise
            finally:
                said.text, spinner.visible = "", False
                for each in self.buttons:
                    each.enable()
            self.show(shown, made)

        button.on_click(click)

    def show(self, place: ui.column, made: Made) -> None:
        """Pictures, each with what can be done with it."""
        place.clear()
        with place:
            if made.film is not None:
                with ui.row().classes("items-end"):
                    film, name = made.film, made.shots[0].picture.name.rsplit("_", 1)[0] + ".gif"
                    ui.html(f'<img class="film {self.pixelated}" src="{address(film, "image/gif")}">', sanitize=False)
                    ui.button("GIF", icon="download", on_click=lambda: ui.download.content(film, name)).props(
                        "flat no-caps dense"
                    ).classes("download-film")
            with ui.element("div").classes("gallery"):
                for shot in made.shots:
                    self.tile(shot)
            with ui.expansion("how they were drawn").classes("wide quiet"):
                ui.label(made.shots[0].texts["parameters"]).classes("how")

    def tile(self, shot: Shot) -> None:
        """One picture."""
        with ui.column().classes("tile"):
            ui.html(f'<img class="shown {self.pixelated}" src="{address(shot.png)}">', sanitize=False).classes("wide shot")
            with ui.row(wrap=False).style("gap: 0"):
                button(
                    "download", "download, with how it was drawn", lambda: ui.download.content(shot.png, shot.picture.name)
                ).classes("download")
                if {"image_to_image", "inpaint"} & {*self.offer.tasks}:
                    button("reply", "take it as the picture to change", lambda: self.take(shot.picture)).classes("take")

    # Pictures that come in

    def take(self, picture: Picture) -> None:
        """From now on this one is changed."""
        self.picture = picture
        for follow in self.followers:
            follow()

    def upload(self, read: Callable[[bytes, str], Picture]) -> None:
        """Takes a file from the visitor."""

        async def taken(event: events.UploadEventArguments) -> None:
            field.reset()
            try:
                self.take(read(await event.file.read(), event.file.name))
            except ValueError as error:
                refuse(error)

        field = ui.upload(
            label="Upload a picture",
            auto_upload=True,
            max_files=1,
            max_file_size=uploads.MOST_BYTES,
            on_upload=taken,
            on_rejected=lambda: refuse(f"one picture, of at most {uploads.MOST_BYTES // 2**20} MB"),
        ).props('accept="image/*" flat bordered')
        field.on("failed", lambda: refuse("the picture was not taken: it is too large, or the connection broke"))

    def cut(self, data: bytes, name: str) -> Picture:
        """Read and cut to the model's size."""
        return uploads.read_picture(data, name, self.offer.size)

    def preview(self) -> None:
        """The picture that is changed."""
        place = ui.column()

        def follow() -> None:
            place.clear()
            with place:
                if self.picture is None:
                    return ui.label("No picture yet: upload one, or take one that was drawn.").classes("quiet")
                source = address(encoded(self.picture.pixels, {}))
                ui.html(f'<img class="{self.pixelated}" style="width: 200px" src="{source}">', sanitize=False).classes("given")
                ui.label(self.picture.name).classes("quiet")

        self.followers.append(follow)
        follow()

    # Tabs

    def tabs(self) -> None:
        """One a task, then the run and the model."""
        with ui.tabs().props("no-caps inline-label dense align=left").classes("wide") as tabs:
            for task in self.offer.tasks:
                ui.tab(task, *TABS[task])
            if self.folder.is_dir():
                ui.tab("run", "Training", "show_chart")
            ui.tab("model", "Model", "info")
        with ui.tab_panels(tabs, value=(*self.offer.tasks, "model")[0], animated=False, keep_alive=True).classes("wide"):
            for task in self.offer.tasks:
                with ui.tab_panel(task):
                    getattr(self, f"of_{task}")()
            if self.folder.is_dir():
                with ui.tab_panel("run"):
                    self.of_run()
            with ui.tab_panel("model"):
                self.of_model()

    def of_sample(self) -> None:
        """Plain samples."""
        self.draw_button("sample")

    def of_image_to_image(self) -> None:
        """A picture, and how much of it may change."""
        with ui.row().classes("wide items-start"):
            self.upload(self.cut)
            self.preview()
        strength = self.slider("Strength: how much may change", 0.1, 1.0, 0.1, 0.6, "strength")
        self.draw_button("image_to_image", lambda: {"picture": self.picture, "strength": strength.value})

    def of_inpaint(self) -> None:
        """A picture, and a brush."""
        side = max(self.offer.size)
        with ui.row().classes("wide items-start"):
            with ui.column():
                self.upload(self.cut)
                width = self.slider("Brush, pixels wide", 1, max(2, side // 2), 1, max(1, side // 6), "brush")
                strength = self.slider("Strength: how much may change", 0.1, 1.0, 0.1, 1.0, "mask-strength")
                with ui.row():
                    ui.button("Clear", on_click=lambda: canvas.clear()).props("flat no-caps dense").classes("clear")
                    save = ui.button("Mask", icon="download").props("flat no-caps dense").classes("download-mask")
            canvas = Canvas(f"canvas {self.pixelated}", lambda: width.value)

        def download() -> None:
            mask = canvas.mask()
            if mask is None:
                return refuse("there is no mask yet: paint over a part of a picture")
            ui.download.content(encoded(np.uint8(mask[..., None].repeat(3, -1) * 255), {}), mask_name(self.picture))

        save.on_click(download)
        width.on_value_change(canvas.show)
        self.followers.append(lambda: canvas.lay(self.picture))
        more = {"picture": lambda: self.picture, "mask": canvas.mask, "strength": lambda: strength.value}
        self.draw_button("inpaint", lambda: {name: read() for name, read in more.items()})

    def of_upscale(self) -> None:
        """A small picture."""
        with ui.row().classes("wide items-start"):
            self.upload(lambda data, name: uploads.read_small(data, name, MOST_SMALL))
            self.preview()
        self.draw_button("upscale", lambda: {"picture": self.picture})

    def of_interpolate(self) -> None:
        """From the seed and words on the left to others."""
        ui.label("From the seed (and the words) on the left to these:").classes("quiet")
        with ui.row().classes("wide items-center"):
            seed = ui.number("Seed at the end", value=1, min=0, max=2**53, precision=0).classes("to-seed")
            seed.props("outlined dense clearable")
            text = None
            if self.offer.told == "prompt":
                text = ui.input("Prompt at the end, or none").classes("to-text").props("outlined dense")
            if self.offer.told == "label":
                text = ui.select(list(self.offer.classes), label="Class at the end, or none", clearable=True)
                text.classes("to-text").props("outlined dense").style("min-width: 200px")
        frames = self.choice("Frames", FRAMES, 8, "frames")

        def more() -> dict[str, Any]:
            end = None if seed.value is None else int(seed.value)
            return {"frames": frames(), "to_seed": end, "to_text": text.value or "" if text else ""}

        self.draw_button("interpolate", more)

    def of_trajectory(self) -> None:
        """The seed's first picture, from its noise."""
        ui.label("The seed's first picture, step by step out of the noise.").classes("quiet")
        self.draw_button("trajectory")

    def of_run(self) -> None:
        """Curves and pictures of the working directory, as they are when one asks."""
        place = ui.column().classes("wide")

        def read() -> None:
            place.clear()
            with place:
                curves, pictures = run.curves(self.folder), run.pictures(self.folder)
                if not curves and not pictures:
                    ui.label(f"{self.folder} holds no metrics.jsonl and no pictures of a run.").classes("quiet")
                for stage, charts in curves.items():
                    ui.label(stage.replace("_", " ")).classes("text-subtitle1")
                    with ui.row():
                        for chart in charts.values():
                            source = address(chart.encode(), "image/svg+xml")
                            ui.html(f'<img style="width: 400px" src="{source}">', sanitize=False).classes("curve")
                for name, data in pictures.items():
                    ui.label(name).classes("quiet")
                    ui.html(f'<img src="{address(data)}">', sanitize=False).classes("grid")

        ui.button("Look", icon="refresh", on_click=read).props("flat no-caps dense").classes("look")
        read()

    def of_model(self) -> None:
        """What it is."""
        if not self.offer.tasks:
            takes = self.studio.ldm.condition.takes
            ui.label(f"This model takes {takes}, which this page can't give: draw with ldm-sample.").classes("cannot")
        for name, line in run.about(self.studio.ldm).items():
            with ui.row(wrap=False).classes("wide"):
                ui.label(name).classes("quiet").style("width: 110px; flex: none")
                ui.label(line)
        with ui.expansion("config").classes("wide"):
            ui.label(run.config_text(self.studio.ldm)).classes("how config")


def button(icon: str, about: str, click: Callable[[], Any]) -> ui.button:
    """A small round one."""
    return ui.button(icon=icon, on_click=click).props("flat round dense size=sm").tooltip(about)


def refuse(why: Any) -> None:
    """Says what was wrong."""
    ui.notify(str(why), type="negative", position="top", timeout=6000, close_button="ok")
