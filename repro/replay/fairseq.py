"""What fairseq's configurations and logs fix of a row."""

import math
from typing import Any

from repro.ledger import Recipe
from repro.replay.checks import Check, Evidence, all_of, digits, positions, rates, shown
from repro.replay.settings import Must, Ours, Rule, Settings, Table, FREE, free, must, ours

GPUS = 8  # "training on 8 devices", as BERT's logs say


def _total_batch(config: Settings) -> int:
    updates = config["optimization.update_freq"][0]
    return int(config["dataset.batch_size"] * config["distributed_training.distributed_world_size"] * updates)


def _loss_scale_window(config: Settings) -> int:
    """Steps without overflow until the scale doubles; fairseq's default shrinks with the batch."""
    given = config["common.fp16_scale_window"]
    if given is not None:
        return int(given)
    processes = config["distributed_training.distributed_world_size"]
    return 2**14 // (processes * config["optimization.update_freq"][0])


def _selected(config: Settings) -> str:
    metric = config["checkpoint.best_checkpoint_metric"]
    # MNLI, the task with three classes, has two validation sets; fairseq's `valid` is the matched one
    return f"valid_{metric}_matched" if config.get("task.num_classes") == 3 else f"valid_{metric}"


def _betas(key: str) -> Ours:
    return Ours(
        "optimizer.betas", lambda config: [float(beta) for beta in config[key].strip("()").split(",")]
    )


BATCH = Ours("batch_size", _total_batch)
NAMES = {
    "adam": "adamw",
    "adan": "adan",
    "polynomial_decay": "polynomial",
    "cosine": "cosine",
}  # fairseq's, ours

COMMON: dict[str, Rule] = {
    **ours("common.", seed="seed", log_interval="run.log_every"),
    **ours("common.", fp16_init_scale="loss_scale.initial", min_loss_scale="loss_scale.minimum"),
    "common.threshold_loss_scale": Ours("loss_scale.threshold"),
    "common.fp16_scale_window": Ours("loss_scale.window", _loss_scale_window),
    "common.fp16": Ours("amp", lambda config: "fp16" if config["common.fp16"] else "no"),
    **must("common.", bf16=False, memory_efficient_bf16=False, memory_efficient_fp16=False, amp=False),
    **must("common.", fp16_scale_tolerance=0.0, cpu=False, tpu=False, model_parallel_size=1),
    **must("common.", on_cpu_convert_precision=False, quantization_config_path=None, user_dir=None),
    **free(
        "log_format log_file no_progress_bar aim_repo aim_run_hash tensorboard_logdir wandb_project",
        "common.",
    ),
    **free(
        "azureml_logging fp16_no_flatten_grads amp_batch_retries amp_init_scale amp_scale_window", "common."
    ),
    **free("empty_cache_freq all_gather_list_size profile reset_logging suppress_crashes", "common."),
    **free("use_plasma_view plasma_path", "common."),
    "distributed_training.distributed_world_size": BATCH,
    **must("distributed_training.", fix_batches_to_gpus=False, slowmo_momentum=None),
    **must(
        "distributed_training.", pipeline_model_parallel=False, zero_sharding="none", ddp_comm_hook="none"
    ),
    # how processes find each other and share the work; the gradients are the same
    **free("distributed_*", "distributed_training."),
    **free(
        "ddp_backend device_id bucket_cap_mb find_unused_parameters fast_stat_sync", "distributed_training."
    ),
    **free(
        "gradient_as_bucket_view heartbeat_timeout broadcast_buffers nprocs_per_node", "distributed_training."
    ),
    **free(
        "slowmo_base_algorithm localsgd_frequency pipeline_* fp16 memory_efficient_fp16",
        "distributed_training.",
    ),
    **free("tpu no_reshard_after_forward fp32_reduce_scatter cpu_offload", "distributed_training."),
    **free("use_sharded_state not_fsdp_flatten_parameters", "distributed_training."),
    "dataset.batch_size": BATCH,
    "dataset.max_tokens": Ours("data.max_tokens"),
    **must("dataset.", required_seq_len_multiple=1, train_subset="train", valid_subset="valid", curriculum=0),
    **must("dataset.", combine_valid_subsets=None, validate_after_updates=0, disable_validation=False),
    **must("dataset.", fixed_validation_seed=None, max_valid_steps=None, num_shards=1, shard_id=0),
    **must(
        "dataset.", grouped_shuffling=False, update_epoch_batch_itr=False, update_ordered_indices_seed=False
    ),
    **free("num_workers dataset_impl data_buffer_size ignore_unused_valid_subsets gen_subset", "dataset."),
    **free("max_tokens_valid batch_size_valid", "dataset."),
    "optimization.max_update": Ours("steps"),
    "optimization.update_freq": Ours("accumulate", lambda config: config["optimization.update_freq"][0]),
    "optimization.clip_norm": Ours("clip_grad", lambda config: config["optimization.clip_norm"] or None),
    "optimization.lr": Ours("optimizer.lr", lambda config: config["optimization.lr"][0]),
    **must("optimization.", stop_time_hours=0.0, sentence_avg=False, stop_min_lr=-1.0, use_bmuf=False),
    **must("optimization.", skip_remainder_batch=False),
    "checkpoint.best_checkpoint_metric": Ours("select.metric", _selected),
    "checkpoint.maximize_best_checkpoint_metric": Ours("select.higher_is_better"),
    **must("checkpoint.", finetune_from_model=None, optimizer_overrides="{}", patience=-1),
    **must("checkpoint.", reset_lr_scheduler=False),
    # where and how often checkpoints are kept, and where a run goes on from after a stop
    **free(
        "save_* keep_* no_* restore_file continue_once checkpoint_* load_checkpoint_on_all_dp_ranks",
        "checkpoint.",
    ),
    **free("write_checkpoints_asynchronously model_parallel_size", "checkpoint."),
    "model._name": Ours("model.name"),
    "model.dropout": Ours("model.hidden_dropout_prob"),
    "model.attention_dropout": Ours("model.attention_probs_dropout_prob"),
    "optimizer._name": Ours("optimizer.name", lambda config: NAMES[config["optimizer._name"]]),
    "optimizer.weight_decay": Ours("optimizer.weight_decay"),
    "lr_scheduler._name": Ours("schedule.name", lambda config: NAMES[config["lr_scheduler._name"]]),
    "lr_scheduler.warmup_updates": Ours("schedule.warmup_steps"),
    "task.data": FREE,
    "ema.store_ema": Must(False),
    # parts that training does not use, and names of fairseq's own classes
    **free(
        "*._name _name common_eval.* eval_lm.* generation.* interactive.* bmuf.* ema.* scoring bpe tokenizer"
    ),
}
# What fairseq takes where a file says nothing; the full configurations have it all.
DEFAULTS = {
    "common.seed": 1,
    "common.fp16_init_scale": 128,
    "common.fp16_scale_window": None,
    "common.min_loss_scale": 1e-4,
    "common.threshold_loss_scale": None,
    "distributed_training.distributed_world_size": GPUS,  # as many as there are
    "dataset.max_tokens": None,
    "dataset.validate_interval_updates": 0,
    "checkpoint.best_checkpoint_metric": "loss",
    "checkpoint.maximize_best_checkpoint_metric": False,
    "criterion.regression_target": False,
}


def _pretraining() -> dict[str, Rule]:
    """Of BERT."""
    return {
        "dataset.validate_interval": Ours("measure_epochs"),
        "dataset.validate_interval_updates": Ours("measure_every"),
        "dataset.skip_invalid_size_inputs_valid_test": Must(True),
        "dataset.required_batch_size_multiple": Must(8),
        "optimization.max_epoch": Must(0),
        **must("checkpoint.", reset_dataloader=False, reset_meters=False, reset_optimizer=False),
        "model.max_positions": Ours("data.block_size"),
        **must("task.", _name="masked_lm"),
        **ours("task.", sample_break_mode="data.block", tokens_per_sample="data.block_size"),
        "criterion": Must("masked_lm"),
    }


def _finetuning() -> dict[str, Rule]:
    """Of GLUE."""
    return {
        "dataset.required_batch_size_multiple": Must(1),
        "optimization.max_epoch": Ours("max_epochs"),
        # weights are all that it starts from
        **must("checkpoint.", reset_dataloader=True, reset_meters=True, reset_optimizer=True),
        **must("task.", _name="sentence_prediction", init_token=0, separator_token=2),
        **ours("task.", max_positions="data.max_length", num_classes="model.num_labels"),
        "criterion._name": Must("sentence_prediction"),
        "criterion.regression_target": Ours("loss", _loss),
    }


def table(settings: Settings) -> Table:
    """Return the table for a configuration: a full one, or one that names what differs from the defaults."""
    optimizer = settings.get("optimizer._name")
    rules = {
        **COMMON,
        **(_pretraining() if settings.get("task._name") == "masked_lm" else _finetuning()),
        f"optimizer.{optimizer}_betas": _betas(f"optimizer.{optimizer}_betas"),
        f"optimizer.{optimizer}_eps": Ours("optimizer.eps"),
    }
    partial = "common_eval.path" not in settings
    return Table(rules, DEFAULTS if partial else {}, partial)


def _loss(config: Settings) -> str:
    return "mse" if config["criterion.regression_target"] else "cross_entropy"


def lr(evidence: Evidence, recipe: Recipe) -> Check:
    """Compare every learning rate in the files, to its last digit, with ours after as many updates."""
    return digits(evidence.logs, rates(recipe), ".6g")


def epochs(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that the log has records of all updates, and epochs of as many iterations as ours.

    An update whose gradients overflowed is an iteration, too, but is not counted.
    """
    assert evidence.log is not None
    steps, every = recipe.get("steps"), recipe.get("run.log_every")
    logged = evidence.log.of("train")["step"]
    records = positions("record at update", range(every, steps + 1, every), logged, f"{steps:,} updates")
    iterations = math.ceil(recipe.get("data.train_sequences") / recipe.get("batch_size"))
    notes, ends = [], 0
    for end in evidence.log.of("epoch").itertuples():
        if end.step < steps:  # the last epoch is cut off by the last update
            ends += 1
            seen = end.step + _overflows(evidence, end.file, end.line)
            if seen != end.epoch * iterations:
                notes.append(
                    f"epoch {end.epoch} ends after {seen} iterations, ours after {end.epoch * iterations}"
                )
    says = f"{steps:,} updates, {iterations:,} iterations an epoch"
    return all_of(Check(not notes, says, ends, shown(notes)), records)


def _overflows(evidence: Evidence, file: int, line: int) -> int:
    """Return how many updates had been left out before a line of the run, without those done again later."""
    count = 0
    for index, log in enumerate(evidence.logs[: file + 1]):
        later = [
            event["step"]
            for log in evidence.logs[index + 1 :]
            for event in log.events
            if event["what"] == "loaded"
        ]
        for event in log.events:
            superseded = any(event["step"] >= step for step in later)
            if event["what"] == "overflow" and not superseded and (index < file or event["line"] < line):
                count += 1
    return count


def validation(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that validations are every so many updates, and at the end of every so many epochs."""
    assert evidence.log is not None
    steps, every, epochs = recipe.get("steps"), recipe.get("measure_every"), recipe.get("measure_epochs")
    ends = evidence.log.of("epoch").itertuples()
    due = {end.step for end in ends if end.epoch % epochs == 0} | set(range(every, steps + 1, every))
    says = f"every {every:,} updates and {epochs} epochs"
    return positions("validation at update", sorted(due), evidence.log.of("eval")["step"], says)
