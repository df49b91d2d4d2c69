"""Cross-layer equalization and outlier splitting."""
