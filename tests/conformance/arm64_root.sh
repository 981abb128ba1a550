#!/bin/bash
# A folder with what `qemu-aarch64` needs to run this package: Debian 12's Python for arm64 in root/, the wheels that the
# base install needs in site/. Nothing of the system changes. tests/conformance/test_aarch64.py looks for it in $HPCM_ARM64.
#   bash tests/conformance/arm64_root.sh [FOLDER]        25 MB of downloads; 130 MB in ~/.cache/hpcm-arm64 by default
set -euo pipefail
folder=${1:-${HPCM_ARM64:-$HOME/.cache/hpcm-arm64}}
[ -e "$folder/done" ] && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,debs,root} "$folder"
touch "$work/state/status"
cat > "$work/apt.conf" <<EOF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "$(id -un)";
Dir::State "$work/state";
Dir::State::status "$work/state/status";
Dir::Cache "$work/cache";
EOF
export APT_CONFIG="$work/apt.conf"
apt-get -qq update || true  # sources that have nothing for arm64 may fail
(cd "$work/debs" && apt-get -qq download libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 \
    liblzma5 libuuid1 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib)
for package in "$work"/debs/*.deb; do dpkg-deb -x "$package" "$work/root"; done
python3 -m pip install --quiet --disable-pip-version-check --no-compile --target "$work/site" --only-binary=:all: \
    --python-version 3.11 --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 \
    numpy pillow safetensors pydantic pyyaml typer rich threadpoolctl
rm -rf "$folder/root" "$folder/site"
mv "$work/root" "$work/site" "$folder"
touch "$folder/done"
