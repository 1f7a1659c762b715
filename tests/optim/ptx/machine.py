"""Executes a PTX function: all threads of a launch in step, each register an array with a number for each.

Threads whose program counter is lowest go first, so that those that took different branches meet again where
the branches join.
"""

import ctypes
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from .arithmetic import RAW, TYPES, Arithmetic, Fault
from .program import SIZES, Function, Instruction, Module

WARP, LOCAL_BYTES = 32, 1024
LOCAL = 1 << 60  # addresses from here on are in a thread's local memory
ENDED = 1 << 30  # program counter of a thread that has returned


class Memory:
    """The memory of this process that a launch may touch: regions, each checked at every access.

    Args:
        regions: of (address, bytes, name). Those that a kernel must not read past are regions of their own.
    """

    def __init__(self, regions: Sequence[tuple[int, int, str]]) -> None:
        regions = sorted(region for region in regions if region[1])
        self.starts = np.array([start for start, _, _ in regions], np.uint64)
        self.ends = np.array([start + size for start, size, _ in regions], np.uint64)
        self.names = [name for _, _, name in regions]
        # What lies between the first and the last, as an array for each width; only regions are touched.
        self._first = self.starts[0] & np.uint64(2**64 - 16)
        span = int(self.ends.max() - self._first)
        self._all = {
            width: np.ctypeslib.as_array(
                (np.ctypeslib.as_ctypes_type(raw) * (span // width)).from_address(int(self._first))
            )
            for width, raw in RAW.items()
        }

    def check(self, addresses: np.ndarray, width: int, text: str) -> None:
        """Fault unless all accesses are aligned and within a region."""
        if (addresses % np.uint64(width)).any():
            raise Fault(f"{text}: an access of {width} bytes is not aligned")
        at = np.searchsorted(self.starts, addresses, side="right").astype(np.int64) - 1
        bad = (at < 0) | (addresses + np.uint64(width) > self.ends[at])
        if bad.any():
            address, before = int(addresses[bad][0]), int(at[bad][0])
            name = self.names[before] if before >= 0 else "nothing"
            raise Fault(f"{text}: {address:#x} is in no tensor; before it lies {name}")

    def load(self, addresses: np.ndarray, width: int) -> np.ndarray:
        return self._all[width][(addresses - self._first) // np.uint64(width)]

    def store(self, addresses: np.ndarray, values: np.ndarray, width: int) -> None:
        self._all[width][(addresses - self._first) // np.uint64(width)] = values


class Launch:
    """One launch of a kernel, executed to its end.

    Args:
        arguments: ctypes objects, as they go to cuLaunchKernel.
        races: whether it is checked that no warp touches what another stores.

    Attributes:
        moved: the accesses to global memory: by "ld" or "st", the region's name and the bytes of an access of
            a thread, how many there were.

    Raises:
        Fault: see the package.
    """

    def __init__(
        self,
        module: Module,
        name: str,
        blocks: int,
        threads: int,
        arguments: Sequence[object],
        memory: Memory,
        races: bool = True,
    ) -> None:
        function = module.functions[name]
        self.module, self.memory, self.name = module, memory, name
        self.count, self.threads = blocks * threads, threads
        if function.threads is not None and threads > function.threads:
            raise Fault(f"{name} is compiled for blocks of {function.threads} threads, not of {threads}")
        self.thread = np.tile(np.arange(threads, dtype=np.uint32), blocks)
        self.block = np.repeat(np.arange(blocks), threads)
        self.special = {
            "%tid.x": self.thread,
            "%ctaid.x": self.block.astype(np.uint32),
            "%ntid.x": np.full(self.count, threads, np.uint32),
        }
        self.arguments = self._arguments(function, arguments)
        shared = max((place.at + place.size for place in function.shared.values()), default=0)
        self.shared = np.zeros((blocks, shared), np.uint8)
        # By whom and after how many barriers a byte was written; a barrier lets others read it.
        self.writer = np.full((blocks, shared), -1)
        self.written = np.zeros((blocks, shared), np.int64)
        self.reader, self.read = self.writer.copy(), np.full((blocks, shared), -1)  # the same of reading it
        self.barriers = np.zeros(blocks, np.int64)
        self.local = np.zeros((self.count, LOCAL_BYTES), np.uint8)
        self.local_set = np.zeros((self.count, LOCAL_BYTES), bool)
        self.local_top = 0
        self.moved: Counter[tuple[str, str, int]] = Counter()
        self._accesses: dict[str, list[tuple[np.ndarray, np.ndarray, int]]] = {"ld": [], "st": []}
        with np.errstate(all="ignore"):
            Frame(self, function, {}).run(np.arange(self.count))
        if races:
            self._check_races()

    def _arguments(self, function: Function, arguments: Sequence[object]) -> np.ndarray:
        """The bytes of the parameters, as many as the function takes."""
        places = function.params
        sizes = [ctypes.sizeof(argument) for argument in arguments]
        if sizes != [place.size for place in places.values()]:
            wanted = [place.size for place in places.values()]
            raise Fault(f"{function.name} takes arguments of {wanted} bytes, not of {sizes}")
        end = max((place.at + place.size for place in places.values()), default=0)
        if end > 4096:
            raise Fault(f"{function.name}: {end} bytes of arguments; a launch takes 4096")
        raw = np.zeros(end, np.uint8)
        for argument, place in zip(arguments, places.values(), strict=True):
            raw[place.at : place.at + place.size] = np.frombuffer(bytes(argument), np.uint8)
        return raw

    def note(self, kind: str, addresses: np.ndarray, width: int, threads: np.ndarray) -> None:
        """Keeps an access, a thread each, for the checks at the end and for `moved`."""
        at = np.searchsorted(self.memory.starts, addresses, side="right").astype(np.int64) - 1
        for region, number in zip(*np.unique(at, return_counts=True), strict=True):
            self.moved[kind, self.memory.names[region], width] += int(number)
        self._accesses[kind].append((addresses, threads, width))

    def _check_races(self) -> None:
        """Fault if a byte that one warp stores is loaded or stored by another, or stored by two lanes."""

        def bytes_of(kind: str) -> tuple[np.ndarray, np.ndarray]:
            """The bytes that were accessed, and the thread that did."""
            parts = self._accesses[kind]
            spread = [a[:, None] + np.arange(w, dtype=np.uint64) for a, _, w in parts]
            who = [np.repeat(t, w) for _, t, w in parts]
            none = np.zeros(0, np.uint64)
            threads = np.concatenate([none, *who]).astype(np.int64)
            return np.concatenate([none, *map(np.ravel, spread)]), threads

        stored, by = bytes_of("st")
        order = np.lexsort((by, stored))
        stored, by = stored[order], by[order]
        same = stored[1:] == stored[:-1]
        if (same & (by[1:] != by[:-1])).any():
            raise Fault(f"{self.name}: two threads store to {int(stored[1:][same][0]):#x}")
        loaded, reader = bytes_of("ld")
        if len(stored):
            at = np.minimum(np.searchsorted(stored, loaded), len(stored) - 1)
            bad = (stored[at] == loaded) & (by[at] // WARP != reader // WARP)
            if bad.any():
                raise Fault(f"{self.name}: one warp loads what another stores, at {int(loaded[bad][0]):#x}")


class Frame:
    """A call of a function by some threads: its registers and the parameters of calls."""

    def __init__(self, launch: Launch, function: Function, params: dict[str, np.ndarray]) -> None:
        self.launch, self.function, self.count = launch, function, launch.count
        self.registers: dict[str, np.ndarray] = {}
        self.params = params  # of this function, if it was called: bytes [threads, size]
        self.call_params: dict[str, np.ndarray] = {}
        self.returned = {
            name: np.zeros((self.count, place.size), np.uint8) for name, place in function.returned.items()
        }
        self.local_base = launch.local_top
        self.joins = set(function.labels.values())

    def run(self, threads: np.ndarray) -> dict[str, np.ndarray]:
        """Executes the function for these threads; what it returns: bytes [threads, size] by name."""
        launch, code = self.launch, self.function.code
        launch.local_top += sum(-(-place.size // 16) * 16 for place in self.function.local.values())
        counter = np.full(self.count, ENDED)
        counter[threads] = 0
        while (now := int(counter.min())) < len(code):
            active = np.flatnonzero(counter == now)
            waiting = counter[counter > now]
            next_ = int(waiting.min()) if len(waiting) else ENDED
            while True:
                instruction = code[now]
                now += 1
                chosen = active
                if instruction.guard is not None:
                    chosen = active[self.read(instruction.guard, "pred", active) ^ instruction.negated]
                kind = instruction.opcode[0]
                if kind in ("bra", "ret", "exit"):
                    counter[active] = now
                    is_branch = kind == "bra"
                    counter[chosen] = self.function.labels[instruction.operands[0]] if is_branch else ENDED
                    break
                if kind == "bar":
                    self.barrier(active, counter)
                elif len(chosen):
                    self.execute(instruction, chosen)
                if now in self.joins or now >= next_ or now == len(code):
                    counter[active] = now
                    break
        launch.local_top = self.local_base
        return self.returned

    def barrier(self, active: np.ndarray, counter: np.ndarray) -> None:
        """Fault unless all threads of a block that have not ended are here."""
        launch = self.launch
        here = np.bincount(launch.block[active], minlength=len(launch.barriers))
        alive = np.bincount(launch.block[counter != ENDED], minlength=len(launch.barriers))
        if ((here != 0) & (here != alive)).any():
            raise Fault(f"{launch.name}: a barrier that not all threads of a block come to")
        launch.barriers[here != 0] += 1

    # ---- operands

    def read(self, operand: str, kind: str, threads: np.ndarray) -> np.ndarray:
        """The values of an operand as `kind`: a register, a constant, a special register or an address."""
        type_, size = TYPES[kind], SIZES[kind]
        if operand[0] == "%":
            special = self.launch.special.get(operand)
            raw = self.registers.get(operand) if special is None else special
            if raw is None:
                raise Fault(f"{self.function.name}: {operand} is read before it is written")
            raw = raw[threads]
            if kind == "pred" or raw.dtype == bool:
                return raw
            if raw.itemsize != size:  # the lower part, or zeros above
                raw = raw.astype(RAW[size])
            return raw.view(type_)
        if kind == "pred":
            return np.full(len(threads), operand != "0")
        if match := re.fullmatch(r"0[fFdD]([0-9A-Fa-f]+)", operand):
            number = int(match[1], 16)
        elif re.fullmatch(r"-?(\d+|0x[0-9a-fA-F]+)U?", operand):
            number = int(operand.rstrip("U"), 0)
        else:
            number = self.place_of(operand)
        return np.full(len(threads), number & (2 ** (8 * size) - 1), RAW[size]).view(type_)

    def place_of(self, name: str) -> int:
        """The address of a variable, in its space."""
        function = self.function
        if name in function.local:
            return LOCAL + self.local_base + function.local[name].at
        for places in (function.shared, function.params):
            if name in places:
                return places[name].at
        raise Fault(f"{function.name}: what is {name}?")

    def write(self, operand: str, values: np.ndarray, threads: np.ndarray) -> None:
        """Sets a register; one of 16 bits takes 8."""
        if operand == "_":
            return
        if values.dtype != bool:
            values = values.view(RAW[values.itemsize])
            if values.itemsize == 1:
                values = values.astype(np.uint16)
        register = self.registers.get(operand)
        if register is None:
            register = self.registers[operand] = np.zeros(self.count, values.dtype)
        register[threads] = values

    # ---- instructions

    def execute(self, instruction: Instruction, threads: np.ndarray) -> None:
        kind = instruction.opcode[0]
        if kind in ("ld", "st"):
            self.access(instruction, threads)
        elif kind == "call":
            self.call(instruction, threads)
        elif kind in ("shfl", "redux"):
            self.exchange(instruction, threads)
        elif kind == "mov" and "{" in instruction.text:
            self.move_parts(instruction, threads)
        else:
            self.compute(instruction, threads)

    def compute(self, instruction: Instruction, threads: np.ndarray) -> None:
        """An instruction of `Arithmetic`."""
        kind, *modifiers = instruction.opcode
        try:
            compute = getattr(Arithmetic, kind + "_")
        except AttributeError:
            raise Fault(f"unknown instruction: {instruction.text}") from None
        type_ = modifiers[-1]
        to, *operands = instruction.operands
        if kind in ("shl", "shr"):
            values = [self.read(operands[0], type_, threads), self.read(operands[1], "u32", threads)]
        elif kind == "cvt":
            values = [self.read(operands[0], type_, threads)]
        elif kind == "selp":
            values = [self.read(x, type_, threads) for x in operands[:2]]
            values.append(self.read(operands[2], "pred", threads))
        else:
            values = [self.read(x, type_, threads) for x in operands]
        self.write(to, compute(modifiers, *values), threads)

    def move_parts(self, instruction: Instruction, threads: np.ndarray) -> None:
        """Takes a register apart, or makes one of parts."""
        (to, source), type_ = instruction.operands, instruction.opcode[-1]

        def names(text: str) -> list[str]:
            return [name.strip() for name in text.strip("{}").split(",")]

        size = SIZES[type_]
        if to[0] == "{":
            part = RAW[size // len(names(to))]
            values = self.read(source, type_, threads).view(part).reshape(len(threads), -1)
            for i, name in enumerate(names(to)):
                self.write(name, values[:, i].copy(), threads)
        else:
            part = f"b{8 * size // len(names(source))}"
            parts = np.stack([self.read(name, part, threads) for name in names(source)], axis=1)
            self.write(to, np.ascontiguousarray(parts).view(RAW[size])[:, 0], threads)

    def exchange(self, instruction: Instruction, threads: np.ndarray) -> None:
        """shfl.sync.bfly, shfl.sync.idx and redux.sync.max.u32 of whole warps."""
        to, source, *others = instruction.operands
        *how, mask = (self.read(x, "u32", threads) for x in others)
        opcode = instruction.opcode
        is_known = opcode[:3] in (("shfl", "sync", "bfly"), ("shfl", "sync", "idx"))
        is_known = is_known and (how[1] == WARP - 1).all() if len(how) == 2 else is_known
        if not (is_known or opcode == ("redux", "sync", "max", "u32")) or (mask != 2**32 - 1).any():
            raise Fault(f"unknown instruction: {instruction.text}")
        here = np.bincount(threads // WARP)
        if not np.isin(here, (0, WARP)).all():
            raise Fault(f"{self.function.name}: {opcode[0]} without all lanes of a warp")
        all_ = np.zeros(self.count, np.uint32)
        all_[threads] = self.read(source, "u32", threads)
        if opcode[0] == "redux":
            self.write(to, np.repeat(all_.reshape(-1, WARP).max(1), WARP)[threads], threads)
            return
        to, _, flag = to.partition("|")
        at = threads ^ how[0] if opcode[2] == "bfly" else threads // WARP * WARP + how[0] % WARP
        self.write(to, all_[at], threads)
        if flag:
            self.write(flag, np.ones(len(threads), bool), threads)

    def call(self, instruction: Instruction, threads: np.ndarray) -> None:
        to, name, given = instruction.operands
        function = self.launch.module.functions[name]
        names = [x.strip() for x in given.strip("()").split(",")]
        params = dict(zip(function.params, (self.call_params[x] for x in names), strict=True))
        (result,) = Frame(self.launch, function, params).run(threads).values()
        self.call_params[to.strip("() ")] = result

    # ---- memory

    def access(self, instruction: Instruction, threads: np.ndarray) -> None:
        """ld and st of every space, of one element or a vector."""
        kind, *modifiers, type_ = instruction.opcode
        vector = next((int(m[1:]) for m in modifiers if re.fullmatch(r"v[248]", m)), 1)
        space = next((m for m in modifiers if m in ("param", "global", "shared", "local")), "generic")
        registers, place = instruction.operands if kind == "ld" else instruction.operands[::-1]
        names = [name.strip() for name in registers.strip("{}").split(",")]
        base, offset = re.fullmatch(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\d+))?\s*\]", place).groups()
        offset, width = int(offset or 0), SIZES[type_]
        if space == "param":
            storage, rows, at = self.param_place(base, offset, threads, kind)
        else:
            addresses = self.read(base, "u64", threads) + np.uint64(offset & (2**64 - 1))
            is_local = addresses >= np.uint64(LOCAL)
            if is_local.any() and not is_local.all():
                raise Fault(f"{instruction.text}: local and global memory at once")
            if not is_local.any() and space != "shared":
                self.access_global(instruction, names, addresses, width, vector, threads)
                return
            if space == "shared":
                storage, rows, at = self.launch.shared, self.launch.block[threads], addresses.astype(np.int64)
                self.check_shared(kind, rows, at, width * vector, threads, instruction.text)
            else:
                storage, rows = self.launch.local, threads
                at = (addresses - np.uint64(LOCAL)).astype(np.int64)
                span = at[:, None] + np.arange(width * vector)
                if kind == "st":
                    self.launch.local_set[rows[:, None], span] = True
                elif not self.launch.local_set[rows[:, None], span].all():
                    raise Fault(f"{instruction.text}: local memory is read before it is written")
        for i, name in enumerate(names):
            span = at[:, None] + i * width + np.arange(width)
            if kind == "ld":
                raw = np.ascontiguousarray(storage[rows[:, None], span])
                self.write(name, raw.view(RAW[width])[:, 0], threads)
            else:
                raw = np.ascontiguousarray(self.read(name, type_, threads)).view(np.uint8)
                storage[rows[:, None], span] = raw.reshape(len(threads), width)

    def param_place(
        self, base: str, offset: int, threads: np.ndarray, kind: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where a parameter lies: bytes [threads or 1, size], the rows and the columns of the access."""
        if base in self.returned:
            storage = self.returned[base]
        elif base in self.params:
            storage = self.params[base]
        elif base[0] == "%" or base in self.function.params:  # a kernel's, also by address
            storage, rows = self.launch.arguments[None], np.zeros(len(threads), np.int64)
            return storage, rows, self.read(base, "u64", threads).astype(np.int64) + offset
        elif kind == "st":
            storage = self.call_params.setdefault(base, np.zeros((self.count, 256), np.uint8))
        else:
            storage = self.call_params[base]
        return storage, threads, np.full(len(threads), offset)

    def check_shared(
        self, kind: str, blocks: np.ndarray, at: np.ndarray, width: int, threads: np.ndarray, text: str
    ) -> None:
        launch = self.launch
        if (at % width).any() or (at + width > launch.shared.shape[1]).any():
            raise Fault(f"{text}: not aligned, or past the end of shared memory")
        span = at[:, None] + np.arange(width)
        rows, now = blocks[:, None], launch.barriers[blocks][:, None]
        if kind == "st":
            places = np.unique(blocks * launch.shared.shape[1] + at)
            if len(places) != len(at):
                raise Fault(f"{text}: two threads store to one place in shared memory")
            others = launch.reader[rows, span] != threads[:, None]
            if (others & (launch.read[rows, span] == now)).any():
                raise Fault(f"{text}: shared memory that others may read only later, without a barrier")
            launch.writer[rows, span], launch.written[rows, span] = threads[:, None], now
            return
        writer = launch.writer[rows, span]
        own = writer == threads[:, None]
        if ((writer < 0) | (~own & (launch.written[rows, span] == now))).any():
            raise Fault(f"{text}: shared memory is read before it is written, or without a barrier")
        launch.reader[rows, span], launch.read[rows, span] = threads[:, None], now

    def access_global(
        self,
        instruction: Instruction,
        names: list[str],
        addresses: np.ndarray,
        width: int,
        vector: int,
        threads: np.ndarray,
    ) -> None:
        launch, memory, kind = self.launch, self.launch.memory, instruction.opcode[0]
        memory.check(addresses, width * vector, instruction.text)
        launch.note(kind, addresses, width * vector, threads)
        for i, name in enumerate(names):
            each = addresses + np.uint64(i * width)
            if kind == "ld":
                self.write(name, memory.load(each, width), threads)
            else:
                raw = self.read(name, instruction.opcode[-1], threads).view(RAW[width])
                memory.store(each, raw, width)
