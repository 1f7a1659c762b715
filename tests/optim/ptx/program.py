"""The text of a PTX module as functions, and those as lists of instructions."""

import re
from dataclasses import dataclass, field

SIZES = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "b32": 4, "u32": 4, "s32": 4, "f32": 4}
SIZES |= {"f16": 2, "b64": 8, "u64": 8, "s64": 8, "f64": 8, "pred": 1}

_FUNCTION = re.compile(
    r"(?P<kind>\.entry|\.func)\s*(?:\((?P<returned>[^)]*)\))?\s*(?P<name>[\w$]+)\s*\((?P<params>[^)]*)\)"
    r"(?P<directives>[^;{]*)\{"
)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[\w$]+)(?:\[(?P<count>\d+)\])?"
)
_ARRAY = re.compile(r"\.align (\d+) \.b8 ([\w$]+)\[(\d+)\]")
_INSTRUCTION = re.compile(
    r"(?:@(?P<negated>!?)(?P<guard>%\w+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<operands>.*)"
)


@dataclass(frozen=True)
class Place:
    """A variable in parameter, shared or local memory: its first byte and its bytes."""

    at: int
    size: int


@dataclass(frozen=True)
class Instruction:
    """An instruction: the opcode split at its dots, operands as text, and the predicate it depends on."""

    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str | None
    negated: bool
    text: str


@dataclass
class Function:
    """A kernel (`.entry`) or a device function. `labels` give the index of the instruction that follows."""

    name: str
    params: dict[str, Place]
    returned: dict[str, Place]
    threads: int | None  # of a block at most
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    shared: dict[str, Place] = field(default_factory=dict)
    local: dict[str, Place] = field(default_factory=dict)


class Module:
    """All functions of a PTX text, by name."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"//[^\n]*", "", text)
        self.functions: dict[str, Function] = {}
        for match in _FUNCTION.finditer(text):
            end, depth = match.end(), 1
            while depth:
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            threads = re.search(r"\.maxntid (\d+)", match["directives"])
            function = Function(
                match["name"],
                _parameters(match["params"]),
                _parameters(match["returned"] or ""),
                int(threads[1]) if threads else None,
            )
            _read_body(function, text[match.end() : end - 1])
            self.functions[function.name] = function


def _parameters(text: str) -> dict[str, Place]:
    places: dict[str, Place] = {}
    end = 0
    for match in _PARAMETER.finditer(text):
        each = SIZES[match["type"]]
        align = int(match["align"] or each)
        at = -(-end // align) * align
        places[match["name"]] = Place(at, each * int(match["count"] or 1))
        end = at + places[match["name"]].size
    return places


def _read_body(function: Function, body: str) -> None:
    for statement in re.sub(r"\s+", " ", body).split(";"):
        statement = statement.strip()
        while True:  # braces of a scope, whose names are unique all the same, and labels
            if label := re.match(r"(\$[\w$]+)\s*:\s*", statement):
                function.labels[label[1]] = len(function.code)
                statement = statement[label.end() :]
            elif brace := re.match(r"[{}]\s*", statement):
                statement = statement[brace.end() :]
            else:
                break
        if statement.startswith((".shared", ".local")):
            places = function.shared if statement.startswith(".shared") else function.local
            (match,) = _ARRAY.finditer(statement)
            at = sum(-(-place.size // 16) * 16 for place in places.values())
            places[match[2]] = Place(at, int(match[3]))
        elif statement and not statement.startswith("."):
            match = _INSTRUCTION.fullmatch(statement)
            function.code.append(
                Instruction(
                    tuple(match["opcode"].split(".")),
                    tuple(_operands(match["operands"])),
                    match["guard"],
                    bool(match["negated"]),
                    statement,
                )
            )


def _operands(text: str) -> list[str]:
    """Split at the commas that no bracket encloses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "{[(") - (letter in "}])")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]
