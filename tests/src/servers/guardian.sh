# Owns one process and all that it starts, for as long as the test that wants it holds this script's standard input.
#
#   sh guardian.sh FOLDER COMMAND...
#
# It reads words from its standard input and answers each with one line:
#   START            runs COMMAND; its process id
#   KILL             kills COMMAND and everything below it, as a power cut would; "done" when nothing of it is left
#   TERM             asks COMMAND alone to end; "done" at once
#   STOP, CONT       freezes and thaws all of it; "done"
#   WAIT             its exit status, once it has ended
# When the standard input closes, because the test dropped it, ended, or was itself killed by SIGKILL, everything is
# killed and FOLDER removed. What COMMAND says goes to FOLDER/log.

folder=$1
shift
child=

# The processes of COMMAND, by who is whose parent: servers found new groups and sessions, which no `kill -- -group` finds.
processes() {
  [ -n "$child" ] || return
  pairs=$(for stat in /proc/[0-9]*/stat; do
    { read -r line <"$stat"; } 2>/dev/null || continue
    # pid (name) state parent ...; the name may hold blanks and brackets
    set -- "${line%% *}" ${line##*) }
    [ "$2" = Z ] || echo "$1 $3"
  done)
  found=$child
  new=$child
  while [ -n "$new" ]; do
    next=
    while read -r pid parent; do
      case " $new " in *" $parent "*) next="$next $pid" ;; esac
    done <<PAIRS
$pairs
PAIRS
    found="$found$next"
    new=${next# }
  done
  echo "$found"
}

alive() {
  { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
  case ${line##*) } in Z* | X*) return 1 ;; esac
}

# Frozen first, and looked for again until nothing new is found: whoever runs could start another.
freeze() {
  known=
  while :; do
    all=$(processes)
    kill -STOP $all 2>/dev/null
    [ "$all" = "$known" ] && return
    known=$all
  done
}

end() {
  [ -n "$child" ] || return
  freeze
  kill -KILL $known 2>/dev/null
  wait "$child" 2>/dev/null
  child=
  for pid in $known; do
    while alive "$pid"; do sleep 0.02; done
  done
}

# Only the standard input's end ends this script: neither a terminal's Ctrl-C nor a polite kill may orphan a server.
trap '' INT TERM HUP

while read -r word; do
  case $word in
  START)
    (
      trap - INT TERM HUP
      cd "$folder" && exec "$@"
    ) </dev/null >>"$folder/log" 2>&1 &
    child=$!
    echo "$child"
    ;;
  KILL) end && echo done ;;
  TERM) kill -TERM "$child" 2>/dev/null; echo done ;;
  STOP) freeze && echo done ;;
  CONT) kill -CONT $(processes) 2>/dev/null; echo done ;;
  WAIT)
    wait "$child"
    echo "$?"
    child=
    ;;
  esac
done
end
rm -rf "$folder"
