"""Read-only computations over a model: channel groups and costs."""
