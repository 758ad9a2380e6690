# derive.sh PACKAGES LAYOUT DIR DRIVER SCRIPT: see Derive.
packages=$1 layout=$2 dir=$3 driver=$4 script=$5
root=$dir/root
mkdir "$root" "$dir/tmp" "$dir/mounted"
mount -t tmpfs tmpfs "$root"
for d in bin sbin lib lib64; do ln -s "usr/$d" "$root/$d"; done
(cd "$root" && mkdir -p usr proc sys dev run tmp var/tmp etc/containers root work layout)
mount --bind "$packages/usr" "$root/usr"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount --bind "$dir" "$root/work"
mount --bind "$layout" "$root/layout"
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$root/etc/containers/policy.json"
echo root:x:0:0:root:/root:/bin/sh >"$root/etc/passwd"
echo root:x:0: >"$root/etc/group"
buildah() {
  env -i PATH=/usr/bin:/usr/sbin HOME=/root TMPDIR=/work/tmp chroot "$root" /usr/bin/buildah \
    --root /work/storage --runroot /work/run --storage-driver "$driver" "$@"
}
container=$(buildah from --quiet oci:/layout)
tree=$root$(buildah mount "$container")
(cd "$tree" && sh -euc "$script")
cp -a "$tree/." "$dir/mounted"
buildah commit --quiet --format oci "$container" oci:/work/out
buildah umount "$container"
buildah rm "$container"
