#!/bin/bash
# Builds a template's files. Called step by step by the program, with a directory of its own to work in:
#
#   bootstrap WORK SUITE PACKAGES HOOK   Debian's packages become WORK/root (mmdebstrap; root only)
#   import WORK FORMAT FILE              the system in FILE (tar, qcow2, raw) becomes WORK/root; prints its release
#   complete WORK SUITE PACKAGES HOOK    WORK/root gets what it lacks
#   appliance WORK PROGRAM               kernel and initramfs of the throwaway VM: WORK/vmlinuz, WORK/initrd
#   image WORK                           WORK/root becomes WORK/root.qcow2, as small as it gets
#   facts WORK                           kernel's version, then packages and their versions, one a line
#   customise ROOT                       called back by mmdebstrap outside of the new system, and by `complete` inside of
#                                        it, with / as ROOT
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
    [[ $found =~ ^vmlinuz-[A-Za-z0-9.+~_-]+$ ]] || die "the kernel in /boot has an odd name"
    echo "${found#vmlinuz-}"
}

# Runs a command in a new system: as mmdebstrap has it, or where we are inside already.
enter() {
    local root=$1
    shift
    if [ "$root" = / ]; then "$@"; else chroot "$root" "$@"; fi
}

# Runs a command that nobody vouches for: no network, no devices, no processes but its own, no right over any.
sandbox() {
    env -i bwrap --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try --die-with-parent --new-session \
        --cap-drop ALL --cap-add CAP_CHOWN --cap-add CAP_DAC_OVERRIDE --cap-add CAP_FOWNER --cap-add CAP_FSETID \
        --cap-add CAP_SETFCAP --cap-add CAP_SETGID --cap-add CAP_SETUID --cap-add CAP_KILL --cap-add CAP_SYS_CHROOT \
        --setenv PATH /usr/sbin:/usr/bin:/sbin:/bin --setenv LC_ALL C.UTF-8 --setenv HOME /root \
        --setenv DEBIAN_FRONTEND noninteractive "$@"
}

# A file of an imported system that is used outside of it: no link may lead anywhere else.
within() {
    [[ $(realpath -e "$2" 2>/dev/null) == "$(realpath "$1")"/* ]] || die "${2#"$1"} leads out of the system, or nowhere"
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
    log=$(enter "$root" update-initramfs -c -k "$kernel" 2>&1) || die "update-initramfs: $log"
    enter "$root" systemctl -q enable fstrim.timer systemd-networkd.service
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

# Reads a file system without the host's kernel. The mount is this process' own and goes with it.
copy_ext4() {
    local image=$1 root=$2 mount=$1.mount
    mkdir "$mount"
    fuse2fs -o ro "$image" "$mount"
    tar -C "$mount" --one-file-system --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*' -cf - . |
        tar -C "$root" --numeric-owner --xattrs --xattrs-include='*' -xpf -
    umount "$mount"
}

# The root partition's start and size in bytes: by its type, or else the largest for Linux. Nothing, where there is no table.
root_partition() {
    local table
    table=$(sfdisk --dump "$1" 2>/dev/null) || return 0
    sed -n 's/.*start= *\([0-9]*\), *size= *\([0-9]*\), *type=\([^,]*\).*/\3 \1 \2/p' <<<"$table" | awk '
        $1 == "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709" { rank = 2 }
        $1 == "0FC63DAF-8483-4772-8E79-3D69D8477DE4" || $1 == "83" { rank = 1 }
        rank > best || (rank && rank == best && $3 > size) { best = rank; start = $2; size = $3 }
        { rank = 0 }
        END { if (!best) exit 1; printf "%.0f %.0f\n", start * 512, size * 512 }' ||
        die "no partition of it is for a root of Linux"
}

import() {
    local work=$1 format=$2 file=$3 root=$1/root place start size
    mkdir "$root"
    if [ "$format" = tar ]; then
        sandbox --ro-bind / / --dev /dev --proc /proc --bind "$root" "$root" \
            tar -C "$root" --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*' --exclude='dev/*' -xpf "$file"
    else
        # An image can name other files of this host as its own.
        qemu-img info -f "$format" --output json "$file" >"$work/info.json"
        ! grep -qE '"(full-)?backing-filename"|"data-file"' "$work/info.json" || die "the image refers to other files"
        qemu-img convert -f "$format" -O raw "$file" "$work/disk.raw"
        place=$(root_partition "$work/disk.raw")
        if [ -n "$place" ]; then
            read -r start size <<<"$place"
            qemu-img convert --image-opts "driver=raw,offset=$start,size=$size,file.driver=file,file.filename=$work/disk.raw" \
                -O raw "$work/part.raw"
            mv "$work/part.raw" "$work/disk.raw"
        fi
        e2fsck -fy "$work/disk.raw" >"$work/e2fsck.log" 2>&1 || [ $? = 1 ] || die "no ext4 file system in there: $(tail -n 1 "$work/e2fsck.log")"
        unshare --mount --propagation private --pid --fork --kill-child bash "$work/build.sh" copy_ext4 "$work/disk.raw" "$root"
        rm "$work/disk.raw"
    fi
    # A file that others have written: read, not run.
    [ -f "$root/usr/lib/os-release" ] && grep -qx 'ID=debian' "$root/usr/lib/os-release" || die "it is no Debian"
    sed -n 's/^VERSION_CODENAME=//p' "$root/usr/lib/os-release"
}

# apt with lists, archives and keys in one directory.
apt() {
    local base=$1
    shift
    apt-get -qq -o Dir::Etc::SourceList="$base/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Trusted=/dev/null \
        -o Dir::Etc::TrustedParts="$base/keys" -o Dir::Etc::PreferencesParts=/dev/null -o Dir::State::Lists="$base/lists" \
        -o Dir::Cache="$base" -o APT::Sandbox::User=root -o APT::Install-Recommends=false \
        -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=false "$@"
}

# Packages are fetched and their signatures checked out here, and installed in there, where there is no network.
complete() {
    local work=$1 suite=$2 packages=$3 hook=$4 root=$1/root package lacking=() inside
    inside=(sandbox --bind "$root" / --dev /dev --proc /proc --tmpfs /tmp --tmpfs /run
        --ro-bind "$work/build.sh" /run/build.sh --bind "$work/apt" /run/apt)
    mkdir -p "$work"/apt/{lists,archives}/partial "$work/apt/keys"
    for package in ${packages//,/ }; do
        dpkg-query --admindir="$root/var/lib/dpkg" -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
            lacking+=("$package")
    done
    if [ ${#lacking[@]} != 0 ]; then
        cp /usr/share/keyrings/debian-archive-keyring.gpg "$work/apt/keys/"
        sources "$suite" >"$work/apt/sources.list"
        apt "$work/apt" update >&2
        apt "$work/apt" -o Dir::State::status="$root/var/lib/dpkg/status" -o Dir::State::extended_states=/dev/null \
            install -y --download-only "${lacking[@]}" >&2
        "${inside[@]}" bash /run/build.sh install "${lacking[@]}" >&2
    fi
    [ -z "$hook" ] || sh -c "$hook"' "$@"' exec "$root" >&2
    "${inside[@]}" bash /run/build.sh customise / >&2
}

# Inside: what has been fetched.
install() {
    mkdir -p /etc/initramfs-tools
    echo update_initramfs=no >/etc/initramfs-tools/update-initramfs.conf
    apt /run/apt install -y --no-download "$@"
}

# Kernel modules with all they depend on, uncompressed, in the order in which to load them.
appliance() {
    local work=$1 program=$2 root=$1/root tree=$1/appliance kernel file name
    [[ $(ldd "$program" 2>&1) =~ statically|not\ a\ dynamic ]] || die "$program is not linked statically"
    kernel=$(kernel "$root")
    within "$root" "$root/boot/vmlinuz-$kernel"
    cp "$root/boot/vmlinuz-$kernel" "$work/vmlinuz"
    mkdir -p "$tree/modules"
    for name in virtio_pci virtio_blk virtio_console virtio_rng ext4 overlay dm-mod dm-crypt xts aesni_intel aes_generic \
        crc32c_generic crc32c_intel algif_skcipher algif_hash af_alg sha256_generic sha512_generic vfat nls_cp437 nls_ascii nls_utf8; do
        modprobe -d "$root" -S "$kernel" --show-depends "$name" 2>/dev/null | sed -n 's/^insmod \([^ ]*\).*/\1/p'
    done | awk '!seen[$0]++' >"$work/modules"
    while read -r file; do
        name=$(basename "$file")
        within "$root" "$file"
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
    local work=$1 size said made=
    size=$(du -sm "$work/root" | cut -f 1)
    # As small as it gets: every block of it is copied into each new machine. resize2fs takes off more when there is less
    # to take off, so it is made tight at once; many small files need more room.
    for size in $((size * 23 / 20 + 16)) $((size * 2 + 256)); do
        rm -f "$work/root.ext4"
        truncate -s "${size}M" "$work/root.ext4"
        # The inode ratio is that of large file systems: it stays when this one grows.
        # What it says is kept in memory: it may be that the disk is full.
        if said=$(mke2fs -q -F -t ext4 -b 4096 -i 16384 -L root -O metadata_csum_seed -J size=16 -E lazy_itable_init=0 \
            -d "$work/root" "$work/root.ext4" 2>&1); then
            made=yes
            break
        fi
    done
    [ "$made" ] || die "mke2fs: ${said##*$'\n'} (free in $work: $(df -h --output=avail "$work" | tail -n 1))"
    said=$(e2fsck -fy "$work/root.ext4" 2>&1) || [ $? = 1 ] || die "e2fsck: ${said##*$'\n'}"
    resize2fs -M "$work/root.ext4" >/dev/null 2>&1
    qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd "$work/root.ext4" "$work/root.qcow2"
    stat -c %s "$work/root.ext4"
}

facts() {
    kernel "$1/root"
    dpkg-query --admindir="$1/root/var/lib/dpkg" -W -f '${Package} ${Version}\n'
}

"$@"
