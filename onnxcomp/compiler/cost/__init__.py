"""The cost model: budget goals, counted and measured latency, kernel timing."""
