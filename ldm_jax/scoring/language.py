"""What drawn sentences are worth, beside real ones and beside what little effort gives.

valid           the share that the grammar has (`data.sentences` only)
right_kind      the share that are of the kind which was asked for; `data.sentences` with classes only
perplexity      of a 3-gram model of one half of the validation set
novel           the share that are no training sentence; different: the share that are not drawn twice
distinct_1..3   different n-grams over all
named           of captions of `shapes` drawn for a picture: the share that names the colours and shapes of its own caption, no
                more and no fewer, in any order; colours: the share that has its colours and no others; overlap: of captions,
                the words shared with the picture's own (ROUGE-1). other_named, other_colours, other_overlap: the same
                against another picture's caption, what guessing brings
kept            of infilling: the share of the known words that stand where they stood; kept_all: of sentences that keep all

Lines beside the drawn ones, each of as many sentences where there are enough:

held-out text   the other half of the validation set
shuffled text   the same with the words of every sentence in a random order
3-gram model    drawn of a 3-gram model of the training set
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldm_jax import api, build
from ldm_jax.data import sentences, shapes
from ldm_jax.data.control_pictures import COLUMN
from ldm_jax.data.texts import all_texts
from ldm_jax.evaluation import language
from ldm_jax.primitives.files import write_json, write_text
from ldm_jax.scoring import report
from ldm_jax.scoring.drawing import Conditions, Drawer
from ldm_jax.scoring.features import digest
from ldm_jax.scoring.sweep import measured_before, progress, settings_of, way_of_drawing
from ldm_jax.training import distributed, sharding
from ldm_jax.workdir import versions

ORDER = 3
Words = list[list[str]]


def measure(
    drawn: Words, model: language.NGrams, training: Words, kinds: Sequence[str] | None = None, grammar: bool = False
) -> dict[str, float]:
    """The numbers of sentences, each a list of words. `kinds`: what each was asked to be, by name; `grammar`: whether they are
    to be those of `data.sentences`."""
    values = {}
    if grammar:
        found = [sentences.kinds_of(" ".join(words)) for words in drawn]
        values["valid"] = float(np.mean([bool(each) for each in found]))
        if kinds is not None:
            values["right_kind"] = float(np.mean([kind in each for kind, each in zip(kinds, found)]))
    values["perplexity"] = model.perplexity(drawn)
    values |= {"novel": language.novelty(drawn, training), "different": language.different(drawn)}
    return values | {f"distinct_{n}": language.distinct(drawn, n) for n in (1, 2, 3)}


def described(lines: Sequence[str], own: Sequence[str], words: Callable[[str], list[str]], of_shapes: bool) -> dict[str, float]:
    """How well lines describe pictures whose captions are `own`, and, to compare, as if each were of the next picture."""
    values = {}
    for prefix, captions in (("", list(own)), ("other_", [*own[1:], *own[:1]])):
        pairs = list(zip(lines, captions, strict=True))
        if of_shapes:
            same = [sorted(shapes.objects_named(line)) == sorted(shapes.objects_named(caption)) for line, caption in pairs]
            values[f"{prefix}named"] = float(np.mean(same))
            same = [_colours(words(line)) == _colours(words(caption)) for line, caption in pairs]
            values[f"{prefix}colours"] = float(np.mean(same))
        shared = [language.overlap(words(line), words(caption)) for line, caption in pairs]
        values[f"{prefix}overlap"] = float(np.mean(shared))
    return values


def _colours(words: Iterable[str]) -> set[str]:
    return set(words) & set(shapes.COLOUR_NAMES)


class Scorer:
    """What looks at the sentences of a model: it is loaded for a config and a condition that know their vocabulary."""

    def __init__(self, config: Mapping[str, Any], condition: Any):
        self.medium, self.condition = build.make_medium(config), condition
        self.grammar = config["data"]["source"] == "sentences"
        self.rows = {split: build.make_source(config, split, condition.columns) for split in ("train", "validation")}
        self.training, held_out = (self.words(all_texts(source)) for source in self.rows.values())
        order = np.random.default_rng(0).permutation(len(held_out))  # sources are often sorted, or have kinds in turn
        self.known, self.held_out = ([held_out[i] for i in sorted(half)] for half in np.array_split(order, 2))
        if not self.held_out:
            raise ValueError(f"{self.rows['validation'].info.name}: one sentence; a half of them is compared with the other")
        self.model = language.NGrams(self.known, ORDER)

    def words(self, lines: Iterable[str]) -> Words:
        """The words of texts, as the vocabulary tells them apart."""
        return [self.medium.tokenizer.words(line) for line in lines]

    def measure(self, drawn: Words, kinds: Sequence[str] | None = None) -> dict[str, float]:
        """The numbers of sentences, see above; `kinds`: what each was asked to be."""
        return measure(drawn, self.model, self.training, kinds, self.grammar)

    def of(self, tokens: np.ndarray, conditions: Conditions) -> tuple[dict[str, float], list[str]]:
        """The numbers of tokens [B, N, 1] that were drawn for these conditions, and the lines that they are."""
        lines, names, labels = self.medium.words(tokens), conditions.source.info.class_names, conditions.labels()
        values = self.measure(self.words(lines), None if labels is None or not names else [names[label] for label in labels])
        if COLUMN in self.condition.columns:
            own = all_texts(conditions.source)
            own = [own[conditions.row(i)] for i in range(conditions.num)]
            one_line = self.medium.tokenizer.words
            values |= described(lines, own, one_line, self.medium.section["source"] == "shapes")
        if hasattr(self.condition, "kept_words"):
            values |= self.condition.kept_words(conditions.inputs(np.arange(conditions.num)), tokens)
        return values, lines


def draw(drawer: Drawer, num: int, batch_size: int, options: Mapping[str, Any], what: str = "drawing") -> np.ndarray:
    """Tokens [num, N, 1] of what a drawer draws, in every process."""
    tokens = []
    with progress(num, what) as done:
        for batch in drawer.batches(np.arange(num), batch_size, options):
            tokens.append(np.asarray(sharding.replicate(drawer.mesh, batch.images))[batch.rows >= 0])
            done(len(tokens[-1]))
    return np.concatenate(tokens)


def evaluate_texts(
    ldm: api.LatentDiffusion, request: Any, out: Path, *, model: Mapping[str, Any], mesh: Any, say: Callable[[str], None]
) -> dict[str, Any]:
    """`scoring.evaluate` for a model of text: OUT/results.json, results.md, report.html and the drawn sentences,
    OUT/SETTING.txt; other settings measured there before stay. ValueError for what is of pictures."""
    for name in ("memorisation", "reconstructions", "likelihood", "pictures"):
        if getattr(request, name):
            raise ValueError(f"{name} is of models that draw pictures; this one draws sentences: leave it out")
    config, scorer = ldm.config, Scorer(ldm.config, ldm.condition)
    conditions = Conditions(config, ldm.condition, scorer.rows[request.conditions], request.num)
    drawer = Drawer(ldm.specification, sharding.replicate(mesh, ldm.params), conditions, mesh, request.seed)
    distributed.on_first("evaluation", lambda: out.mkdir(parents=True, exist_ok=True))
    source = conditions.source
    about = {"identity": {**model, "weights": digest(ldm.params), "seed": request.seed, "drawing": way_of_drawing(config),
                          "conditions": f"{source.info.name} {request.conditions}, {len(source)} rows"},
             "pictures": {"size": [scorer.medium.length], "what": "sentences of so many tokens"}, "versions": versions(),
             "features": {"kind": "words"},
             "reference": {"data": scorer.rows["validation"].info.name, "count": len(scorer.known)}}  # fmt: skip
    before = measured_before(out, about, request.num).get("results", ())
    found = {result["setting"]: result for result in before if "steps" in result}  # not what drawn ones are compared with
    for setting in settings_of(config, request.samplers, request.steps, request.guidance_scales):
        options = {"sampler": setting.sampler, "steps": setting.steps, "guidance_scale": setting.guidance_scale}
        drawn = draw(drawer, request.num, request.batch_size, options, f"drawing {setting.name}")
        if jax.process_index():
            continue
        values, lines = scorer.of(drawn, conditions)
        write_text(out / f"{setting.name}.txt", "".join(f"{line}\n" for line in lines))
        result = {"setting": setting.name, **setting._asdict(), "num": request.num, "values": values, "notes": []}
        found[setting.name] = result
        say(f"{setting.name}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    for name, some in baselines(scorer.held_out, scorer.training, request.num, request.seed).items():
        found[name] = {"setting": name, "sampler": name, "num": len(some), "values": scorer.measure(some), "notes": []}
    results = {**about, "config": dict(config), "results": list(found.values())}

    def write() -> None:
        write_json(out / "results.json", results)
        report.write(out, results, {}, f"Evaluation of {config['name']}")

    distributed.on_first("report", write)
    return results


def baselines(held_out: Words, training: Words, num: int, seed: int) -> dict[str, Words]:
    """What drawn sentences are compared with: at most `num` of each."""
    rng = np.random.default_rng(seed)
    real = [held_out[i] for i in sorted(rng.permutation(len(held_out))[:num])]
    longest, chain = max(map(len, training)), language.NGrams(training, ORDER)
    return {
        "held-out text": real,
        "shuffled text": language.shuffled(real, rng),
        f"{ORDER}-gram model": [chain.draw(rng, longest) for _ in range(num)],
    }
