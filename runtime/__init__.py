"""What a device knows: errors, targets, sessions, measuring, devices over SSH, and the schemas of reports. No torch.

ONNX Runtime's telemetry is off, unless the user has decided on it: 1.31 keeps an identifier of the machine in the
user's cache folder. It has to be told before it is imported.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
