"""Train the GPT of modded-nanogpt's optimization benchmark (track 3) with Adan, as a record demands it.

    torchrun --standalone --nproc_per_node=8 train_gpt_adan.py      # 1, 2, 4 or 8 GPUs; one: plain python
    python train_gpt_adan.py --dry-run                              # seconds, also on a CPU: made-up tokens

The data are the shards data/fineweb10B/fineweb_{train,val}_*.bin below the current folder (or --data), which
the benchmark's data/cached_fineweb10B.py downloads. The log, logs/UUID.txt, has this file, a line of `=`, and
the validation losses. The file needs torch alone: the benchmark's rule 4 forbids imports of optimizer
libraries, so `Adan` below is our package's foreach path once more, and a test compares the two.

Fixed by the benchmark: data and their order, batch, architecture, one forward and backward pass a step. Ours:
the optimizer, its hyperparameters and schedules (`Settings`). docs/speedrun.md has the rules and the plan for
tuning; `--set name=value` is for tuning only: a record's values stand in the file.
"""

import argparse
import dataclasses
import math
import os
import struct
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).read_text()  # at once, so that the log has the code that runs


@dataclass(frozen=True)
class Settings:
    """What a result may choose. Not tuned yet: docs/speedrun.md says where the values come from."""

    steps: int = 4950  # the fewest that reach 3.28 are what counts
    optimizer: str = "adan"  # or "package": ours, fused, for tuning; "adamw": the control, with factors of 1
    matrix_factor: float = 3.0  # Adan's learning rate over the tuned AdamW's: matrices of the blocks
    other_factor: float = 3.0  # embedding, head, gains and biases
    decay_factor: float = 1.0  # on lr x weight decay, which is otherwise AdamW's
    beta1: float = 0.98
    beta2: float = 0.92
    beta3: float = 0.99
    warmup: int = 100  # steps
    cooldown: float = 0.7  # last part of the steps, in which the learning rate falls linearly to 0


@dataclass(frozen=True)
class Size:
    """The model and the batch. The defaults are the benchmark's and must stay."""

    vocabulary: int = 50304
    layers: int = 12
    width: int = 768
    head: int = 128  # width of an attention head
    sequence: int = 1024  # tokens
    batch: int = 512  # sequences in a step, over all processes
    micro_batch: int = 64  # sequences in a forward pass
    validation: int = 20 * 512  # sequences


TINY = Size(vocabulary=256, layers=2, width=32, head=16, sequence=16, batch=8, micro_batch=1, validation=16)

# The tuned AdamW of modded-nanogpt's pull request 353 (4,950 steps): lr, weight decay, betas, eps.
ADAMW: dict[str, tuple[float, float, tuple[float, float], float]] = {
    "matrices": (0.001, 1.0, (0.9, 0.9), 1e-8),
    "embedding": (0.7, 0.002, (0.8, 0.95), 1e-10),
    "head": (0.004, 0.002, (0.8, 0.95), 1e-10),
    "vectors": (0.015, 0.002, (0.8, 0.95), 1e-10),
}


class InputError(Exception):
    """Data or options that cannot work; one line that names the value and the cure."""


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument(
        "trials", nargs="?", type=int, default=1, help="runs, one after the other (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first trial; each next has one more")
    parser.add_argument("--data", type=Path, default=Path("data/fineweb10B"), help="folder of the shards")
    parser.add_argument("--out", type=Path, default=Path("logs"), help="folder of the logs")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings, for tuning")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on made-up tokens, 8 steps")
    return parser.parse_args(arguments)


def settings_of(words: Sequence[str], settings: Settings) -> Settings:
    """Return the settings with those of the command line.

    Raises:
        InputError: an unknown name, or a value that is no number or out of range.
    """
    known = {name: type(value) for name, value in dataclasses.asdict(Settings()).items()}
    changed: dict[str, object] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            raise InputError(f"--set {word}: no such setting; there are {', '.join(known)}")
        try:
            changed[name] = known[name](value)
        except ValueError:
            raise InputError(f"--set {word}: the value must be {known[name].__name__}") from None
    settings = dataclasses.replace(settings, **changed)  # type: ignore[arg-type]
    betas = (settings.beta1, settings.beta2, settings.beta3)
    checks = {
        "steps must be at least 1": settings.steps >= 1,
        "optimizer must be adan, package or adamw": settings.optimizer in ("adan", "package", "adamw"),
        "the factors must be positive": min(settings.matrix_factor, settings.other_factor) > 0,
        "decay_factor must not be negative": settings.decay_factor >= 0,
        "the betas must be at least 0 and below 1": all(0 <= beta < 1 for beta in betas),
        "warmup must be 0 or more, cooldown in (0, 1]": settings.warmup >= 0 and 0 < settings.cooldown <= 1,
    }
    if wrong := [text for text, right in checks.items() if not right]:
        raise InputError(f"settings: {wrong[0]}; they are {settings}")
    return settings


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before torch is imported

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

# ---------------------------------------------------------------------------------------------- data

MAGIC, VERSION, HEADER = 20240520, 1, 256  # of a shard: 256 int32 (magic, version, tokens), then uint16


def open_shard(path: Path) -> Tensor:
    """Return the tokens of a shard, uint16 [tokens], mapped from the file and not read yet.

    Raises:
        InputError: the magic number, the version or the length is wrong.
    """
    with path.open("rb") as file:
        head = file.read(4 * HEADER)
    if len(head) < 4 * HEADER:
        raise InputError(f"{path}: {len(head)} bytes, less than the header's {4 * HEADER}; download it again")
    magic, version, tokens = struct.unpack("<3i", head[:12])
    if magic != MAGIC:
        raise InputError(f"{path}: magic number {magic}, not {MAGIC}; it is no shard of GPT-2 tokens")
    if version != VERSION:
        raise InputError(f"{path}: version {version}, not {VERSION}; make the shard again with this version")
    size = path.stat().st_size
    if tokens <= 0 or size != 4 * HEADER + 2 * tokens:
        raise InputError(
            f"{path}: {size} bytes, but its header says {tokens} tokens, that is"
            f" {4 * HEADER + 2 * tokens}; download it again"
        )
    return torch.from_file(str(path), shared=False, size=size // 2, dtype=torch.uint16)[2 * HEADER :]


def find_shards(folder: Path, split: str) -> list[Path]:
    """Return the shards of a split ("train" or "val") in their order.

    Raises:
        InputError: there are none.
    """
    if paths := sorted(folder.glob(f"fineweb_{split}_*.bin")):
        return paths
    raise InputError(
        f"{folder}: no fineweb_{split}_*.bin there; run modded-nanogpt's data/cached_fineweb10B.py"
        ", or give their folder with --data"
    )


def windows(paths: list[Path], tokens: int) -> Iterator[tuple[Path, Tensor]]:
    """Yield the shard and the uint16 [tokens + 1] of each batch, in the order that the benchmark fixes.

    Batches follow each other without gaps; the next one begins with the last one's last target. The rest of
    a shard is dropped, if it is no longer than a batch and one token.
    """
    for path in paths:
        shard = open_shard(path)
        for start in range(0, len(shard) - tokens - 1, tokens):
            yield path, shard[start : start + tokens + 1]


def check_data(folder: Path, size: Size, steps: int) -> None:
    """Check all headers, and that the shards last for the run.

    Raises:
        InputError: they do not.
    """
    tokens = size.batch * size.sequence
    paths = find_shards(folder, "train")
    batches = sum(len(range(0, len(open_shard(path)) - tokens - 1, tokens)) for path in paths)
    if batches < steps:
        raise InputError(
            f"{folder}: {len(paths)} training shards are {batches} batches of {tokens} tokens, fewer than the"
            f" {steps} steps; download more with `python data/cached_fineweb10B.py N`"
        )
    needed, first = size.validation * size.sequence, find_shards(folder, "val")[0]
    if len(open_shard(first)) <= needed + 1:
        raise InputError(
            f"{first}: {len(open_shard(first))} tokens; the validation needs more than {needed + 1}; download"
            " the whole shard"
        )


def write_shard(path: Path, tokens: Tensor) -> None:
    """Write tokens [tokens] as a shard."""
    with path.open("wb") as file:
        file.write(struct.pack(f"<{HEADER}i", MAGIC, VERSION, len(tokens), *[0] * (HEADER - 3)))
        file.write(tokens.to(torch.uint16).numpy().tobytes())


def make_data(folder: Path, size: Size, steps: int) -> None:
    """Write two training shards and one for validation: a random walk, which can be learned."""
    generator = torch.Generator().manual_seed(0)
    batch = size.batch * size.sequence
    half = (steps + 1) // 2 * batch
    lengths = {"train_000001": half, "train_000002": half}
    lengths["val_000000"] = size.validation * size.sequence
    for name, length in lengths.items():
        walk = torch.randint(0, 4, (length + 2,), generator=generator).cumsum(0) % size.vocabulary
        write_shard(folder / f"fineweb_{name}.bin", walk)


# ---------------------------------------------------------------------------------------------- model


class Linear(nn.Linear):
    """A linear map with bias: float32 parameters, computed in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Norm(nn.Module):
    """Root-mean-square normalisation of the last axis, with gains."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.gains.to(x.dtype))


def rotation(sequence: int, head: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, float32 [1, 1, sequence, head / 2], of the rotary embedding.

    The frequencies fall from 1 to 1/1024 over the first half of the pairs; the other pairs are not turned.
    """
    turning = torch.logspace(0, -10, head // 4, base=2.0, device=device)
    frequencies = torch.cat([turning, torch.zeros_like(turning)])
    angles = torch.arange(sequence, dtype=torch.float32, device=device)[:, None] * frequencies
    return angles.cos()[None, None], angles.sin()[None, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [batch, heads, sequence, head] with each pair (i, i + head / 2) turned, in float32 inside."""
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], -1).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with normalised, rotated queries and keys, and the fixed scale 0.12."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.query, self.key, self.value = (Linear(width, width) for _ in range(3))
        self.out = Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        q, k = (rotate(F.rms_norm(each, (self.head,)), cos, sin) for each in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.12)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron with squared ReLU, each behind a norm and beside a skip connection."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.attention, self.attention_norm = Attention(width, head), Norm(width)
        self.up, self.out, self.up_norm = Linear(width, 4 * width), Linear(4 * width, width), Norm(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.out(self.up(self.up_norm(x)).relu().square())


class GPT(nn.Module):
    """The benchmark's model: untied embedding (bfloat16) and head, logits softly capped at 15."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.embedding = nn.Embedding(size.vocabulary, size.width, dtype=torch.bfloat16)
        self.embedding_norm, self.head_norm = Norm(size.width), Norm(size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.head) for _ in range(size.layers))
        self.head = Linear(size.width, size.vocabulary)

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw the parameters: what leads out of a block and the head begin at zero, as in the benchmark."""
        for name, p in self.named_parameters():
            if name.endswith("gains"):
                p.fill_(1)
            elif name.endswith(("bias", "out.weight", "head.weight")):
                p.zero_()
            else:
                p.normal_(std=1 if "embedding" in name else math.sqrt(0.33 / p.shape[-1]))

    def logits(self, tokens: Tensor) -> Tensor:
        """Return float32 [batch, sequence, vocabulary] for int64 [batch, sequence]."""
        cos, sin = rotation(tokens.shape[1], self.size.head, tokens.device)
        x = self.embedding_norm(self.embedding(tokens))
        for block in self.blocks:
            x = block(x, cos, sin)
        y = self.head(self.head_norm(x)).float()
        return 15 * y / (y.square() + 15**2).sqrt()

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the cross entropies in nats, for int64 [batch, sequence] twice."""
        return F.cross_entropy(self.logits(tokens).flatten(0, 1), targets.flatten(), reduction="sum")

    def groups(self) -> dict[str, list[Tensor]]:
        """Return the parameters by the groups of ADAMW."""
        return {
            "matrices": [p for p in self.blocks.parameters() if p.ndim == 2],
            "embedding": [self.embedding.weight],
            "head": [self.head.weight],
            "vectors": [p for p in self.parameters() if p.ndim == 1],
        }


# ---------------------------------------------------------------------------------------------- optimizer


class Adan(torch.optim.Optimizer):
    """Adan with proximal weight decay (arXiv 2208.06677, Algorithm 1, with bias corrections).

    With g the gradient, d = g - g_prev (0 in the first step), and decay factors b1, b2, b3::

        m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) d;  n = b3 n + (1 - b3) (g + b2 d)^2
        u = (m / (1 - b1^t) + b2 v / (1 - b2^t)) / (sqrt(n / (1 - b3^t)) + eps)
        p = (p - lr u) / (1 + lr weight_decay)

    States and a copy of a bfloat16 parameter are float32: bfloat16 would lose steps below 1/256 of a value.
    """

    def __init__(self, groups: list[dict[str, object]]) -> None:
        super().__init__(groups, dict(lr=1e-3, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.0))
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take a step; every parameter must have a gradient."""
        self.steps += 1
        for group in self.param_groups:
            params, (b1, b2, b3), lr = group["params"], group["betas"], group["lr"]
            c1, c2, c3 = (1 - beta**self.steps for beta in group["betas"])
            g = [p.grad.float() for p in params]
            if self.steps == 1:
                for p, gradient in zip(params, g, strict=True):
                    states = {name: torch.zeros_like(gradient) for name in ("m", "v", "n")}
                    self.state[p] = {"weight": p.float(), "previous": gradient.clone(), **states}
            names = ("weight", "previous", "m", "v", "n")
            weight, previous, m, v, n = ([self.state[p][name] for p in params] for name in names)
            d = list(torch._foreach_sub(g, previous))
            torch._foreach_copy_(previous, g)
            torch._foreach_lerp_(m, g, 1 - b1)
            torch._foreach_lerp_(v, d, 1 - b2)
            torch._foreach_mul_(d, b2)
            torch._foreach_add_(d, g)
            torch._foreach_mul_(n, b3)
            torch._foreach_addcmul_(n, d, d, 1 - b3)
            denominator = torch._foreach_sqrt(n)
            torch._foreach_div_(denominator, math.sqrt(c3))
            torch._foreach_add_(denominator, group["eps"])
            torch._foreach_addcdiv_(weight, m, denominator, -lr / c1)
            torch._foreach_addcdiv_(weight, v, denominator, -lr * b2 / c2)
            torch._foreach_div_(weight, 1 + lr * group["weight_decay"])
            torch._foreach_copy_(params, weight)  # onto itself, but for bfloat16


def build_optimizer(model: GPT, settings: Settings) -> torch.optim.Optimizer:
    """Return the optimizer: a group for each of ADAMW, with its highest learning rate as `peak`."""
    betas3, groups = (settings.beta1, settings.beta2, settings.beta3), []
    for name, params in model.groups().items():
        lr, decay, betas, eps = ADAMW[name]
        if settings.optimizer == "adamw":
            groups.append(dict(params=params, lr=lr, peak=lr, weight_decay=decay, betas=betas, eps=eps))
            continue
        factor = settings.matrix_factor if name == "matrices" else settings.other_factor
        decay *= settings.decay_factor / factor  # so that lr x weight decay is AdamW's
        groups.append(
            dict(params=params, lr=lr * factor, peak=lr * factor, weight_decay=decay, betas=betas3, eps=1e-8)
        )
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    if settings.optimizer == "adan":
        return Adan(groups)
    import adan  # fused kernels, for tuning: rule 4 keeps a record from importing it

    options = dict(state_dtype="float32", param_rounding="split")  # the same float32 arithmetic as above
    optimizer: torch.optim.Optimizer = adan.Adan(groups, **options)  # type: ignore[arg-type]
    return optimizer


def schedule(step: int, settings: Settings) -> float:
    """Return the factor on the learning rates in step 0, 1, ...: warm-up, constant, linear to zero."""
    rise = (step + 1) / max(settings.warmup, 1)
    fall = (settings.steps - step) / (settings.cooldown * settings.steps)
    return min(rise, fall, 1.0)


# ---------------------------------------------------------------------------------------------- training


class Processes:
    """This process among those of torchrun, or alone."""

    def __init__(self, size: Size) -> None:
        self.rank, self.count = (
            int(os.environ.get(key, only)) for key, only in (("RANK", 0), ("WORLD_SIZE", 1))
        )
        share, rest = divmod(size.batch, self.count)
        if rest or share % size.micro_batch or size.validation % (self.count * size.micro_batch):
            raise InputError(f"{self.count} processes do not divide the batch; use 1, 2, 4 or 8")
        self.cuda = torch.cuda.is_available()
        self.device = (
            torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if self.cuda else torch.device("cpu")
        )
        if self.cuda:
            torch.cuda.set_device(self.device)
        if self.count > 1:
            backend, here = ("nccl", self.device) if self.cuda else ("gloo", None)
            dist.init_process_group(backend, device_id=here)

    def add(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def now(self) -> float:
        """Return the time in seconds when all processes have done what they began."""
        if self.cuda:
            torch.cuda.synchronize()
        if self.count > 1:
            dist.barrier()
        return time.perf_counter()

    def share(self, path: Path, window: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """Return this process's tokens and targets, int64 [sequences, sequence], of a batch's window.

        Raises:
            InputError: a token is not in the vocabulary.
        """
        count = (len(window) - 1) // self.count
        part = window[self.rank * count :][: count + 1].to(torch.int32)
        if int(part.max()) >= size.vocabulary:
            raise InputError(f"{path}: token {int(part.max())}, beyond the vocabulary of {size.vocabulary}")
        part = part.to(self.device, torch.int64)
        return part[:-1].view(-1, size.sequence), part[1:].view(-1, size.sequence)


def micro_batches(batch: tuple[Tensor, Tensor], size: Size) -> Iterator[tuple[Tensor, ...]]:
    """Yield tokens and targets of each forward pass."""
    return zip(*(each.split(size.micro_batch) for each in batch), strict=True)


@torch.no_grad()
def validation_loss(model: GPT, batch: tuple[Tensor, Tensor], size: Size, processes: Processes) -> float:
    """Return the mean cross entropy in nats over the validation tokens of all processes."""
    total = torch.stack([model(*part).double() for part in micro_batches(batch, size)]).sum()
    return float(processes.add(total)) / (size.validation * size.sequence)


def train(
    model: GPT,
    settings: Settings,
    size: Size,
    data: Path,
    processes: Processes,
    report: Callable[..., None],
) -> float:
    """Train from new parameters and return the last validation loss. A line is reported for each validation.

    Raises:
        InputError: the loss is no longer finite.
    """
    model.initialize()
    for p in model.parameters():
        if processes.count > 1:
            dist.broadcast(p.data, 0)
    optimizer = build_optimizer(model, settings)
    held_out = processes.share(
        *next(windows(find_shards(data, "val")[:1], size.validation * size.sequence)), size
    )
    batches = windows(find_shards(data, "train"), size.batch * size.sequence)
    seconds, last, loss, start = 0.0, 0, math.nan, processes.now()
    for step in range(settings.steps + 1):
        every = 125 if step < 0.9 * settings.steps else 25
        if step == settings.steps or step % every == 0:
            passed = processes.now() - start
            seconds += passed
            loss = validation_loss(model, held_out, size, processes)
            average = 1000 * passed / (step - last) if step else math.nan
            line = f"step:{step}/{settings.steps} val_loss:{loss:.5f} train_time:{seconds:.3f}s"
            report(f"{line} step_avg:{average:.2f}ms")
            if not math.isfinite(loss):
                raise InputError(f"the loss is {loss} at step {step}: it diverged; lower the factors")
            last, start = step, processes.now()
        if step == settings.steps:
            break
        for part in micro_batches(processes.share(*next(batches), size), size):
            model(*part).backward()
        for p in model.parameters():
            assert p.grad is not None
            processes.add(p.grad)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(step, settings)
        optimizer.step()
        model.zero_grad()
        report(f"step:{step + 1}/{settings.steps} {seconds + time.perf_counter() - start:.1f}s", log=False)
    return loss


def open_log(folder: Path, rank: int) -> Callable[..., None]:
    """Return a function that prints a line and adds it to a new log, which begins with this source."""
    path = folder / f"{uuid.uuid4()}.txt"
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(SOURCE + "\n")
        print(path, flush=True)

    def report(line: str, log: bool = True) -> None:
        if rank == 0:
            print(line, flush=True)
            if log:
                with path.open("a") as file:
                    print(line, file=file)

    return report


def run(options: argparse.Namespace, data: Path) -> None:
    """Train all trials of a command.

    Raises:
        InputError: the options, the data or the machine cannot do it.
    """
    if options.trials < 1:
        raise InputError(f"{options.trials} trials: must be at least 1")
    size = TINY if options.dry_run else Size()
    settings = settings_of(options.set, Settings(steps=8, warmup=2) if options.dry_run else Settings())
    processes = Processes(size)
    if options.dry_run:
        torch.set_num_threads(1)  # the tensors are too small for more
        make_data(data, size, settings.steps)
    check_data(data, size, settings.steps)
    if not (processes.cuda or options.dry_run):
        raise InputError("no GPU: a step would take hours; --dry-run shows on a CPU that all parts work")
    report = open_log(options.out, processes.rank)
    model = GPT(size).to(processes.device)
    if processes.cuda:
        model.compile(dynamic=False)
    name = torch.cuda.get_device_name() if processes.cuda else "CPU"
    report("=" * 100)
    report(f"Running PyTorch {torch.__version__} on {name} with world_size {processes.count}")
    report(f"{settings}")
    if options.set or options.dry_run:
        report("not a record: its settings are not those in the source above")
    report("=" * 100)
    for trial in range(options.trials):
        torch.manual_seed(options.seed + trial)
        report(f"seed:{options.seed + trial}")
        train(model, settings, size, data, processes, report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 2 after an error of the input."""
    options = read_options(arguments)
    try:
        if options.dry_run:
            with tempfile.TemporaryDirectory() as folder:  # each process its own: the tokens are the same
                run(options, Path(folder))
        else:
            run(options, options.data)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
