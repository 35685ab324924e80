"""Execution of a run: learner, workers, devices, ranks and exact resume."""
