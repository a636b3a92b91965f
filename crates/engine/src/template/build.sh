#!/bin/bash
# Builds a template's files. Called step by step by the program, with a directory of its own to work in:
#
#   bootstrap WORK SUITE PACKAGES HOOK   Debian's packages become WORK/root (mmdebstrap; root only)
#   appliance WORK PROGRAM               kernel and initramfs of the throwaway VM: WORK/vmlinuz, WORK/initrd
#   image WORK                           WORK/root becomes WORK/root.qcow2, as small as it gets
#   facts WORK                           kernel's version, then packages and their versions, one a line
#   customise ROOT                       called back by mmdebstrap inside the new system's directory
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C

die() { echo "$@" >&2; exit 1; }

# The machine's own mirrors, for another suite if need be, as lines for sources.list; Debian's where it knows none.
sources() {
    local suite=$1 own lines
    own=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    lines=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null | sort -u |
        sed -n "s/^$own\(\|-updates\|-security\) \(.*\)/deb \2 $suite\1 main/p") || lines=
    if [ -n "$own" ] && [ -n "$lines" ]; then
        echo "$lines"
    else
        printf '%s\n' "deb http://deb.debian.org/debian $suite main" "deb http://deb.debian.org/debian $suite-updates main" \
            "deb http://deb.debian.org/debian-security $suite-security main"
    fi
}

kernel() {
    local root=$1 found
    found=$(cd "$root/boot" && ls -v vmlinuz-* 2>/dev/null | tail -n 1)
    [ -n "$found" ] || die "the system has no kernel in /boot"
    echo "${found#vmlinuz-}"
}

# Nothing in here is special to one machine: the same initramfs serves all machines of the template.
customise() {
    local root=$1 kernel log
    kernel=$(kernel "$root")
    printf 'croot PARTLABEL=croot none luks,initramfs\n' >"$root/etc/crypttab"
    printf '/dev/mapper/croot / ext4 errors=remount-ro,noinit_itable 0 1\n' >"$root/etc/fstab"
    mkdir -p "$root/etc/initramfs-tools/conf.d" "$root/etc/systemd/network"
    printf 'RESUME=none\nFSTYPE=ext4\n' >"$root/etc/initramfs-tools/conf.d/strongroom"
    printf '[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/80-dhcp.network"
    rm -f "$root"/boot/initrd.img-* "$root/etc/initramfs-tools/update-initramfs.conf.strongroom"
    printf 'update_initramfs=yes\nbackup_initramfs=no\n' >"$root/etc/initramfs-tools/update-initramfs.conf"
    # It warns that this machine has none of the devices of /etc/crypttab, which is as it should be.
    log=$(chroot "$root" update-initramfs -c -k "$kernel" 2>&1) || die "update-initramfs: $log"
    chroot "$root" systemctl -q enable fstrim.timer systemd-networkd.service
    # Every machine gets its own.
    rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed"
    : >"$root/etc/machine-id"
    rm -f "$root"/root/.ssh/authorized_keys "$root"/etc/hostname
}

bootstrap() {
    local work=$1 suite=$2 packages=$3 hook=$4 mirrors hooks=()
    mapfile -t mirrors < <(sources "$suite")
    [ -z "$hook" ] || hooks=("--customize-hook=$hook")
    # The kernel's package would make an initramfs that is thrown away.
    setpriv --pdeathsig TERM mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
        --aptopt='APT::Install-Recommends "false"' --dpkgopt=force-confold \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --essential-hook='mkdir -p "$1/etc/initramfs-tools" && echo update_initramfs=no >"$1/etc/initramfs-tools/update-initramfs.conf"' \
        "${hooks[@]}" --customize-hook="bash '$work/build.sh' customise \"\$1\"" \
        "$suite" "$work/root" "${mirrors[@]}" >&2
}

# Kernel modules with all they depend on, uncompressed, in the order in which to load them.
appliance() {
    local work=$1 program=$2 root=$1/root tree=$1/appliance kernel file name
    [[ $(ldd "$program" 2>&1) =~ statically|not\ a\ dynamic ]] || die "$program is not linked statically"
    kernel=$(kernel "$root")
    cp "$root/boot/vmlinuz-$kernel" "$work/vmlinuz"
    mkdir -p "$tree/modules"
    for name in virtio_pci virtio_blk virtio_console virtio_rng ext4 overlay dm-mod dm-crypt xts aesni_intel aes_generic \
        crc32c_generic crc32c_intel algif_skcipher algif_hash af_alg sha256_generic sha512_generic vfat nls_cp437 nls_ascii nls_utf8; do
        modprobe -d "$root" -S "$kernel" --show-depends "$name" 2>/dev/null | sed -n 's/^insmod \([^ ]*\).*/\1/p'
    done | awk '!seen[$0]++' >"$work/modules"
    while read -r file; do
        name=$(basename "$file")
        case $name in
        *.xz) name=${name%.xz} && xz -dc "$file" >"$tree/modules/$name" ;;
        *.zst) name=${name%.zst} && zstd -qdc "$file" >"$tree/modules/$name" ;;
        *) cp "$file" "$tree/modules/" ;;
        esac
        echo "$name" >>"$tree/modules/order"
    done <"$work/modules"
    cp "$program" "$tree/init"
    chmod 755 "$tree/init"
    (cd "$tree" && find . | sort | cpio -o -H newc -R 0:0 --quiet | gzip -6n) >"$work/initrd"
}

image() {
    local work=$1 size
    size=$(du -sm "$work/root" | cut -f 1)
    # As small as it gets: every block of it is copied into each new machine. resize2fs takes off more when there is less
    # to take off, so it is made tight at once; many small files need more room.
    for size in $((size * 23 / 20 + 16)) $((size * 2 + 256)); do
        rm -f "$work/root.ext4"
        truncate -s "${size}M" "$work/root.ext4"
        ! mke2fs -q -F -t ext4 -b 4096 -L root -O metadata_csum_seed -J size=16 -E lazy_itable_init=0 \
            -d "$work/root" "$work/root.ext4" 2>"$work/mke2fs.log" || break
    done
    e2fsck -fy "$work/root.ext4" >/dev/null 2>&1 || [ $? = 1 ] || die "mke2fs: $(tail -n 1 "$work/mke2fs.log")"
    resize2fs -M "$work/root.ext4" >/dev/null 2>&1
    qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd "$work/root.ext4" "$work/root.qcow2"
    stat -c %s "$work/root.ext4"
}

facts() {
    kernel "$1/root"
    dpkg-query --admindir="$1/root/var/lib/dpkg" -W -f '${Package} ${Version}\n'
}

"$@"
