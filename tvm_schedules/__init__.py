"""ARM and host back end: TensorIR GEMV kernels by width and core, packing, compilation."""
