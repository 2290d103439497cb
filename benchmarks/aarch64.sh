#!/usr/bin/env bash
# Cross-compile for 64-bit ARM and run the result under QEMU: check a bundle, and classify DATA as this machine does.
#
#   benchmarks/aarch64.sh BUNDLE DATA WORK [TLC_RUN]
#
# BUNDLE is a file of `tlc pack` for the CPU, DATA what `tlc-run eval` takes, WORK a folder that is kept, TLC_RUN this
# machine's program (default build/native/tlc-run). Needs Debian's apt-get (no root: packages are only unpacked into
# WORK), and a Python with pip, cmake and onnxruntime; about 1 GB of disk. TLC_QEMU_CPU names another CPU, ORT_VERSION
# another ONNX Runtime.
set -euo pipefail
bundle=$(realpath "$1") data=$(realpath "$2") work=$(realpath -m "$3")
cd "$(dirname "$0")/.."
native=$(realpath "${4:-build/native/tlc-run}")
ort=$(python -c 'import glob, onnxruntime; print(glob.glob(onnxruntime.__path__[0] + "/capi/libonnxruntime.so*")[0])')
version=${ORT_VERSION:-$(python -c 'import onnxruntime; print(onnxruntime.__version__)')}
mkdir -p "$work"

# 1. A compiler, from PyPI.
[ -x "$work/zig/bin/python" ] || python -m venv "$work/zig"
"$work/zig/bin/python" -m pip install --quiet ziglang

# 2. The board's C library, for QEMU, and its libjpeg, libpng and libz, to be linked in. apt works on a state of its own,
#    so this machine's architectures and packages stay as they are.
if [ ! -e "$work/sysroot/.complete" ]; then
  mkdir -p "$work/debs" "$work/apt/state/lists/partial" "$work/apt/cache/archives/partial"
  : > "$work/apt/status"
  foreign=(apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o "Dir::State=$work/apt/state"
    -o "Dir::State::status=$work/apt/status" -o "Dir::Cache=$work/apt/cache" -o APT::Sandbox::User=)
  "${foreign[@]}" update
  (cd "$work/debs" && "${foreign[@]}" download libc6 libgcc-s1 libstdc++6 libjpeg62-turbo-dev libpng-dev zlib1g-dev &&
    apt-get -q -o APT::Sandbox::User= download qemu-user-static)
  for package in "$work"/debs/*_arm64.deb; do dpkg-deb -x "$package" "$work/sysroot"; done
  dpkg-deb -x "$work"/debs/qemu-user-static_*.deb "$work/qemu"
  # ONNX Runtime reads what kind of core each is, and this machine's answer makes no sense to an ARM program.
  mkdir -p "$work/sysroot/proc"
  for ((core = 0; core < $(nproc --all); core++)); do
    printf 'processor\t: %d\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimddp\n' "$core"
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n'
  done > "$work/sysroot/proc/cpuinfo"
  touch "$work/sysroot/.complete"
fi

# 3. ONNX Runtime for it, from PyPI.
if [ ! -e "$work/ort-$version" ]; then
  python -m pip download --quiet --no-deps --only-binary :all: --python-version 3.11 --dest "$work/wheels" \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
    "onnxruntime==$version"
  python -m zipfile -e "$work/wheels/onnxruntime-$version-"*.whl "$work/ort-$version"
fi
arm_ort=$(ls "$work/ort-$version"/onnxruntime/capi/libonnxruntime.so*)

# 4. tlc-run and libtlc_runtime.
cmake -S . -B "$work/build" -DCMAKE_TOOLCHAIN_FILE=runtime/native/cmake/aarch64-zig.cmake -DTLC_BUILD_TESTS=OFF \
  -DTLC_WARNINGS_AS_ERRORS=ON -DTLC_SYSROOT="$work/sysroot" -DTLC_PYTHON="$work/zig/bin/python"
cmake --build "$work/build"
for file in tlc-run libtlc_runtime.so; do
  newest=$(readelf -V "$work/build/$file" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
  libraries=$(readelf -d "$work/build/$file" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' | paste -sd' ')
  echo "$file: $(stat -Lc %s "$work/build/$file") bytes, needs $newest, $libraries"
done

# 5. The same bundle on both.
arm() {
  "$work/qemu/usr/bin/qemu-aarch64-static" -cpu "${TLC_QEMU_CPU:-cortex-a76}" -L "$work/sysroot" \
    "$work/build/tlc-run" "$@" --ort-lib "$arm_ort"
}
arm check "$bundle"
"$native" eval "$bundle" --data "$data" --ort-lib "$ort" --predictions "$work/native.json" | head -1
arm eval "$bundle" --data "$data" --predictions "$work/aarch64.json" | head -1
python - "$work/native.json" "$work/aarch64.json" <<'PYTHON'
import json
import sys
from pathlib import Path

ours, theirs = (json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:])
if ours["names"] != theirs["names"] or not ours["names"]:
    sys.exit("error: the two did not see the same samples")
differing = [name for name, a, b in zip(ours["names"], ours["predicted"], theirs["predicted"], strict=True) if a != b]
print(f"{len(differing)} of {len(ours['names'])} predictions differ", *differing[:10], sep="\n")
sys.exit(1 if differing else 0)
PYTHON
