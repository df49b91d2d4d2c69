"""Benchmarks: what is measured, on which networks, beside which peers, and what is to be reached."""
