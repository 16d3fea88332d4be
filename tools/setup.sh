#!/bin/sh
# Fills .venv with the pinned versions and this package, in place: sh tools/setup.sh demo|search|test
# `test` installs all that the others do and more. Nothing is done when nothing changed since the last time.
set -eu
cd "$(dirname "$0")/.."
. tools/choose_python.sh

case "$1" in
demo) extras=tensorflow,demo ;;
search) extras=tensorflow,demo,search ;;
test) extras=tensorflow,jax,torch,hub,export,demo,cluster,curation,evaluation,parquet,remote,search,usearch,qdrant,reference,dev ;;
*)
    echo "tools/setup.sh: expected demo, search or test. Received: $1" >&2
    exit 2
    ;;
esac

key="$(cat pyproject.toml constraints.txt tools/setup.sh tools/choose_python.sh | cksum) $PWD"
for stamp in ".venv/installed-$1" .venv/installed-test; do
    if [ -x .venv/bin/python ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then
        exit 0
    fi
done

# TensorFlow 2.21 has no wheels for Python 3.14.
if ! usable .venv/bin/python 11 13; then
    candidates=${PYTHON:-python3 python3.13 python3.12 python3.11}
    if ! chosen=$(choose_python 11 13 $candidates); then
        echo "Python 3.11, 3.12 or 3.13 with its venv module is needed. Received: ${PYTHON:-$(python3 --version 2>&1)}." >&2
        echo "Install one, or name it: make $1 PYTHON=/path/to/python3.12" >&2
        exit 1
    fi
    "$chosen" -m venv --clear .venv
fi

echo "Installing the pinned versions in .venv ($extras): a few minutes the first time."
install() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$@"
}
if [ "$1" = test ]; then
    # Before the packages that want it, which could bring another build.
    install "$(grep '^torch==' constraints.txt)"
fi
install --editable ".[$extras]"
echo "$key" >".venv/installed-$1"
