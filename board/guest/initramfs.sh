#!/bin/busybox sh
# The initial RAM disk: load what the root file system needs, and go there.
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t devtmpfs dev /dev
for module in $($bb cat /modules/order); do $bb insmod "/modules/$module"; done
n=0
while [ ! -b /dev/vda ] && [ $n -lt 600 ]; do $bb sleep 0.1; n=$((n + 1)); done
$bb mount -t ext4 -o rw,noatime /dev/vda /root || exec $bb sh
for folder in proc sys dev; do $bb mount --move "/$folder" "/root/$folder"; done
exec $bb switch_root /root /usr/sbin/wattbit-init
