"""Bit-width policies: environment, PPO, exact solver, controls, co-training."""
