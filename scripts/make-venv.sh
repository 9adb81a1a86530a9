#!/bin/bash
# make-venv.sh PYTHON FOLDER: a virtual environment of that interpreter, kept where it already is one.
set -euo pipefail
python=$1
folder=$2

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
  echo "$("$python" --version) is too old: Stook needs Python 3.10 or newer (make PYTHON=/path/to/python3)." >&2
  exit 1
fi
if ! "$folder/bin/python" -c 'import pip' 2>/dev/null; then
  rm -rf "$folder/bin" "$folder/lib"
  "$python" -m venv "$folder"
fi
