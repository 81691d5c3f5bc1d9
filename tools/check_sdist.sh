#!/usr/bin/env bash
# Build the sdist, from it a wheel, install that into an environment that has torch and nothing of this checkout, and run it.
set -euo pipefail
export FUSEDNN_OPTIMIZE=-O0
cd "$(dirname "$0")/.."
out="$PWD/build/sdist"
rm -rf "$out" && mkdir -p "$out"
python -m pip install -q build
python -m build --no-isolation --sdist --outdir "$out" . >"$out/log" 2>&1 || { cat "$out/log"; exit 1; }
tar xzf "$out"/fusednn-*.tar.gz -C "$out"
(cd "$out"/fusednn-*/ && python -m build --no-isolation --wheel --outdir "$out" .) >>"$out/log" 2>&1 || { cat "$out/log"; exit 1; }
# Packages of this environment are visible there (torch is large); fusednn itself comes from the wheel alone.
python -m venv --system-site-packages "$out/env"
site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$site" >"$("$out/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
"$out/env/bin/python" -m pip install -q --no-deps --force-reinstall "$out"/fusednn-*.whl
cd "$out"
env/bin/python - <<'PY'
import fusednn, torch

assert "/sdist/env/" in fusednn.__file__, fusednn.__file__
assert fusednn.native.MODULE is not None, "the wheel holds no compiled module"
print("wheel from the sdist:", fusednn.GRU(4, 8)(torch.randn(3, 2, 4))[0].shape)
PY
env/bin/python -m fusednn
