# The bundle's Python. Its own loader starts it: the device has none at the path that Linux
# programs name, and its C library may be another.

root=$(dirname "$(dirname "$(readlink -f "$0")")")
unset LD_PRELOAD
export PYTHONHOME="$root/lib/python" PYTHONPATH="$root/lib/packages"
export PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1
export POWERSERVE_GGML_DIR="${POWERSERVE_GGML_DIR:-$root/ggml}"
if [ -x "$root/npu/powerserve-npu-helper" ]; then
    export POWERSERVE_NPU_HELPER="${POWERSERVE_NPU_HELPER:-$root/npu/powerserve-npu-helper}"
fi

# A phone has no home folder that can be written, and no /tmp.
if [ ! -w "${HOME:-/nowhere}" ]; then
    export HOME="$root/home"
    mkdir -p "$HOME"
fi
if [ ! -w "${TMPDIR:-/tmp}" ]; then
    export TMPDIR="$root/tmp"
    mkdir -p "$TMPDIR"
fi

exec "$root/lib/system/ld-linux-aarch64.so.1" --library-path "$root/lib/system" \
    --argv0 "$root/bin/python3" "$root/lib/python/bin/python3.13" "$@"
