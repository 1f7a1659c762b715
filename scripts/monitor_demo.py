"""Trains a small language model under the monitor: `python scripts/monitor_demo.py [--steps N]`.

The text is the source code of Python's standard library, in bytes; the model TestModelForCausalLM of
scripts/monitor_models.py. Prints the monitor's report, and leaves monitor.jsonl and monitor.png in the
folder. Takes about a minute on two cores. Started again with the same folder, it begins afresh.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parent.parent))  # last, so that an installed optim comes first

import optim

sys.path.append(str(Path(__file__).resolve().parent))
from monitor_models import TestModelConfig, TestModelForCausalLM

PADDING = 256


def read_text(least: int = 1 << 20) -> bytes:
    """At least so many bytes of the standard library's modules, in the order of their names."""
    text = b""
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= least:
            break
    return text


def batch(text: bytes, size: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pieces of text of half to the whole length, padded at the end: tokens and mask, [size, length]."""
    tokens = torch.full((size, length), PADDING)
    for row in tokens:
        count = int(torch.randint(length // 2, length + 1, (), generator=generator))
        begin = int(torch.randint(len(text) - length, (), generator=generator))
        row[:count] = torch.tensor(list(text[begin : begin + count]))
    return tokens, (tokens != PADDING).long()


def main(arguments: list[str] | None = None) -> int:
    """Train, report, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=10, help="steps from sample to sample")
    parser.add_argument("--optimizer", default="adan", help="a name of optim.OPTIMIZERS or an import path")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=192, help="width of the model, in heads of 64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/monitor"))
    options = parser.parse_args(arguments)
    try:
        for name in ("steps", "batch", "length"):
            if getattr(options, name) < (2 if name == "length" else 1):
                raise ValueError(f"--{name} {getattr(options, name)}: too small")
        if options.hidden < 64 or options.hidden % 64:
            raise ValueError(f"--hidden {options.hidden}: give a multiple of 64")
        torch.manual_seed(options.seed)
        size = dict(hidden_size=options.hidden, heads=options.hidden // 64, max_length=options.length)
        model = TestModelForCausalLM(TestModelConfig(**size))
        optimizer = optim.build_optimizer(model, options.optimizer, lr=options.lr)
        file = options.out / "monitor.jsonl"
        clip = options.max_grad_norm
        monitor = optim.Monitor(optimizer, model, every=options.every, path=file, step=0, max_grad_norm=clip)
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text, generator = read_text(), torch.Generator().manual_seed(options.seed)
    with monitor, tqdm(range(options.steps), unit="step", disable=not sys.stderr.isatty()) as bar:
        for _ in bar:
            tokens, mask = batch(text, options.batch, options.length, generator)
            loss, _ = model(tokens, mask, labels=tokens)
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            monitor.record(loss=loss, grad_norm=norm)
            optimizer.step()
            if monitor.last and monitor.last["step"] == monitor.step:
                bar.set_postfix(loss=monitor.last["loss"])
    print(monitor.report())
    monitor.plot(options.out / "monitor.png")
    print(f"\n{file}, {options.out / 'monitor.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
