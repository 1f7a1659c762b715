"""What Megatron-LM's arguments determine about a row; the official repository has no logs of it."""

from repro.verify.settings import Ours, Settings, Table, rules


def _accumulate(args: Settings) -> int:
    return int(args["global_batch_size"] // (args["micro_batch_size"] * GPUS))


def _betas(args: Settings) -> list[float]:
    return [*BETAS[:2], args["adan_beta3"]]


GPUS = 8  # as in the launch script
BETAS = (0.98, 0.92, 0.99)  # the optimizer's defaults, for those without an argument

TABLE = Table(
    rules(
        ours={
            "eval_interval": "eval_every",
            "eval_iters": "eval_batches",
            "global_batch_size": "batch_size",
            "hidden_size": "model.n_embd",
            "log_interval": "run.log_every",
            "lr_decay_iters": "steps",
            "lr_decay_style": "schedule.name",
            "lr_warmup_iters": "schedule.warmup_steps",
            "max_position_embeddings": "model.n_positions",
            "num_attention_heads": "model.n_head",
            "num_layers": "model.n_layer",
            "optimizer": "optimizer.name",
            "seq_length": "data.sequence_length",
            "train_iters": "steps",
            "adan_beta3": Ours("optimizer.betas", _betas),
            "fp16": Ours("amp", lambda args: "fp16" if args["fp16"] else "no"),
            "micro_batch_size": Ours("gradient_accumulation_steps", _accumulate),
        },
        same={"": "clip_grad", "optimizer.": "lr weight_decay"},
        free="save_interval",
    )
)
