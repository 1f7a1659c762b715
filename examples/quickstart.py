# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Quickstart
#
# Adan in place of AdamW on a small problem: the learning rate, an honest comparison, small states, a
# checkpoint, the monitor. It takes about a minute on two CPU cores.
#
# ```
# pip install . matplotlib scikit-learn
# ```

# %%
import io
from itertools import islice

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import adan_optim

# %% [markdown]
# ## The task
#
# Handwritten digits of 8 x 8 pixels, which come with scikit-learn, and a network with two hidden layers.
# Noise on the images keeps it from learning them by heart. The last 500 images are for evaluation.

# %%
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16  # [1797, 64]
labels = torch.tensor(digits.target)  # [1797]
LEARN, STEPS, WARMUP = 1297, 500, 50
torch.set_num_threads(1)  # more would only wait for each other on a network of this size


def network(seed):
    torch.manual_seed(seed)
    layers = nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10)
    return nn.Sequential(*layers)


def batches(seed, size=64):
    """Yield images [size, 64] and labels [size], without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(LEARN, (size,), generator=generator)
        yield images[rows] + 0.4 * torch.randn(size, 64, generator=generator), labels[rows]


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def fit(model, optimizer, data, steps=STEPS):
    """Train with warm-up and a cosine, and return the loss on the last 500 images after every 25 steps."""
    up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, total_iters=WARMUP)
    down = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    curve = []
    for step, batch in enumerate(islice(data, steps), start=1):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
        up.step()
        down.step()
        if step % 25 == 0:
            with torch.no_grad():
                curve.append(loss(model, (images[LEARN:], labels[LEARN:])).item())
    return curve


def run(seed, settings):
    model = network(seed)
    return fit(model, adan_optim.build_optimizer(model, settings), batches(seed))


# %% [markdown]
# ## AdamW's learning rate
#
# The best of five, on seed 0.


# %%
def best(name, rates, **options):
    """Return the settings with the learning rate that ends at the lowest loss."""
    found = {}
    for lr in rates:
        found[lr] = run(0, {"name": name, "lr": lr, **options})[-1]
        print(f"{name} lr {lr:.3g}: loss {found[lr]:.3f}")
    return {"name": name, "lr": min(found, key=found.get), **options}


adamw = best("adamw", (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), weight_decay=0.1)

# %% [markdown]
# ## Adan's learning rate
#
# `transfer` compares the steps that both optimizers take on the same gradients, and gives every setting
# with its reason. It says where to begin. As many runs as AdamW had show that the best is higher here.

# %%
predicted = adan_optim.transfer(network(0), batches(0), loss, adamw, steps=STEPS, warmup=WARMUP).settings
print(predicted)

# %%
options = dict(predicted.options)
start = options.pop("lr")
adan = best("adan", [factor * start for factor in (0.5, 1, 2, 4, 8)], **options)

# %% [markdown]
# ## Which is better?
#
# Both as tuned, on three other seeds. If the ranges of the last losses overlap, three seeds have not told
# them apart. A task as small as this one says little about yours; [what we found](../docs/findings.md) has
# larger ones, among them some on which AdamW is ahead.

# %%
curves = {}
for settings in (adamw, adan):
    runs = torch.tensor([run(seed, settings) for seed in (1, 2, 3)])  # [seeds, evaluations]
    curves[settings["name"]] = runs
    last = runs[:, -1]
    print(f"{settings['name']:5} loss {last.mean():.3f}, {last.min():.3f} to {last.max():.3f}")

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, runs in curves.items():
    steps = range(25, STEPS + 1, 25)
    axes.plot(steps, runs.mean(0), label=name)
    axes.fill_between(steps, runs.amin(0), runs.amax(0), alpha=0.2)
axes.set(
    xlabel="step", ylabel="loss on 500 other images", yscale="log", title="Mean and range of three seeds"
)
axes.legend()
plt.show()

# %% [markdown]
# ## Small states
#
# In float32 Adan keeps 16 bytes per parameter, AdamW 8. In int8 Adan keeps about 4: tensors of fewer than
# 4,096 elements stay in float32.

# %%
for dtype in ("float32", "bfloat16", "int8"):
    model = network(1)
    optimizer = adan_optim.build_optimizer(model, adan | {"state_dtype": dtype})
    curve = fit(model, optimizer, batches(1))
    share = sum(adan_optim.state_bytes(optimizer).values()) / sum(p.numel() for p in model.parameters())
    print(f"{dtype:8} {share:5.2f} bytes per parameter, loss {curve[-1]:.3f}")

# %% [markdown]
# ## A checkpoint
#
# As with any optimizer of torch. The run that continues ends with the same bits as the one that was not
# interrupted.

# %%
model = network(1)
optimizer = adan_optim.build_optimizer(model, adan)
for batch in islice(batches(1), 20):
    optimizer.zero_grad()
    loss(model, batch).backward()
    optimizer.step()
    if optimizer.state[model[0].weight]["step"] == 10:
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)

file.seek(0)
saved = torch.load(file)
again = network(2)
again.load_state_dict(saved["model"])
optimizer = adan_optim.build_optimizer(again, adan)
optimizer.load_state_dict(saved["optimizer"])
for batch in islice(batches(1), 10, 20):
    optimizer.zero_grad()
    loss(again, batch).backward()
    optimizer.step()
print(all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True)))

# %% [markdown]
# ## The monitor
#
# It records norms of gradients, weights and updates, for the whole model and for each parameter: [the
# monitor](../docs/monitor.md).

# %%
model = network(1)
optimizer = adan_optim.build_optimizer(model, adan)
with adan_optim.Monitor(optimizer, model, every=25) as monitor:
    fit(model, optimizer, batches(1))
print(monitor.report())

# %% [markdown]
# Next: [all optimizers and their options](../docs/optim.md), [learning rates](../docs/transfer.md),
# [frameworks](../docs/frameworks.md).
