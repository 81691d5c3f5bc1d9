"""Load the built ``fusednn._C`` under the oldest and the newest supported torch, and run a layer against torch.nn.

The module was compiled against the torch of this environment; its stable ABI promises the others. Each torch goes into
a virtual environment of its own under build/torch; where only builds with CUDA exist, that is gigabytes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

VERSIONS = ("2.11.0", "2.15.0")
CHECK = """
import torch, fusednn
assert fusednn.native.MODULE is not None, "the built module was not found"
for name in ("RNN", "LSTM", "GRU"):
    theirs = getattr(torch.nn, name)(5, 7, 2, bidirectional=True)
    ours = getattr(fusednn, name)(5, 7, 2, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(6, 3, 5, requires_grad=True)
    results = []
    for layer in (theirs, ours):
        y = layer(x)[0]
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)
print("fusednn._C works under torch", torch.__version__)
"""


def main() -> None:
    """Check each version; exit non-zero where one fails."""
    root = Path(__file__).resolve().parent.parent
    for version in VERSIONS:
        home = root / "build/torch" / version
        python = home / "bin/python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", f"torch=={version}", "numpy", "triton"], check=True)
        environment = {"PYTHONPATH": str(root / "pyext"), "PATH": "/usr/bin:/bin"}
        subprocess.run([python, "-c", CHECK], check=True, env=environment)


if __name__ == "__main__":
    main()
