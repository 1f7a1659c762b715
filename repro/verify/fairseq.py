"""What fairseq's configurations and logs determine about a row."""

import math

from repro.ledger.rows import Recipe
from repro.verify.checks import Check, Evidence, all_of, digits, positions, rates, shown
from repro.verify.settings import Ours, Rule, Settings, Table, rules

GPUS = 8  # "training on 8 devices", as BERT's logs say


def _total_batch(config: Settings) -> int:
    return _micro_batches(config) * int(config["dataset.batch_size"])


def _micro_batches(config: Settings) -> int:
    """Return the micro-batches of a step, over all processes."""
    processes: int = config["distributed_training.distributed_world_size"]
    return processes * int(config["optimization.update_freq"][0])


def _loss_scale_window(config: Settings) -> int:
    """Return the steps without overflow after which the scale doubles; the default shrinks with the batch."""
    return int(config["common.fp16_scale_window"] or 2**14 // _micro_batches(config))


def _selected(config: Settings) -> str:
    metric = config["checkpoint.best_checkpoint_metric"]
    # MNLI, the task with three classes, has two validation sets; fairseq's `valid` is the matched one
    return f"valid_{metric}_matched" if config.get("task.num_classes") == 3 else f"valid_{metric}"


def _betas(key: str) -> Ours:
    return Ours(
        "optimizer.betas", lambda config: [float(beta) for beta in config[key].strip("()").split(",")]
    )


def _loss(config: Settings) -> str:
    return "mse" if config["criterion.regression_target"] else "cross_entropy"


BATCH = Ours("batch_size", _total_batch)
# of optimizers and schedules: theirs, ours
NAMES = {"adam": "adamw", "adan": "adan", "polynomial_decay": "polynomial", "cosine": "cosine"}

COMMON: dict[str, Rule] = {
    **rules(
        "common.",
        ours={
            "seed": "seed",
            "log_interval": "run.log_every",
            "fp16": Ours("amp", lambda config: "fp16" if config["common.fp16"] else "no"),
            "fp16_init_scale": "loss_scale.initial",
            "fp16_scale_window": Ours("loss_scale.growth_interval", _loss_scale_window),
            "min_loss_scale": "loss_scale.minimum",
            "threshold_loss_scale": "loss_scale.threshold",
        },
        must={"fp16_scale_tolerance": 0.0, "model_parallel_size": 1},
        off="amp bf16 cpu memory_efficient_bf16 memory_efficient_fp16 on_cpu_convert_precision tpu",
        unset="quantization_config_path user_dir",
        free="aim_repo aim_run_hash all_gather_list_size amp_batch_retries amp_init_scale amp_scale_window "
        "azureml_logging empty_cache_freq fp16_no_flatten_grads log_file log_format no_progress_bar "
        "plasma_path profile reset_logging suppress_crashes tensorboard_logdir use_plasma_view "
        "wandb_project",
    ),
    **rules(  # mostly how processes find each other and share the work
        "distributed_training.",
        ours={"distributed_world_size": BATCH},
        must={"ddp_comm_hook": "none", "zero_sharding": "none"},
        off="cpu_offload fix_batches_to_gpus fp32_reduce_scatter pipeline_model_parallel",
        unset="slowmo_momentum",
        free="broadcast_buffers bucket_cap_mb ddp_backend device_id distributed_backend "
        "distributed_init_method distributed_no_spawn distributed_num_procs distributed_port "
        "distributed_rank fast_stat_sync find_unused_parameters fp16 gradient_as_bucket_view "
        "heartbeat_timeout localsgd_frequency memory_efficient_fp16 no_reshard_after_forward "
        "not_fsdp_flatten_parameters nprocs_per_node pipeline_* slowmo_base_algorithm tpu "
        "use_sharded_state",
    ),
    **rules(
        "dataset.",
        ours={"batch_size": BATCH, "max_tokens": "data.max_tokens"},
        must={
            "curriculum": 0,
            "num_shards": 1,
            "required_seq_len_multiple": 1,
            "shard_id": 0,
            "train_subset": "train",
            "valid_subset": "valid",
            "validate_after_updates": 0,
        },
        off="disable_validation grouped_shuffling update_epoch_batch_itr update_ordered_indices_seed",
        unset="combine_valid_subsets fixed_validation_seed max_valid_steps",
        free="batch_size_valid data_buffer_size dataset_impl gen_subset ignore_unused_valid_subsets "
        "max_tokens_valid num_workers",
    ),
    **rules(
        "optimization.",
        ours={
            "clip_norm": Ours("clip_grad", lambda config: config["optimization.clip_norm"] or None),
            "lr": Ours("optimizer.lr", lambda config: config["optimization.lr"][0]),
            "max_update": "steps",
            "update_freq": Ours(
                "gradient_accumulation_steps", lambda config: config["optimization.update_freq"][0]
            ),
        },
        must={"stop_min_lr": -1.0, "stop_time_hours": 0.0},
        off="sentence_avg skip_remainder_batch use_bmuf",
    ),
    **rules(  # mostly where and how often checkpoints are kept
        "checkpoint.",
        ours={
            "best_checkpoint_metric": Ours("select.metric", _selected),
            "maximize_best_checkpoint_metric": "select.higher_is_better",
        },
        must={"optimizer_overrides": "{}", "patience": -1},
        off="reset_lr_scheduler",
        unset="finetune_from_model",
        free="checkpoint_shard_count checkpoint_suffix continue_once keep_best_checkpoints "
        "keep_interval_updates keep_interval_updates_pattern keep_last_epochs "
        "load_checkpoint_on_all_dp_ranks model_parallel_size no_epoch_checkpoints no_last_checkpoints "
        "no_save no_save_optimizer_state restore_file save_dir save_interval save_interval_updates "
        "write_checkpoints_asynchronously",
    ),
    **rules(
        "model.",
        ours={
            "_name": "model.name",
            "attention_dropout": "model.attention_probs_dropout_prob",
            "dropout": "model.hidden_dropout_prob",
        },
    ),
    **rules(
        "optimizer.",
        ours={"_name": Ours("optimizer.name", lambda config: NAMES[config["optimizer._name"]])},
        same={"optimizer.": "weight_decay"},
    ),
    **rules(
        "lr_scheduler.",
        ours={
            "_name": Ours("schedule.name", lambda config: NAMES[config["lr_scheduler._name"]]),
            "warmup_updates": "schedule.warmup_steps",
        },
    ),
    # parts that training does not use, and the names of fairseq's classes for those that it does
    **rules(
        off="ema.store_ema",
        free="*._name _name bmuf.* bpe common_eval.* ema.* eval_lm.* generation.* interactive.* scoring "
        "task.data tokenizer",
    ),
}
PRETRAINING: dict[str, Rule] = {
    **rules(
        "dataset.",
        ours={"validate_interval": "eval_epochs", "validate_interval_updates": "eval_every"},
        must={"required_batch_size_multiple": 8, "skip_invalid_size_inputs_valid_test": True},
    ),
    **rules("optimization.", must={"max_epoch": 0}),
    **rules("checkpoint.", off="reset_dataloader reset_meters reset_optimizer"),
    **rules("model.", ours={"max_positions": "data.block_size"}),
    **rules(
        "task.",
        ours={"sample_break_mode": "data.block", "tokens_per_sample": "data.block_size"},
        must={"_name": "masked_lm"},
    ),
    **rules(must={"criterion": "masked_lm"}),
}
FINETUNING: dict[str, Rule] = {
    **rules("dataset.", must={"required_batch_size_multiple": 1}),
    **rules("optimization.", ours={"max_epoch": "max_epochs"}),
    # it starts from the weights alone
    **rules("checkpoint.", must={"reset_dataloader": True, "reset_meters": True, "reset_optimizer": True}),
    **rules(
        "task.",
        ours={"max_positions": "data.max_length", "num_classes": "model.num_labels"},
        must={"_name": "sentence_prediction", "init_token": 0, "separator_token": 2},
    ),
    **rules(
        "criterion.", ours={"regression_target": Ours("loss", _loss)}, must={"_name": "sentence_prediction"}
    ),
}
# fairseq's defaults for keys that a file may leave out; full configurations have them all
DEFAULTS = {
    "common.seed": 1,
    "common.fp16_init_scale": 128,
    "common.fp16_scale_window": None,
    "common.min_loss_scale": 1e-4,
    "common.threshold_loss_scale": None,
    "distributed_training.distributed_world_size": GPUS,  # as many as there are
    "dataset.max_tokens": None,
    "optimization.update_freq": [1],
    "checkpoint.best_checkpoint_metric": "loss",
    "checkpoint.maximize_best_checkpoint_metric": False,
    "criterion.regression_target": False,
}


def table(settings: Settings) -> Table:
    """Return the table for a configuration, be it full or only what differs from the defaults."""
    optimizer = settings.get("optimizer._name")
    known = {
        **COMMON,
        **(PRETRAINING if settings.get("task._name") == "masked_lm" else FINETUNING),
        f"optimizer.{optimizer}_betas": _betas(f"optimizer.{optimizer}_betas"),
        f"optimizer.{optimizer}_eps": Ours("optimizer.eps"),
    }
    partial = "common_eval.path" not in settings
    absent = {key: value for key, value in DEFAULTS.items() if key in known}
    return Table(known, absent if partial else {}, partial)


def lr(evidence: Evidence, recipe: Recipe) -> Check:
    """Compare every learning rate in the files with ours at that update, to the last digit."""
    return digits(evidence.logs, rates(recipe), ".6g")


def epochs(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that the log has records of all updates, and that its epochs have as many iterations as ours.

    An iteration whose gradients overflowed makes no update.
    """
    assert evidence.log is not None
    steps, every = recipe.get("steps"), recipe.get("run.log_every")
    logged = evidence.log.of("train")["step"]
    records = positions("record at update", range(every, steps + 1, every), logged, f"{steps:,} updates")
    iterations = math.ceil(recipe.get("data.train_sequences") / recipe.get("batch_size"))
    stated = evidence.log.config.get("iterations_per_epoch", iterations)
    notes = []
    if stated != iterations:
        notes.append(f"iterations an epoch: {stated:,} in the log, ours {iterations:,}")
    ends = 0
    for end in evidence.log.of("epoch").itertuples():
        if end.step < steps:  # the last epoch is cut off by the last update
            ends += 1
            seen, ours = end.step + _overflows(evidence, end.file, end.line), end.epoch * iterations
            if seen != ours:
                notes.append(f"epoch {end.epoch:g} ends after {seen:g} iterations, ours after {ours:g}")
    says = f"{steps:,}, {iterations:,} an epoch"
    return all_of(Check(not notes, says, ends, shown(notes)), records)


def _overflows(evidence: Evidence, file: int, line: int) -> int:
    """Return the number of updates skipped before a line, except those that a later file repeats."""
    resumed = [[event["step"] for event in log.events if event["what"] == "loaded"] for log in evidence.logs]
    places = [
        (index, event["line"])
        for index, log in enumerate(evidence.logs)
        for event in log.events
        if event["what"] == "overflow"
        and all(event["step"] < step for later in resumed[index + 1 :] for step in later)
    ]
    return sum(place < (file, line) for place in places)


def validation(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that validations come every `eval_every` updates and after every `eval_epochs` epochs."""
    assert evidence.log is not None
    steps, every, epochs = recipe.get("steps"), recipe.get("eval_every"), recipe.get("eval_epochs")
    ends = evidence.log.of("epoch").itertuples()
    due = {end.step for end in ends if end.epoch % epochs == 0} | set(range(every, steps + 1, every))
    says = f"every {every:,}, every {epochs} epochs"
    return positions("validation at update", sorted(due), evidence.log.of("eval")["step"], says)
