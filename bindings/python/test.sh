#!/bin/sh
# Builds the wheel, installs it into an environment of its own under target/, and runs its tests.
# Needs python3 3.9 or later; pip fetches maturin, pytest, numpy, mypy, pytest-xdist, ray and moto the first time. With --fetch it does that alone.
set -eu
cd "$(dirname "$0")/../.."
venv=$PWD/target/python
wheels=$PWD/target/wheels

if ! "$venv/bin/python" -c "import boto3, maturin, moto, mypy, numpy, pytest, ray, xdist" 2>/dev/null; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-compile maturin "moto[server]" mypy numpy pytest pytest-xdist ray
fi
if [ "${1:-}" = --fetch ]; then exit; fi
rm -f "$wheels"/*.whl
root=$PWD
(cd bindings/python && "$venv/bin/maturin" build --release --locked --quiet --interpreter "$venv/bin/python" \
    --target-dir "$root/target" --out "$wheels")
"$venv/bin/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps "$wheels"/*.whl
ls -l "$wheels"

PATH=$venv/bin:$PATH
export PATH
if [ -x target/release/qmerge ]; then
    QMERGE_PROGRAM=$PWD/target/release/qmerge
    export QMERGE_PROGRAM
fi
cd bindings/python
# Many of them wait for servers, so more at a time than there are processors.
exec python -m pytest -q -n 4 --dist loadfile --durations=5 "$@"
