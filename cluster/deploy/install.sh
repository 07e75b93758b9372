#!/bin/sh
# Install rayscan on a node, and do nothing where it is installed already:
#
#     install.sh WHEEL CONSTRAINTS VENV [INDEX]
#
# A stamp in VENV holds the hash of WHEEL and CONSTRAINTS. While both are the same, nothing is installed: a node whose
# image brings VENV starts in seconds. If only our code changed, only WHEEL is installed. Libraries are fetched from the
# package index at the URL INDEX; without one nothing is fetched from anywhere, because a node in a private subnet would
# wait for minutes for an index that it cannot reach. PYTHON names the Python that makes VENV (python3).
set -eu

complain() { echo "install.sh: $1" >&2; exit 1; }

[ $# -ge 3 ] || complain "give WHEEL CONSTRAINTS VENV [INDEX]"
wheel=$1 constraints=$2 venv=$3 index=${4:-} python=${PYTHON:-python3}
for file in "$wheel" "$constraints"; do
    [ -f "$file" ] || complain "$file is missing: it is copied here by file_mounts"
done

stamp=$venv/.rayscan-installed
hash=$(cat "$wheel" "$constraints" | sha256sum | cut -d ' ' -f 1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$hash" ]; then
    echo "nothing to install: $venv is of this wheel and these constraints"
    exit 0
fi

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' ||
    complain "rayscan needs Python 3.11, 3.12 or 3.13: name one in PYTHON"
rm -f "$stamp"
[ -x "$venv/bin/pip" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

# The wheel by itself: pip would not replace one of the same version. Then what it needs and VENV lacks.
pip install --quiet --no-index --no-deps --force-reinstall "$wheel"
if [ -n "$index" ]; then
    pip install --index-url "$index" --constraint "$constraints" "$wheel"
else
    pip install --quiet --no-index --constraint "$constraints" "$wheel" ||
        complain "$venv lacks libraries, and no index is given: use an image that has them, or name an index"
fi
echo "$hash" > "$stamp"
echo "installed $(basename "$wheel") in $venv"
