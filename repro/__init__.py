"""What every recipe shares: command line, run folder, training loop, schedules, checkpoints."""
