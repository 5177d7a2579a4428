# PowerServe, with all that this bundle brings along: sh bin/powerserve COMMAND …

root=$(dirname "$(dirname "$(readlink -f "$0")")")
exec sh "$root/bin/python3" -m powerserve "$@"
