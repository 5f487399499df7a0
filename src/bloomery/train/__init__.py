"""What every training loop shares: optimizer, schedule, precision, the guarded step, checkpoints, runs."""
