"""What must be so before any test imports Triton, which others than the GPU kernels' tests do through PyTorch."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels, and Triton's own library, run in its interpreter
