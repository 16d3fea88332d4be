#!/bin/sh
# Fills .venv-validation with TensorFlow Data Validation (TFDV) and the pinned versions of all that it needs, which differ
# from those of .venv: sh tools/setup_validation.sh
# TFDV 1.21 where the machine's C library allows it, else 1.16 on Python 3.11. Nothing is done when nothing changed.
set -eu
cd "$(dirname "$0")/.."
. tools/choose_python.sh

# The wheels of TFDV 1.21 are for glibc 2.39 and newer (manylinux_2_39).
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d ' ' -f 2)
if [ "$(printf '%s\n2.39\n' "${glibc:-0}" | sort -V | head -n 1)" = 2.39 ]; then
    version=1.21 oldest=11 newest=13 candidates="python3 python3.13 python3.12 python3.11"
else
    version=1.16 oldest=11 newest=11 candidates="python3.11 python3"
fi
pins=constraints-validation-$version.txt
environment=.venv-validation

key="$(cat "$pins" tools/setup_validation.sh tools/choose_python.sh | cksum) $PWD"
stamp=$environment/installed
if [ -x $environment/bin/python ] && [ -f $stamp ] && [ "$(cat $stamp)" = "$key" ]; then
    exit 0
fi

# The Python of the other environment may be too new for this one.
if ! chosen=$(choose_python $oldest $newest ${PYTHON:-} $candidates); then
    echo "TFDV $version needs Python 3.$oldest${newest:+ to 3.$newest} with its venv module (glibc ${glibc:-unknown})." >&2
    echo "Install one, or name it: make validation PYTHON=/path/to/python3.$newest" >&2
    exit 1
fi

echo "Installing TFDV $version in $environment (3 GB): about three minutes."
"$chosen" -m venv --clear $environment
# The pins name every package: pip's resolver takes half an hour without that, and is not needed with it.
$environment/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --requirement "$pins"
$environment/bin/python -m pip check --disable-pip-version-check >/dev/null || {
    $environment/bin/python -m pip check --disable-pip-version-check >&2
    exit 1
}
echo "$key" >$stamp
