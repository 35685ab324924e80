"""A run on disk: checkpoints, logs, resuming, and the trained agent."""
