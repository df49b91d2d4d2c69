"""Channel pruning: criteria, ranking, allocation of a budget, schedule, recovery."""
