"""Running models: the only room that imports onnxruntime.

onnxruntime 1.32 records telemetry of its use unless `ORT_DISABLE_TELEMETRY` is set when it is imported. It is set here, before
any module of this room imports it, unless the user has set it to something else; child processes inherit it.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
