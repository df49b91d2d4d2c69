"""Fuzzing of the command line: mutated models, data files and pipelines, held to what the tool promises of every input."""
