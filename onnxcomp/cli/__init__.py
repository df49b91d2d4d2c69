"""The command line: click, no logic."""
