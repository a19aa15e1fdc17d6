"""MoE transformer, its quantizers, data, training, expert statistics and QONNX export."""
