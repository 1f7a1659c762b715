"""A classifier's prediction for each image of a test set, and the metrics of these."""

import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from scipy.stats import binomtest
from torch import nn
from tqdm import tqdm

from repro.train.data import dealt, keyed, make_loader
from vision.train import Classification


@torch.no_grad()
def predict(model: nn.Module, task: Classification, accelerator: Accelerator) -> tuple[pd.DataFrame, float]:
    """Return a row for each image of the test set, in order, and the time taken in seconds.

    The columns are image, label, prediction, probability, loss (nats) and top5 (whether the label is among
    the five highest scores). The processes share the images, each of which is read once.
    """
    config, data = task.config, task.test_data() or task.valid_data()
    ranks = accelerator.num_processes, accelerator.process_index
    batches = dealt(len(data), max(1, config.batch_size // ranks[0]), *ranks)
    loader = make_loader(data, keyed(batches), None, config.workers, collate=task.collate)
    layout = torch.channels_last if config.channels_last else torch.preserve_format
    model = model.to(accelerator.device).to(memory_format=layout).eval()
    frames = []
    begin = time.perf_counter()
    silent = None if accelerator.is_main_process else True
    for batch in tqdm(loader, unit="batch", disable=silent, leave=False):
        images, labels = task.move(batch, accelerator.device)
        with accelerator.autocast():
            logits = model(images).float()
        probability, ranked = logits.softmax(1).topk(min(5, logits.shape[1]))
        found = {
            "label": labels,
            "prediction": ranked[:, 0],
            "probability": probability[:, 0],
            "loss": F.cross_entropy(logits, labels, reduction="none"),
            "top5": (ranked == labels[:, None]).any(1),
        }
        frames.append(pd.DataFrame({key: value.cpu().numpy() for key, value in found.items()}))
    share = [frame.set_index(pd.Index(indices)) for frame, indices in zip(frames, batches, strict=True)]
    table = pd.concat(gather_object(share)).sort_index().rename_axis("image").reset_index()
    seconds = time.perf_counter() - begin
    assert table["image"].tolist() == list(range(len(data)))
    return table, seconds


def measure(table: pd.DataFrame) -> dict[str, Any]:
    """Return accuracies in percent, the first with its 95 % Wilson interval, and the mean loss in nats."""
    correct = table["prediction"] == table["label"]
    interval = binomtest(int(correct.sum()), len(table)).proportion_ci(0.95, "wilson")
    return {
        "images": len(table),
        "test_accuracy": 100 * float(correct.mean()),
        "low": 100 * float(interval.low),
        "high": 100 * float(interval.high),
        "test_top5": 100 * float(table["top5"].mean()),
        "test_loss": float(table["loss"].astype("float64").mean()),
    }


def by_class(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return a row for each class: images, accuracies in percent, and the most frequent wrong prediction."""
    correct = table["prediction"] == table["label"]
    wrong = table[~correct].groupby("label")["prediction"].agg(lambda x: x.mode().iloc[0])
    lines = pd.DataFrame({"class": list(names)})
    lines["images"] = table.groupby("label").size().reindex(lines.index, fill_value=0)
    lines["accuracy"] = 100 * correct.groupby(table["label"]).mean()
    lines["top5"] = 100 * table.groupby("label")["top5"].mean()
    lines["taken_for"] = wrong.map(dict(enumerate(names)))
    return lines
