"""Bitstreams of Zynq-7000 without vendor tools: yosys, nextpnr, Project X-Ray and an assembler of our own."""
