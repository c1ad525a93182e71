#!/usr/bin/env bash
# A board without a board: a 64-bit ARM Debian under qemu-user, on which the worker measures for a search on this machine.
#
#     sudo benchmarks/arm.sh FOLDER      # with debootstrap, qemu-user-static, and evit-nas installed here
#
# It shows that everything a board needs installs and runs on ARM; qemu's milliseconds say nothing of any board. FOLDER
# gets the root file system (600 MB) and may be used again. pip in it is told by the environment where packages are
# (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_NO_INDEX).
set -euo pipefail

root=$(realpath -m "$1")/arm64
source=$(cd "$(dirname "$0")/.." && pwd)
port=8653

if [ ! -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]; then
    [ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf '%s' ":qemu-aarch64:M::$magic:$mask:/usr/bin/qemu-aarch64-static:F" > /proc/sys/fs/binfmt_misc/register
fi
if [ ! -x "$root/usr/bin/python3" ]; then
    debootstrap --arch=arm64 --variant=minbase --include=python3,python3-venv bookworm "$root"
fi

mounted=(proc dev) # not /sys: of an x86 machine's ONNX Runtime for ARM knows nothing to make, and dies
leave() {
    kill "${worker:-}" 2> /dev/null || true
    wait 2> /dev/null || true
    for place in "${mounted[@]}"; do umount -l "$root/$place" || true; done
}
trap leave EXIT
for place in "${mounted[@]}"; do mount --rbind "/$place" "$root/$place"; done
cp -L /etc/resolv.conf "$root/etc/resolv.conf" || true

rm -rf "$root/src" && mkdir "$root/src"
git -C "$source" archive HEAD | tar -x -C "$root/src"
inside() { chroot "$root" /usr/bin/env PATH=/venv/bin:/usr/bin:/bin HOME=/root sh -ec "$1"; }
inside 'uname -m; [ -d /venv ] || python3 -m venv /venv; pip install --quiet --upgrade "pip>=25.1"'
inside 'cd /src; pip install --quiet --no-deps . ; pip install --quiet --group worker'
inside "cd /root; exec evit-nas worker --port $port" &
worker=$!

scratch=$(mktemp -d)
until evit-nas device check "remote:localhost:$port"; do
    kill -0 $worker # which ends this script if the worker has died
    sleep 10
done
evit-nas search --device "remote:localhost:$port" --space efficientvit-tiny --budget 2s --trials 8 --pool 4 --out "$scratch/run"
