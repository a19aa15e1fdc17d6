#!/bin/busybox sh
# The virtual board's init: network, the INA226 on an emulated I2C bus with its real driver, its rail, sshd.
bb=/bin/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
for folder in run tmp; do $bb mount -t tmpfs tmpfs "/$folder"; done
$bb mkdir -p /run/sshd /dev/pts /dev/shm
$bb mount -t devpts devpts /dev/pts
$bb mount -t tmpfs tmpfs /dev/shm
$bb hostname virtual
cd /usr/lib/wattbit-modules || exit 1
for module in $($bb cat order); do
  case $module in i2c_stub.ko) $bb insmod "$module" chip_addr=0x40 ;; *) $bb insmod "$module" ;; esac
done
cd /
$bb ip link set lo up
$bb ip addr add 10.0.2.15/24 dev eth0
$bb ip link set eth0 up
$bb ip route add default via 10.0.2.2
export PYTHONPATH=/usr/local/lib/wattbit
rail() { while :; do python3 -m wattbit.board.rail; echo "wattbit: the rail's model ended" >/dev/console; $bb sleep 1; done; }
rail >/dev/console 2>&1 </dev/null &
n=0
while ! $bb ls /sys/class/hwmon/*/power1_input >/dev/null 2>&1 && [ $n -lt 600 ]; do $bb sleep 0.1; n=$((n + 1)); done
env -u PYTHONPATH /usr/sbin/sshd
env -u PYTHONPATH bash -lc 'python3 -B -c "import pynq"'  # what is read once is in memory, and so in the saved state
echo "wattbit: ready" >/dev/console
trap '$bb reboot -f' TERM
while :; do $bb sleep 3600 & wait; done
