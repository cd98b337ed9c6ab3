#!/usr/bin/env bash
# Make .venv/ with exactly the versions of constraints.txt. Safe to run twice, or twice at once; the second does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/.ready
wanted=$(cat pyproject.toml constraints.txt scripts/setup.sh | sha256sum)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

exec 9>.setup.lock # the kernel lets go of it when this process ends, however it ends
flock 9
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

echo "setting up .venv (about two minutes; once)" >&2
"${PYTHON:-python3}" -m venv .venv
pip() { PYTHONWARNINGS=ignore .venv/bin/python -m pip --disable-pip-version-check --quiet "$@" >&2; }
pip install --constraint constraints.txt pip setuptools wheel ninja
# torch before deepspeed: deepspeed's own build asks the installed torch what it can do.
pip install --constraint constraints.txt torch
DS_BUILD_OPS=0 pip install --constraint constraints.txt --no-build-isolation deepspeed
pip install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
echo "$wanted" >"$stamp"
