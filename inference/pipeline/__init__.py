"""Decode, batch, detect, merge, track, draw and encode; knows no framework.

What stands here must be said before the vendors' libraries load.
"""

import os
import sys

# OpenMP's threads wait for each other by spinning unless told otherwise. On a machine that does
# something beside, that costs a multiple of the work itself (measured with torch on two loaded
# cores: four times the processor time an image).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# OpenVINO reports its use to its maker unless this package cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
