"""Arguments of a run of well under a second."""

TINY = ["epochs=1", "schedule.warmup_epochs=0", "model.kwargs.embed_dim=16", "model.kwargs.depth=1"]
