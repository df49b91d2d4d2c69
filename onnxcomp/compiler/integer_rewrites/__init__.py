"""Exact rewrites into operators that can be computed in integers."""
