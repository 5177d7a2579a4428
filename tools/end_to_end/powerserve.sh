#!/bin/sh
# The original's one-click deployment to a phone:
#
#   powerserve.sh compile
#   powerserve.sh run MODEL [-p PROMPT] [-f FILE] [-n TOKENS] [-s] [-c]
#   powerserve.sh clean
#
# It is `powerserve deploy` under another name, whose other actions and flags work here too.

here=$(cd "$(dirname "$0")" && pwd -P) || exit 2
exec python3 "$here/end_to_end.py" "$@"
