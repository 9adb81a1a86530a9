#!/bin/bash
# Installs the packages of system-packages.txt that are missing, with apt; asks nobody, and needs root
# or sudo only where something is missing.
set -euo pipefail
cd "$(dirname "$0")"

if ! command -v dpkg-query >/dev/null; then
  echo "This is no Debian: install the like of these yourself, then rerun: $(grep -v '^#' system-packages.txt | tr '\n' ' ')" >&2
  exit 0
fi

installed() {
  [[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]
}

missing=()
optional=()
while IFS='|' read -r first second; do
  [[ -z "$first" || "$first" == \#* ]] && continue
  if [[ "$first" == *\? ]]; then
    optional+=("${first%\?}")
    continue
  fi
  installed "$first" && continue
  [[ -n "$second" ]] && installed "$second" && continue
  missing+=("$first|$second")
done <system-packages.txt
[[ ${#missing[@]} -eq 0 ]] && exit 0

root=()
if [[ $EUID -ne 0 ]]; then
  if ! command -v sudo >/dev/null; then
    echo "Packages are missing, and neither are you root nor is there sudo: ${missing[*]}" >&2
    exit 1
  fi
  root=(sudo)
fi
apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
"${apt[@]}" update </dev/null >/dev/null

names=()
for pair in "${missing[@]}"; do
  first=${pair%%|*}
  second=${pair#*|}
  if [[ -n "$second" ]] && ! apt-cache show "$first" >/dev/null 2>&1; then
    names+=("$second")
  else
    names+=("$first")
  fi
done
for name in "${optional[@]}"; do
  if apt-cache show "$name" >/dev/null 2>&1; then
    names+=("$name")
  fi
done
echo "Installing system packages: ${names[*]}"
log=$(mktemp)
if ! "${apt[@]}" install -y --no-install-recommends "${names[@]}" </dev/null >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi
rm -f "$log"
