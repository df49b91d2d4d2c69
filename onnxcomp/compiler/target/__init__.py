"""Deployment targets: facts, files, lint of a model against one."""
