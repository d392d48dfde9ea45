#!/bin/sh
# The release as a user gets it: sdist and wheel are built, and the wheel is tried in an empty environment, away from the sources.
# `sh tests/release.sh [PYTHON]`; what is built stays in dist/.
set -eu
unset PYTHONPATH  # else pip may take the sources for what is installed
cd "$(dirname "$0")/.."
root=$PWD
python=${1:-python3}
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT

rm -rf dist
"$python" -m venv "$away/build"
"$away/build/bin/pip" install -q -c constraints.txt build
"$away/build/bin/python" -m build --outdir dist . > "$away/build.log" 2>&1 || { cat "$away/build.log"; exit 1; }
ls dist

"$python" -m venv "$away/venv"
# Python compiles what is imported; of all that is installed that is a small part.
"$away/venv/bin/pip" install -q --no-compile -c constraints.txt "$(echo dist/gimli_core-*.whl)[demo]"
cd "$away"
"$away/venv/bin/python" - "$root" <<'PY'
import importlib.metadata
import sys
import warnings
from pathlib import Path

import gimli_core

root = Path(sys.argv[1])
sys.path.append(str(root))  # behind the wheel's: for the one runner of pages
from tests.pages import run_as_printed

warnings.simplefilter("error")
run_as_printed(root / "README.md")
assert "site-packages" in gimli_core.__file__, gimli_core.__file__
assert importlib.metadata.version("gimli_core") == gimli_core.__version__
print(f"README's example runs with gimli_core {gimli_core.__version__} from the wheel")
PY
"$away/venv/bin/gimli" demo --outer-steps 3 --inner-steps 5 > "$away/demo.log" 2>&1 || { cat "$away/demo.log"; exit 1; }
test -s gimli_demo.png
"$away/venv/bin/gimli" trace quadratic --out page.html > /dev/null
test -s page.html
"$away/venv/bin/gimli" verify --case ridge --case network > "$away/verify.log" 2>&1 || { cat "$away/verify.log"; exit 1; }
echo "gimli demo, trace and verify run from the wheel"
