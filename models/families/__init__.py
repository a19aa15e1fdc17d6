"""Families of Mixture-of-Experts models with public checkpoints, through Hugging Face transformers' own classes."""
