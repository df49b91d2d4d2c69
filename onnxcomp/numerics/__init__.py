"""Pure numpy and scipy: moments, ridge solves, importance. Knows nothing of graphs."""
