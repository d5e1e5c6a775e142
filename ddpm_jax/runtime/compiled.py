"""What the text of a compiled program says: what its operations cost, and what devices exchange.

XLA's compiler for TPUs writes its estimate of the cycles into each operation. For a GPU an
operation is a kernel, which costs what it reads and writes. The body of a loop stands once in the
text and counts as often as it runs. A fusion has the name of its last operation.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator

import numpy as np
from jax import stages

from ddpm_jax.runtime import compilation

# An operation's kind, by the names of the modules and functions on its way; the first that fits.
_KINDS = (
    ("randomness", r"threefry|random|_normal|_uniform|_randint|bernoulli|erf_inv|[Dd]ropout"),
    ("norms", r"/norm\w*/"),
    ("attention", r"_attn"),
    ("convolutions", r"conv[\d_]|nin_shortcut|sample\b"),
    ("timestep", r"/temb|class_emb"),
    ("optimizer", r"updated|branch_\d|/psum|^[^/]*/(shard_map/)?reduce_sum$"),
)
KINDS = (*(kind for kind, _ in _KINDS), "other")
_SIZES = dict(pred=1, s8=1, u8=1, s16=2, u16=2, s32=4, u32=4, s64=8, u64=8, f16=2, bf16=2, f32=4,
              f64=8)
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all",
         "partition-id", "replica-id")
_OPERATION = re.compile(r"\s*(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a compiled program.

    Attributes:
        opcode: XLA's, for example "fusion", "copy", or the name of a library's function.
        name: where it comes from: the modules and functions on its way, down to the primitive.
        cycles: estimated, on a TPU.
        num_bytes: read and written, each operand as a whole.
    """

    opcode: str
    name: str
    cycles: int
    num_bytes: int

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        fits = (kind for kind, words in _KINDS if re.search(words, self.name))
        return next(fits, "other")

    @property
    def place(self) -> str:
        """The end of the name, equal for all blocks of the network, and the opcode."""
        name = re.sub(r"\d+", "#", self.name.partition(";")[0])
        name = re.sub(r"^jit\([^)]*\)/(shard_map/)?|.*/(down|up|mid)_[^/]*/", "", name)
        gradient = "gradient of " if "transpose(" in self.name else ""
        return f"{gradient}{name[-60:]} ({self.opcode})"


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices.

    Attributes:
        opcode: for example "all-reduce".
        num_bytes: that each device gives.
        num_devices: that take part.
    """

    opcode: str
    num_bytes: int
    num_devices: int

    @property
    def sent(self) -> int:
        """Bytes that each device sends, in a ring."""
        n = self.num_devices
        share = {"all-reduce": 2 * (n - 1) / n, "all-gather": n - 1, "collective-permute": 1}
        return round(self.num_bytes * share.get(self.opcode, (n - 1) / n))


@dataclasses.dataclass(frozen=True)
class Block:
    """Operations that run once in turn: the program but for its loops, or the body of a loop.

    Attributes:
        operations: without what costs nothing.
        collectives: what the devices exchange.
        loops: (how often it runs, its body) of each loop.
    """

    operations: tuple[Operation, ...]
    collectives: tuple[Collective, ...]
    loops: tuple[tuple[int, "Block"], ...] = ()

    def cost(self, of: Callable[[Operation], float]) -> float:
        """The sum over all operations, those of a loop as often as they run."""
        own = sum(map(of, self.operations))
        return own + sum(n * body.cost(of) for n, body in self.loops)

    @property
    def cycles(self) -> int:
        """Estimated cycles, with those of its loops."""
        return int(self.cost(lambda operation: operation.cycles))

    @property
    def num_bytes(self) -> int:
        """Bytes that the operations read and write, with those of its loops."""
        return int(self.cost(lambda operation: operation.num_bytes))

    @property
    def sent(self) -> int:
        """Bytes that each device sends to others, with those of its loops."""
        own = sum(collective.sent for collective in self.collectives)
        return own + sum(n * body.sent for n, body in self.loops)

    @property
    def longest_loop(self) -> tuple[int, "Block"] | None:
        """(how often it runs, its body) of the loop that costs most, where there is one."""
        def cost(loop):
            return loop[0] * (loop[1].cycles or loop[1].num_bytes)

        return max(self.loops, key=cost, default=None)

    def by(self, key: Callable[[Operation], str]) -> dict[str, float]:
        """The share of each key in the cycles, or in the bytes of a GPU; the largest first."""
        sums: collections.Counter = collections.Counter()

        def add(block, times):
            for operation in block.operations:
                cost = operation.cycles if self.cycles else operation.num_bytes
                sums[key(operation)] += times * cost
            for n, body in block.loops:
                add(body, times * n)

        add(self, 1)
        total = max(sum(sums.values()), 1)
        return {name: cost / total for name, cost in sums.most_common()}


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        block: what it does.
        memory: bytes that each device holds during a call, arguments included.
    """

    block: Block
    memory: int


def program(lowered: stages.Lowered) -> Program:
    """Compiles for the devices that this was lowered for, and reads what came of it."""
    compiled = lowered.compile()
    return Program(read(compiled.as_text()), compilation.memory_of(compiled))


def read(text: str) -> Block:
    """The operations of a program, from its text as `Compiled.as_text` gives it."""
    computations = dict(_computations(text))
    entry = next(name for name in computations if name.startswith("ENTRY "))
    return _block(computations, entry)


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """(name, its lines) of each computation; "ENTRY " precedes the name of the first to run."""
    lines: list[str] = []
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            lines = []
            yield (header[1] or "") + header[2], lines
        else:
            lines.append(line)


def _block(computations: dict[str, list[str]], name: str) -> Block:
    """What one computation does, with what it calls; of branches, the one that costs most."""
    types: dict[str, str] = {}
    operations, collectives, loops = [], [], []
    for line in computations.get(name, ()):
        found = _OPERATION.match(line)
        if not found:
            continue
        own, type_, opcode, rest = found.groups()
        types[own] = type_
        blocks = functools.partial(_called, computations, rest)
        if opcode == "while":
            body, = blocks("body")
            loops.append((_times(computations, rest), body))
        elif opcode in ("conditional", "call", "async-start"):
            called = blocks("branch_computations|true_computation|false_computation|to_apply|calls")
            chosen = max(called, key=lambda block: block.cycles or block.num_bytes, default=None)
            if chosen is not None:
                operations += chosen.operations
                collectives += chosen.collectives
                loops += chosen.loops
        elif opcode not in _FREE and not opcode.endswith("-done"):
            operands = re.findall(r"%([\w.\-]+)", rest.partition(")")[0])
            given = sum(_num_bytes(types.get(operand, "")) for operand in operands)
            exchange = opcode.removesuffix("-start")
            if exchange in _COLLECTIVES:
                collectives.append(Collective(exchange, given, _group(rest)))
            operations.append(_operation(opcode, rest, given + _num_bytes(type_)))
    return Block(tuple(operations), tuple(collectives), tuple(loops))


def _called(computations, rest, attributes):
    """The blocks of the computations that these attributes of an operation name."""
    names = re.findall(rf"\b(?:{attributes})=(\{{[^}}]*\}}|%?[\w.\-]+)", rest)
    return [
        _block(computations, name) for group in names for name in re.findall(r"[\w.\-]+", group)
    ]


def _operation(opcode, rest, num_bytes):
    cycles = re.search(r'"estimated_cycles":"(\d+)"', rest)
    name = re.search(r'op_name="([^"]*)"', rest)
    library = re.search(r'custom_call_target="([^"]*)"', rest)
    return Operation(
        library[1] if library else opcode, name[1] if name else "",
        int(cycles[1]) if cycles else 0, num_bytes,
    )


def _times(computations, rest):
    """How often a loop runs: what its text says, or what its condition compares with."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    text = "\n".join(computations.get(condition[1], ())) if condition else ""
    limits = re.findall(r"= s32\[\]\S* constant\((\d+)\)", text)
    return int(limits[0]) if len(limits) == 1 and "direction=LT" in text else 1


def _group(rest):
    """How many devices take part in a collective."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    if listed:
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    return int(counted[1]) if counted else 1


def _num_bytes(type_: str) -> int:
    return sum(
        _SIZES.get(dtype, 0) * int(np.prod([int(n) for n in dims.split(",") if n], dtype=np.int64))
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", type_)
    )
