"""From float matrices [out, in] to integers: round to nearest, GPTQ, HQQ and low-rank compensators."""
