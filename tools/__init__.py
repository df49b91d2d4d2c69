"""What the repository is worked on with: benchmarks, zoos of networks, generated parts of the documents.

Importing any of it imports `onnxcomp.runtime`, which turns off the telemetry of onnxruntime before that is imported.
"""

import onnxcomp.runtime  # noqa: F401
