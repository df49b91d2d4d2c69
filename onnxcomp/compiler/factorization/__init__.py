"""Low-rank, Tucker, CP and depthwise-separable factorization."""
