#!/bin/sh
# The first process of a machine that has a kernel and busybox, and no system: a file system of its own on /tmp, where it runs
# the host's commands.
export PATH=/bin
busybox mkdir -p /proc /sys /dev /tmp /var
busybox mount -t proc proc /proc && busybox --install -s /bin
mount -t sysfs sys /sys && mount -t devtmpfs dev /dev
mkdir -p /dev/shm && mount -t tmpfs shm /dev/shm
for module in /modules/*; do insmod "$module"; done
mount -t ext4 /dev/vda /tmp && chmod 1777 /tmp && ln -s /tmp /var/tmp
sh /guest.sh
sync
poweroff -f
