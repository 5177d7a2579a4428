# The device's own Python (Termux has one), with this bundle's packages and ggml.

root=$(dirname "$(dirname "$(readlink -f "$0")")")
export PYTHONPATH="$root/lib/packages${PYTHONPATH:+:$PYTHONPATH}"
export POWERSERVE_GGML_DIR="${POWERSERVE_GGML_DIR:-$root/ggml}"
exec python3 "$@"
