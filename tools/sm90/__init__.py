"""Machine code of sm_90: read, walked through by a warp, and laid out in time."""
