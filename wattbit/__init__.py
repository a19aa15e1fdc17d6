"""Mixed-precision Mixture-of-Experts models, from PyTorch to FPGA and ARM boards."""

__version__ = "0.1.0"
