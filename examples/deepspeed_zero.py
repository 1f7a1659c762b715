"""DeepSpeed, ZeRO stage 1 or 2: DeepSpeed gets the optimizer, and shards its states.

DS_ACCELERATOR=cpu torchrun --nproc-per-node 2 examples/deepspeed_zero.py    # without a GPU
"""

import deepspeed
from task import ARGS, OPTIONS, WORLD, batch, loss, network, report

import adan_optim

config = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 8 // WORLD,
    "gradient_clipping": ARGS.max_grad_norm,  # DeepSpeed clips: the optimizer sees only some of the gradients
    "zero_allow_untested_optimizer": True,
}
for stage in (1, 2):
    model = network()
    optimizer = adan_optim.build_optimizer(model, ARGS.optimizer, **OPTIONS | {"max_grad_norm": 0.0})
    zero = {"zero_optimization": {"stage": stage}}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config | zero)
    for step in range(ARGS.steps):
        engine.backward(loss(engine, *batch(step)))
        engine.step()
    report(model)
