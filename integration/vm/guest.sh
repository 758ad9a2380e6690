#!/bin/bash
# Runs the script that qemu passes on, with output on the second serial line. It also runs in the shell of busybox.
set -o pipefail
exec </dev/null >/dev/ttyS1 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
echo # ends a line that the firmware may have left unfinished
echo "@begin $(cut -d' ' -f1 /proc/uptime)"

# step NAME TEXT runs a command line and prints its output, its exit status and its end time.
step() {
  local status
  "${BASH:-sh}" -c "$2" 2>&1 | while IFS= read -r line; do printf '%s: %s\n' "$1" "$line"; done
  status=$?
  echo "@end $1 $status $(cut -d' ' -f1 /proc/uptime)"
  return "$status"
}

[ -d /sys/firmware/qemu_fw_cfg ] || modprobe qemu_fw_cfg
eval "$(cat /sys/firmware/qemu_fw_cfg/by_name/opt/guest-script/raw)" # which has no size, so it cannot be sourced
echo "@done"
