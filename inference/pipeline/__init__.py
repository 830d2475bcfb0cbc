"""Decode, batch, detect, merge, track, draw and encode; knows no framework.

OpenMP's threads wait for each other by spinning unless told otherwise before the library loads.
On a machine that does something beside, that costs a multiple of the work itself (measured with
torch on two loaded cores: four times the processor time an image).
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
