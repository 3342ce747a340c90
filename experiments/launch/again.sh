#!/bin/bash
# again.sh COMMAND...
# Runs a command, and again as long as it ends because it was asked to (75), or because it or another process was lost (134, 137): at
# most 100 times. Any other end, and SIGTERM to this script, which the command gets to hear, is the last.
child="" asked=""
trap 'asked=yes; kill -TERM "$child" 2> /dev/null' TERM INT
for attempt in $(seq 100); do
    "$@" &
    child=$!
    wait "$child"
    code=$?
    if [ -n "$asked" ]; then # the signal may have ended the waiting, and not the command
        while kill -0 "$child" 2> /dev/null; do
            wait "$child"
        done
        wait "$child"
        told=$?
        [ "$told" -ne 127 ] && code=$told # 127: how it ended has been told already
    fi
    case $code in
        75 | 134 | 137) ;;
        *) exit "$code" ;;
    esac
    if [ -n "$asked" ]; then
        exit "$code"
    fi
    echo "again.sh: ended with $code, start $((attempt + 1))" >&2
    sleep "${PAUSE:-5}"
done
exit "$code"
