"""Pages of the site that aren't files of docs/: the README, changes, how to take part, the notebook, and the reference.

A page of the reference is a module, or several. What is public of a package is its `__all__`; of a module, what it defines
without an underscore. Each thing is described once, on the page of the nearest module to where it is defined.
"""

import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "ldm_jax"
# What `ldm_jax` imports when it is first used, in the order in which it is met.
FRONT = ("load", "save", "LatentDiffusion", "Autoencoder", "load_lora", "apply_lora", "save_embedding", "save_control")
# Files of the repository's root -> pages of the site.
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md"}
NOTEBOOK = ("notebooks/tour.ipynb", "tour.md")
# Title -> modules and classes; the shortest name is the page's.
REFERENCE = {
    "Load, save, draw": ("ldm_jax", "api.sampling.Options", "api.specification.Specification"),
    "Diffusion": ("diffusion", "diffusion.recipe"),
    "Samplers": ("diffusion.samplers.protocol", "diffusion.samplers"),
    "Schedules": ("diffusion.schedules",),
    "Grids": ("diffusion.grids",),
    "Denoisers": ("diffusion.denoiser",),
    "Guidance": ("diffusion.guidance",),
    "Editing": ("diffusion.editing",),
    "Objectives": ("diffusion.objectives", "diffusion.times", "diffusion.weightings"),
    "Few steps": ("diffusion.few_steps",),
    "Networks": ("models",),
    "Conditions": ("conditioning",),
    "First stage": ("first_stage",),
    "Data": (
        "data", "data.source", "data.folder", "data.tfds_source", "data.transform", "data.pipeline", "data.tokenizer",
        "data.latent_cache", "data.shapes", "data.masks", "data.degradation", "data.sound", "data.texts",
    ),
    "Media": ("media",),
    "Training": (
        "training", "training.program", "training.state", "training.optimizer", "training.sharding", "training.checkpoint",
        "training.loop", "training.ema", "training.distributed", "training.bucket",
    ),
    "Build": ("build",),
    "Evaluation": ("evaluation",),
    "Weights": ("weights",),
}  # fmt: skip


def page_of(modules: tuple[str, ...]) -> str:
    """Where a page of the reference is."""
    return f"reference/{min(modules, key=len)}.md"


def on_config(config):
    """The reference in the navigation."""
    for section in config.nav:
        if "Reference" in section:
            section["Reference"] = [{title: page_of(modules)} for title, modules in REFERENCE.items()]
    config.watch += [str(ROOT / name) for name in (*PAGES, NOTEBOOK[0], PACKAGE)]
    return config


def on_files(files, config):
    """All pages that aren't files of docs/."""
    made = {page: moved((ROOT / name).read_text(encoding="utf-8")) for name, page in PAGES.items()}
    made |= notebook(ROOT / NOTEBOOK[0], NOTEBOOK[1])
    made |= reference()
    made["CITATION.cff"] = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def moved(text: str) -> str:
    """Relative links of a file in the repository's root, as they are for a page of the site."""

    pages = PAGES | dict([NOTEBOOK])

    def link(found: re.Match) -> str:
        path, anchor = found[1], found[2] or ""
        return f"]({pages.get(path, path.removeprefix('docs/'))}{anchor})"

    return re.sub(r"\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)", link, text)


def notebook(path: Path, page: str) -> dict:
    """A notebook with its outputs as a page, and its pictures."""
    text, resources = MarkdownExporter().from_filename(str(path))
    folder = Path(page).stem
    for name in resources["outputs"]:
        text = text.replace(f"({name})", f"({folder}/{name})")
    return {page: text.replace("](../docs/", "](")} | {f"{folder}/{name}": data for name, data in resources["outputs"].items()}


def reference() -> dict[str, str]:
    """The pages of the reference."""
    package = griffe.load(PACKAGE, search_paths=[str(ROOT)], resolve_aliases=True)
    found = {module: package if module == PACKAGE else package[module] for each in REFERENCE.values() for module in each}
    shown = {module: members(part) for module, part in found.items() if part.is_module and part is not package}
    shown[PACKAGE] = {name: package["api"].imports[name] for name in FRONT}
    owners: dict[str, str] = {}  # canonical path -> the module that describes it
    for module in sorted(shown, key=len):
        for path in shown[module].values():
            if path not in owners or path.startswith(f"{PACKAGE}.{module}."):
                owners[path] = module
    owners |= dict.fromkeys(shown[PACKAGE].values(), PACKAGE)
    pages = {}
    for title, modules in REFERENCE.items():
        parts = [f"# {title}\n\n"]
        for module in modules:
            parts.append(f"::: {found[module].canonical_path}\n")
            if module not in shown:
                parts.append("\n")
                continue
            parts.append(options(members="false", show_root_full_path="true"))
            elsewhere = []
            for name, path in shown[module].items():
                if owners[path] == module:
                    renamed = path if path.endswith(f".{name}") else f"{PACKAGE}.{module}.{name}"
                    parts += [f"::: {renamed}\n", options(heading_level=3)]
                else:
                    elsewhere.append(f"[`{name}`][{path}]")
            if elsewhere:
                parts.append("Described elsewhere: " + ", ".join(elsewhere) + ".\n\n")
        pages[page_of(modules)] = "".join(parts)
    return pages


def options(**values) -> str:
    """Of a directive, in the lines after it."""
    return "    options:\n" + "".join(f"      {name}: {value}\n" for name, value in values.items()) + "\n"


def members(module: griffe.Module) -> dict[str, str]:
    """Public names -> canonical paths; modules in a module aren't among them."""
    if module.exports:  # by import where there is one: a function may have the name of the file that it is in
        paths = {str(name): module.imports.get(str(name), f"{module.path}.{name}") for name in module.exports}
    else:
        paths = {name: f"{module.path}.{name}" for name, member in module.members.items() if is_public(member)}
    found = {name: module.package[path.removeprefix(f"{PACKAGE}.")] for name, path in paths.items()}
    return {name: member.canonical_path for name, member in found.items() if not member.is_module}


def is_public(member: griffe.Object | griffe.Alias) -> bool:
    """Of a module without `__all__`: its functions and classes, and tables with names in capitals."""
    if member.is_alias or member.name.startswith("_"):
        return False
    return member.is_function or member.is_class or (member.is_attribute and member.name.isupper())
