"""The training step (or the sampling program) of a config, compiled for a topology, and what the compiler says of it."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax

from ldm_jax import api, build, models
from ldm_jax.api import drawing
from ldm_jax.plan.topology import Chip, chip_of, chips_of, devices_of, has_compiler
from ldm_jax.primitives import placement
from ldm_jax.training import sharding
from ldm_jax.training.program import Program

PyTree = Any
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
_SHAPE = re.compile(r"(pred|bf16|[fsu]\d+)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"= (.*?) (?:{'|'.join(KINDS)})(?:-start)?\(")
_FUSED_SCATTER = re.compile(r"^%all-reduce-scatter[\w.-]* \(.*?\) -> (.*) {$")  # how a TPU's compiler writes a reduce-scatter


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one program costs, a chip; bytes and FLOP of one execution. Compiled figures are None without a compiler.

    params, optimizer     bytes held: parameters with their average, moments; fixed: networks that are not trained
    arguments, temporaries, peak    what the compiler assigns: arguments, scratch, both together less what is given away
    flops                 by the compiler (products of custom kernels are not counted), for every pass of a loop
    traffic               bytes read and written in the chip's memory, as if it grew as the products do with the passes
    collectives           {kind: (how many, bytes)}
    """

    name: str
    topology: str | None
    chips: int
    mesh: Mapping[str, int]
    batch_size: int
    parameters: int
    params: float
    optimizer: float
    fixed: float
    steps: int
    arguments: float | None = None
    temporaries: float | None = None
    peak: float | None = None
    flops: float | None = None
    traffic: float | None = None
    collectives: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    largest_batch: int | None = None

    @property
    def chip(self) -> Chip | None:
        """What one chip can do."""
        return chip_of(self.topology) if self.topology else None

    @property
    def fits(self) -> bool | None:
        """Whether the program's peak is within the chip's memory."""
        return None if self.peak is None or self.chip is None else self.peak <= self.chip.memory

    @property
    def seconds(self) -> float | None:
        """A roofline: the slowest of products, memory and interconnect at their peaks, as if the others hid behind it."""
        if self.flops is None or self.chip is None:
            return None
        moved = sum(size for _, size in self.collectives.values())
        return max(self.flops / self.chip.flops, self.traffic / self.chip.bandwidth, moved / self.chip.interconnect)

    @property
    def mfu(self) -> float | None:
        """The share of the peak that products take at that speed."""
        return None if self.seconds is None else self.flops / self.chip.flops / self.seconds


def held(mesh: Mapping[str, int], tree: PyTree) -> float:
    """Bytes of a tree of shapes that one chip of a mesh {axis: size} holds, by the sharding rules."""
    axes, total = SimpleNamespace(shape=mesh), 0.0
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        split = [] if key else placement.spec(axes, jax.tree_util.keystr(path, simple=True, separator="/"), x.shape)
        parts = math.prod(mesh[axis] for axis in split if axis)
        total += math.prod(x.shape) * (8 if key else x.dtype.itemsize) / parts
    return total


def mesh_of(axes: Mapping[str, int], chips: int) -> dict[str, int]:
    """{axis: size} of all axes, -1 being the rest. ValueError unless they make up the chips."""
    sizes = {axis: axes.get(axis, -1 if axis == "data" else 1) for axis in placement.AXES}
    if len(rests := [axis for axis, size in sizes.items() if size == -1]) > 1:
        raise ValueError(f"mesh {sizes}: one axis may be -1, the rest, not {' and '.join(rests)}; say data=1 besides")
    rest = chips // math.prod(size for size in sizes.values() if size > 0)
    sizes = {axis: rest if size == -1 else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != chips:
        raise ValueError(f"mesh {sizes} has {math.prod(sizes.values())} chips; the topology has {chips}")
    return sizes


def compile_training(
    config: Mapping[str, Any],
    stage: str,
    topology: str | None,
    mesh: Mapping[str, int] | None = None,
    batch_size: int | None = None,
) -> Plan:
    """The plan of a stage's training step: by the rules alone without a topology, or where its compiler is not installed.

    ValueError for a batch or a mesh that doesn't fit the topology."""
    config = with_batch(build.with_lists(config), stage, batch_size)
    program, section = build.make_program(config, stage), config[f"{stage}_train"]
    axes = mesh_of(mesh or config.get("mesh", {}), chips_of(topology) if topology else 1)
    shards, parts = axes["data"] * axes["fsdp"], section.get("accumulate", 1)
    if section["batch_size"] % (shards * parts):
        raise ValueError(
            f"config.{stage}_train.batch_size={section['batch_size']}: must be a multiple of {shards} chips x {parts} parts; "
            f"--batch-size={-(-section['batch_size'] // (shards * parts)) * shards * parts} is the next one"
        )
    shapes = program.shapes
    plan = Plan(
        f"{config['name']}, {stage}",
        topology,
        math.prod(axes.values()),
        axes,
        section["batch_size"],
        models.count(shapes.params),
        held(axes, {"params": shapes.params, "ema": shapes.ema}),
        held(axes, shapes.opt_state),
        held(axes, program.constants),
        section["steps"],
    )
    if topology is None or not has_compiler(topology):
        return plan
    compiled = lower(program, sharding.make_mesh(**axes, devices=devices_of(topology))).compile()
    key = jax.eval_shape(lambda: jax.random.key(0))
    return read(plan, compiled, passes(program.step, program.shapes, program.batch, key, program.constants))


def lower(program: Program, mesh: Any) -> Any:
    """The step of a program, lowered for a mesh, of shapes alone."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return program.compile(mesh, program.constants).lower(program.shapes, program.batch, key)


def compile_sampling(config: Mapping[str, Any], topology: str | None, batch_size: int) -> Plan:
    """The plan of drawing so many pictures on one chip: the whole trajectory and the decoder."""
    config = build.with_lists(config)
    condition, stage = build.make_condition(config), build.make_first_stage(config)
    spec = api.Specification(config, condition)
    init = build.make_diffusion_init(config, condition)
    params = jax.eval_shape(lambda key: {"first_stage": stage.init(key), **init(key)}, jax.random.key(0))
    _, _, cond = build.example_inputs(config)
    cond = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), cond)
    axes = dict.fromkeys(placement.AXES, 1)
    name = f"{config['name']}, {config['sampling']['steps']} steps of {config['sampling']['sampler']}"
    plan = Plan(name, topology, 1, axes, batch_size, models.count(params), held(axes, params), 0.0, 0.0, 1)
    if topology is None or not has_compiler(topology):
        return plan
    mesh = sharding.make_mesh(devices=devices_of(topology)[:1])
    here = sharding.replicated(mesh)

    def draw(params: PyTree, key: jax.Array, cond: PyTree, negative: PyTree) -> jax.Array:
        options = {} if negative is None else {"negative": negative, "guidance_scale": jax.numpy.float32(2.0)}
        return drawing.sample(spec, params, key, cond, num=batch_size, **options)

    guided = cond is not None and config["sampling"]["guidance_scale"] != 1
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        given = params, key, cond, cond if guided else None
        lowered = jax.jit(draw, in_shardings=here, out_shardings=here).lower(*given)
        return read(plan, lowered.compile(), passes(draw, *given))


def passes(function: Any, *shapes: Any) -> float:
    """How many times the products of a program's text it does: the compiler counts what is in a loop once."""
    jaxpr = jax.make_jaxpr(function)(*shapes).jaxpr
    once = _products(jaxpr, False)
    return _products(jaxpr, True) / once if once else 1.0


def _products(jaxpr: Any, repeated: bool) -> float:
    """FLOP of the products and convolutions of a jaxpr; loops of known length `repeated`, or once."""
    total = 0.0
    for eqn in jaxpr.eqns:
        shape = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * shape * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, out = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec[0]
            total += 2 * shape * math.prod(kernel) / kernel[out]
        times = eqn.params["length"] if eqn.primitive.name == "scan" and repeated else 1
        total += times * sum(_products(inner, repeated) for inner in _inside(eqn.params))
    return total


def _inside(params: Mapping[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation holds."""
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(each, "jaxpr", each)
            if hasattr(inner, "eqns"):
                yield inner


def read(plan: Plan, compiled: Any, passes: float = 1.0) -> Plan:
    """The plan with what the compiler says; products and traffic are done so many times as its text has them."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, (list, tuple)) else cost
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return dataclasses.replace(
        plan,
        arguments=float(arguments),
        temporaries=float(temporaries),
        peak=float(arguments + temporaries + max(kept, 0)),
        flops=passes * float(cost.get("flops", 0.0)),
        traffic=passes * float(cost.get("bytes accessed", 0.0)),
        collectives=collectives(compiled.as_text()),
    )


def collectives(program: str) -> dict[str, tuple[int, float]]:
    """{kind: (how many, bytes that one chip receives)} of a compiled program's text; one that stands in a loop counts once."""
    found: dict[str, tuple[int, float]] = {}
    scattered = None  # the result of the fusion that holds the line, where that is a reduce-scatter
    for line in program.splitlines():
        if not line.startswith(" "):
            fusion = _FUSED_SCATTER.search(line)
            scattered = fusion and fusion[1]
        match = _COLLECTIVE.search(line)
        if match is None:
            continue
        kind = next(kind for kind in KINDS if f" {kind}(" in line or f" {kind}-start(" in line)
        if scattered and kind == "all-reduce":
            kind, sizes = "reduce-scatter", _sizes(scattered)
        else:
            sizes = _sizes(match[1])
        size = max(sizes, default=0) if f"{kind}-start(" in line else sum(sizes)
        count, total = found.get(kind, (0, 0.0))
        found[kind] = count + 1, total + size
    return found


def _sizes(shapes: str) -> list[int]:
    """The bytes of each of the arrays that a program's text gives as "(bf16[8,16]{1,0}, f32[])"."""
    return [
        WIDTHS.get(kind, 4) * math.prod(int(d) for d in dims.split(",") if d) for kind, dims in _SHAPE.findall(shapes)
    ]


def with_batch(config: dict[str, Any], stage: str, batch_size: int | None) -> dict[str, Any]:
    """The config with another batch size."""
    if batch_size is None:
        return config
    return {**config, f"{stage}_train": {**config[f"{stage}_train"], "batch_size": batch_size}}


def largest_batch(config: Mapping[str, Any], stage: str, topology: str, mesh: Mapping[str, int] | None) -> int:
    """The largest batch, of as many rows on every chip by doubling from one, whose step fits; 0 if none does."""
    axes = mesh_of(mesh or config.get("mesh", {}), chips_of(topology))
    unit, best = axes["data"] * axes["fsdp"] * config[f"{stage}_train"].get("accumulate", 1), 0
    for size in (unit * 2**i for i in range(12)):
        try:
            fits = compile_training(config, stage, topology, mesh, size).fits
        except Exception as error:  # the compiler refuses what doesn't fit
            if "RESOURCE_EXHAUSTED" not in str(error) and "memory" not in str(error):
                raise
            fits = False
        if not fits:
            break
        best = size
    return best


def sweep(
    config: Mapping[str, Any],
    stage: str | None,
    topologies: Sequence[str | None],
    meshes: Sequence[Mapping[str, int] | None],
    *,
    batch_size: int | None = None,
    largest: bool = False,
    sampling: bool = False,
) -> Iterator[Plan]:
    """A plan for every topology and mesh."""
    stage = stage or ("diffusion" if "diffusion" in config["stages"] else "first_stage")
    for topology in topologies:
        if sampling:
            yield compile_sampling(config, topology, batch_size or config["evaluation"]["batch_size"])
            continue
        for mesh in meshes:
            plan = compile_training(config, stage, topology, mesh, batch_size)
            if largest and topology:
                plan = dataclasses.replace(plan, largest_batch=largest_batch(config, stage, topology, mesh))
            yield plan
