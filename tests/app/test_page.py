"""The real server, driven in headless Chromium: every control changes what it should, nothing leaves this machine, two visitors
have their own pictures, and stopping leaves nothing."""

import contextlib
import http.client
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ldm_jax
from ldm_jax.app.uploads import MOST_BYTES
from ldm_jax.drawing.records import read_record
from tests.tiny import CONFIG, model, random_model

pytestmark = pytest.mark.slow
pytest.importorskip("nicegui", reason="needs the extra app: pip install -e .[app]")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PATIENCE = 600  # seconds
# Notes every address that the server connects to, as Python itself starts.
WATCH = """
import os, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        with open(os.environ["NOTES"], "a") as file:
            file.write(f"{event} {arguments[1] if event == 'socket.connect' else arguments[0]}\\n")
sys.addaudithook(note)
"""
PHOTO = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def enlarging():
    """Twice as large, by latents as diffusers' pipeline has them: `save` writes no others of this kind."""
    network = {"use_spatial_transformer": False, "context_dim": None, "attention_resolutions": [], "in_channels": 6}
    stage = {"kind": "vq", "double_z": False, "n_embed": 16, "z_channels": 3, "embed_dim": 3}
    changed = {
        "conditioner": {"kind": "superres", "scale": 2},
        "network": CONFIG["network"] | network | {"out_channels": 3},
        "first_stage": CONFIG["first_stage"] | stage,
        "sampling": CONFIG["sampling"] | {"guidance_scale": 1.0},
    }
    return random_model(CONFIG | changed)


class Server:
    """The command as a process of its own, in empty folders."""

    def __init__(self, folder, kind="text"):
        self.folder = folder
        for name in ("cwd", "tmp", "home", "watch"):
            (folder / name).mkdir()
        (folder / "watch" / "sitecustomize.py").write_text(WATCH)
        ldm_jax.save(enlarging() if kind == "superres" else model(kind), folder / "model")
        diffusion = folder / "model" / "diffusion"
        diffusion.mkdir()
        (diffusion / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n{"step": 2, "train/loss": 0.5}\n')
        self.before = self.files()
        environment = {
            **os.environ, "JAX_PLATFORMS": "cpu", "TMPDIR": str(folder / "tmp"), "HOME": str(folder / "home"),
            "NOTES": str(folder / "notes"), "PYTHONPATH": f"{ROOT}{os.pathsep}{folder / 'watch'}",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ldm_jax.app", "--workdir", str(folder / "model"), "--port", "0"],
            cwd=folder / "cwd", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.url = ""
        while not self.url and (line := self.process.stdout.readline()):
            self.url = line.split()[0] if line.startswith("http://127.0.0.1:") else ""
        assert self.url, self.process.stderr.read()[-2000:]

    def files(self):
        """All files that there are, but those that compiled programs are kept in."""
        return {path for name in ("cwd", "tmp", "home", "model") for path in (self.folder / name).rglob("*")
                if ".cache" not in path.parts}  # fmt: skip

    def stop(self, number):
        """Status and standard error; asserts that no process and no file is left."""
        self.process.send_signal(number)
        said = self.process.communicate(timeout=60)[1]
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)
        assert self.files() == self.before
        begun, _, said = said.partition("\n")
        assert begun == "ldm-app: starting"
        return self.process.returncode, said


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def server(tmp_path, request):
    started = Server(tmp_path, getattr(request, "param", "text"))
    yield started
    started.process.kill()
    started.process.wait()


class Visitor:
    """A page of its own, in a context of its own; keeps where its requests went and what was wrong."""

    def __init__(self, browser, url, ready=".draw-sample"):
        self.page = browser.new_context(accept_downloads=True, viewport={"width": 1280, "height": 900}).new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        self.asked, self.errors = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("websocket", lambda socket: self.asked.append(socket.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector(ready)

    def tab(self, name):
        self.page.get_by_role("tab", name=name).click()

    def draw(self, task="sample", wait=True):
        """The pictures [N, H, W, 3] that a click on "Draw" gives."""
        shown = f".shown-{task}"
        self.page.evaluate("s => document.querySelectorAll(s + ' .tile').forEach(e => e.dataset.old = 1)", shown)
        self.page.click(f".draw-{task}")
        if wait:
            return self.drawn(task)

    def drawn(self, task="sample"):
        self.page.wait_for_selector(f".shown-{task} .tile:not([data-old])")
        found = self.page.eval_on_selector_all(f".shown-{task} .shot img", "images => images.map(image => image.src)")
        return np.stack([np.asarray(Image.open(io.BytesIO(bytes_of(source)))) for source in found])

    def film(self, task):
        return Image.open(io.BytesIO(bytes_of(self.page.locator(f".shown-{task} img.film").get_attribute("src"))))

    def download(self, selector, folder):
        with self.page.expect_download() as waiting:
            self.page.locator(selector).first.click()
        path = folder / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path

    def slide(self, name, key):
        self.page.locator(f".{name} [tabindex]").focus()
        self.page.keyboard.press(key)

    def told(self, text):
        """A refusal in these words."""
        self.page.get_by_text(text).first.wait_for()

    def only_here(self, server):
        hosts = {url.split("/")[2] for url in self.asked if not url.startswith(("data:", "blob:"))}
        assert hosts == {server.url.split("/")[2]}, hosts
        assert not self.errors


def bytes_of(source):
    return urllib.request.urlopen(source).read()  # a data: address


def differ(one, other):
    return one.shape != other.shape or np.abs(one.astype(int) - other).max() > 2


def test_every_control(browser, server, tmp_path):
    visitor = Visitor(browser, server.url)
    page = visitor.page
    page.fill(".prompt input", "a red circle")
    for key in ("PageDown", "ArrowRight", "ArrowRight"):  # 1, 2, 4
        visitor.slide("steps", key)
    page.click(".draw-sample")
    page.get_by_text("compiling").wait_for()
    first = visitor.drawn()
    assert first.shape == (4, 8, 8, 3) and differ(first[0], first[1])
    path = visitor.download(".shown-sample .download", tmp_path)
    flags = read_record(path)["flags"]
    assert (flags["prompt"], flags["seed"], flags["index"]) == (["a red circle"], 0, 0)
    assert np.array_equal(np.asarray(Image.open(path)), first[0])

    # what all drawings share, one after the other
    before = first
    for change in (
        lambda: page.click(".next-seed"),
        lambda: page.click(".any-seed"),
        lambda: page.fill(".seed input", "77"),
        lambda: page.fill(".prompt input", "a blue star"),
        lambda: page.fill(".negative input", "a red circle"),
        lambda: visitor.slide("scale", "PageUp"),
        lambda: visitor.slide("steps", "ArrowRight"),
        lambda: visitor.slide("num", "ArrowLeft"),
    ):
        change()
        after = visitor.draw()
        assert differ(before, after)
        before = after
    assert len(before) == 1
    page.click(".sampler")
    page.get_by_role("option", name="ddpm", exact=True).click()
    after = visitor.draw()
    assert differ(before, after)
    flags = read_record(visitor.download(".shown-sample .download", tmp_path))["flags"]
    assert flags["seed"] == 77 and flags["negative"] == "a red circle" and flags["guidance_scale"] == 10
    assert flags["sampler"] == "ddpm" and flags["steps"] == 8

    # from a picture: one that was drawn, then an upload
    page.click(".take")
    visitor.tab("From a picture")
    taken = visitor.draw("image_to_image")
    visitor.slide("strength", "PageDown")
    weaker = visitor.draw("image_to_image")
    assert differ(taken, weaker)
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    page.set_input_files(".q-tab-panel:visible input[type=file]", tmp_path / "photo.png")
    page.get_by_text("photo_8x8.png").first.wait_for()
    assert differ(weaker, visitor.draw("image_to_image"))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.set_input_files(".q-tab-panel:visible input[type=file]", tmp_path / "broken.png")
    visitor.told("broken.png cannot be read as an image")
    (tmp_path / "large.png").write_bytes(bytes(MOST_BYTES + 1))
    page.set_input_files(".q-tab-panel:visible input[type=file]", tmp_path / "large.png")
    visitor.told("one picture, of at most 8 MB")

    # a brush
    visitor.tab("Inpaint")
    page.click(".draw-inpaint")
    visitor.told("paint over the part")
    box = page.locator(".canvas img").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.1)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.9, steps=4)
    page.mouse.up()
    page.wait_for_selector(".canvas polyline", state="attached")  # an upright line has no width, which counts as hidden
    painted = visitor.draw("inpaint")
    mask = np.asarray(Image.open(visitor.download(".download-mask", tmp_path)))[..., 0] == 255
    assert mask[1:7, 6].all() and not mask[:, :4].any()
    assert np.array_equal(painted[0][~mask], PHOTO[~mask]) and differ(painted[0][mask], PHOTO[mask])
    visitor.slide("brush", "PageUp")
    assert (visitor.draw("inpaint")[0][~mask] != PHOTO[~mask]).any()
    page.click(".clear")
    page.wait_for_selector(".canvas polyline", state="detached")
    page.click(".draw-inpaint")
    visitor.told("paint over the part")

    # films
    visitor.tab("Between")
    between = visitor.draw("interpolate")
    assert len(between) == 8 and visitor.film("interpolate").n_frames == 14
    page.fill(".to-seed input", "5")
    other = visitor.draw("interpolate")
    assert not differ(between[0], other[0]) and differ(between[-1], other[-1])
    page.fill(".to-text input", "a red circle")
    assert differ(other[-1], visitor.draw("interpolate")[-1])
    visitor.slide("frames", "ArrowRight")
    assert len(visitor.draw("interpolate")) == 12
    visitor.tab("From noise")
    way = visitor.draw("trajectory")
    film = visitor.film("trajectory")
    assert film.n_frames == 9 and len(way) == 1
    saved = Image.open(visitor.download(".shown-trajectory .download-film", tmp_path))
    assert saved.format == "GIF" and saved.n_frames == 9

    # the run and the model
    visitor.tab("Training")
    page.wait_for_selector("img[src^='data:image/svg']")
    visitor.tab("Model")
    page.get_by_text("config", exact=True).click()
    page.get_by_text('"model_channels"').wait_for()

    visitor.only_here(server)
    assert server.stop(signal.SIGINT) == (130, "stopped\n")
    notes = (server.folder / "notes").read_text() if (server.folder / "notes").exists() else ""
    assert all("127.0.0.1" in line or "None" in line for line in notes.splitlines()), notes


def test_two_visitors_at_once(browser, server):
    one, two = Visitor(browser, server.url), Visitor(browser, server.url)
    for visitor, prompt, seed in ((one, "a red circle", "1"), (two, "a blue star", "2")):
        visitor.page.fill(".prompt input", prompt)
        visitor.page.fill(".seed input", seed)
    alone = one.draw(), two.draw()
    assert differ(*alone)
    for _ in range(3):
        one.draw(wait=False)
        two.draw(wait=False)
        assert np.array_equal(one.drawn(), alone[0]) and np.array_equal(two.drawn(), alone[1])
    one.page.click(".take")
    two.tab("From a picture")
    assert two.page.locator(".given").count() == 0
    two.page.click(".draw-image_to_image")
    two.told("give a picture first")
    one.only_here(server)
    two.only_here(server)
    assert server.stop(signal.SIGTERM) == (130, "stopped\n")


def test_stopped_while_it_draws(browser, server):
    visitor = Visitor(browser, server.url)
    visitor.page.fill(".prompt input", "a red circle")
    visitor.slide("num", "PageUp")
    visitor.page.click(".draw-sample")
    visitor.page.get_by_text("compiling").wait_for()
    began = time.monotonic()
    status, said = server.stop(signal.SIGTERM)
    assert status == 130 and said.startswith("stopped") and time.monotonic() - began < 30


@pytest.mark.parametrize("server", ["superres"], indirect=True)
def test_a_model_that_only_enlarges(browser, server, tmp_path):
    visitor = Visitor(browser, server.url, ".draw-upscale")
    assert {tab.inner_text().splitlines()[-1] for tab in visitor.page.get_by_role("tab").all()} >= {"Enlarge", "Model"}
    assert visitor.page.get_by_role("tab").count() == 3 and visitor.page.locator(".prompt, .scale").count() == 0
    Image.fromarray(PHOTO[:4, :6]).save(tmp_path / "small.png")
    visitor.page.set_input_files("input[type=file]", tmp_path / "small.png")
    visitor.page.get_by_text("small.png").first.wait_for()
    assert visitor.draw("upscale").shape == (4, 8, 12, 3)


def test_strangers_and_large_bodies_are_turned_away(server):
    def status(data=None, **headers):
        request = urllib.request.Request(server.url, data, headers)
        try:
            return urllib.request.urlopen(request).status
        except urllib.error.HTTPError as error:
            return error.code

    assert status() == 200
    assert status(Host="evil.example") == 400
    # its head alone: a client that sends all of it may find the connection closed before it reads the answer
    with contextlib.closing(http.client.HTTPConnection(server.url.split("/")[2], timeout=60)) as connection:
        connection.putrequest("POST", "/")
        connection.putheader("Content-Length", str(MOST_BYTES + 2**17))
        connection.endheaders()
        assert connection.getresponse().status == 413
    assert status(iter([b"a"])) == 411  # chunked: nobody knows how long


def test_a_port_that_is_taken(server):
    port = server.url.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "ldm_jax.app", "--workdir", str(server.folder / "model"), "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    begun, _, said = done.stderr.partition("\n")
    assert begun == "ldm-app: starting"
    assert said == f"OSError: --host 127.0.0.1 --port {port}: Address already in use; --port 0 takes one that is free\n"
