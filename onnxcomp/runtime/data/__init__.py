"""Samples: sources, files, images, preprocessing, fitting to the inputs of a model."""
