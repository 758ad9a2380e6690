#!/bin/sh
# The first process of a machine with only a kernel and busybox. It mounts a new file system on /tmp, where it runs the commands
# of the host.
export PATH=/bin
busybox mkdir -p /proc /sys /dev /tmp /var
busybox mount -t proc proc /proc && busybox --install -s /bin
printf '#!/bin/sh\nexec mkdosfs "$@"\n' > /bin/mkfs.vfat && chmod +x /bin/mkfs.vfat
mount -t sysfs sys /sys && mount -t devtmpfs dev /dev
mkdir -p /dev/shm && mount -t tmpfs shm /dev/shm
for module in /modules/*; do insmod "$module"; done
mount -t ext4 /dev/vda /tmp && chmod 1777 /tmp && ln -s /tmp /var/tmp
sh /guest.sh
sync
poweroff -f
