"""The pass manager: what a pass is, how a pipeline is written, run, verified, repaired and reported."""
