"""Running models: the only room that imports onnxruntime."""
