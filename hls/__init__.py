"""FPGA back end: FINN engines by width class, their simulation, synthesis and planning."""
