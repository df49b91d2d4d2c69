"""Distance between outputs: divergence, trials, held-back bounds, sensitivity techniques."""
