#!/bin/bash
# Runs the script that the host gave qemu, with its output on the second serial line, then powers off.
exec </dev/null >/dev/ttyS1 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
echo "@begin $(cut -d' ' -f1 /proc/uptime)"

# step NAME TEXT runs a command line and prints its output, its exit status and when it ended.
step() {
  local status
  bash -c "$2" 2>&1 | sed -u "s|^|$1: |"
  status=${PIPESTATUS[0]}
  echo "@end $1 $status $(cut -d' ' -f1 /proc/uptime)"
  return "$status"
}

modprobe qemu_fw_cfg
eval "$(cat /sys/firmware/qemu_fw_cfg/by_name/opt/guest-script/raw)" # which has no size, so it cannot be sourced
echo "@done"
systemctl --no-block start poweroff.target
