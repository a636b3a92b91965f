# What the key may do as this account: begin and end backup jobs of listed VMs, and what belongs to that. Whatever libvirt is given is
# composed here. A word of the client's is a name out of a list, or letters and digits of a known form: never a path, an address,
# an option or a definition.
set -fu
PATH=/usr/bin:/bin:/usr/sbin:/sbin LC_ALL=C IFS=' '
export PATH LC_ALL
asked=${SSH_ORIGINAL_COMMAND-}

refuse() {
    echo "strongroom: refused" >&2
    exit 126
}

fail() {
    echo "strongroom: $*" >&2
    exit 1
}

libvirt() {
    virsh -q -c qemu:///system "$@"
}

listed() {
    for vm in $VMS; do
        [ "$vm" = "$1" ] && return
    done
    refuse
}

# The VM that makes the backups.
own() {
    [ -n "$OWN" ] && [ "$1" = "$OWN" ] || refuse
}

# A run: when it began, and eight digits by which its socket is known.
run() {
    case $1 in [0-9]*T[0-9]*Z-*) ;; *) refuse ;; esac
    case ${1%-*} in *[!0-9TZ]*) refuse ;; esac
    [ ${#1} -le 32 ] || refuse
    short "${1##*-}"
}

short() {
    case $1 in
        *[!0-9a-f]*) refuse ;;
        ????????) short=$1 ;;
        *) refuse ;;
    esac
}

# A checkpoint of ours.
checkpoint() {
    case $1 in
        strongroom-*[!0-9A-Za-z-]*) refuse ;;
        strongroom-?*) ;;
        *) refuse ;;
    esac
    [ ${#1} -le 64 ] || refuse
}

# What a disk is called in its VM.
target() {
    case $1 in '' | *[!a-z0-9]*) refuse ;; esac
    [ ${#1} -le 16 ] || refuse
}

# What a disk is called in the VM that makes the backups.
lent() {
    case $1 in vds[a-p]) ;; *) refuse ;; esac
}

# Where the exports of a run are served. libvirt's number of the VM tells its directory from others' of a similar name.
socket() {
    id=$(libvirt domid "$1") || exit 1
    case $id in '' | *[!0-9]*) fail "$1 does not run" ;; esac
    socket=$SOCKETS$id-$(printf %.20s "$1")/sr-$short.sock
}

escaped() {
    printf %s "$1" | sed "s/&/\&amp;/g; s/</\&lt;/g; s/'/\&apos;/g"
}

# begin VM RUN unix|PORT point|none TARGET:full|CHECKPOINT:yes|no …
begin() {
    [ $# -ge 5 ] || refuse
    listed "$1"
    run "$2"
    vm=$1 run=$2 where=$3 point=$4
    shift 4
    case $point in point | none) ;; *) refuse ;; esac
    for word; do
        rest=${word#*:}
        target "${word%%:*}"
        case ${rest%:*} in full) ;; *) checkpoint "${rest%:*}" ;; esac
        case $rest in *:yes | *:no) ;; *) refuse ;; esac
    done
    case $where in
        unix)
            socket "$vm"
            server="<server transport='unix' socket='$socket'/>"
            ;;
        '' | 0* | *[!0-9]*) refuse ;;
        *)
            [ -n "$TLS_ADDRESS" ] && [ ${#where} -le 5 ] || refuse
            [ "$where" -ge "$TLS_FIRST" ] && [ "$where" -le "$TLS_LAST" ] || refuse
            server="<server transport='tcp' tls='yes' name='$TLS_ADDRESS' port='$where'/>"
            ;;
    esac
    # Each is a bitmap that QEMU keeps up to date.
    [ "$(libvirt checkpoint-list "$vm" --name | grep -c '^strongroom-')" -lt 64 ] || fail "$vm has too many checkpoints"
    known=$(libvirt domblklist "$vm" --details) || exit 1
    disks='' points='' found=0
    while read -r type _ target source; do
        mine=
        for word; do
            [ "${word%%:*}" = "$target" ] && mine=$word
        done
        case $target in '' | *[!A-Za-z0-9]*) continue ;; esac
        if [ -z "$mine" ]; then
            disks="$disks<disk name='$target' backup='no'/>"
            points="$points<disk name='$target' checkpoint='no'/>"
            continue
        fi
        found=$((found + 1))
        # Old contents go where the disk is, into a file that must not exist.
        case $type:$source in file:/*) directory=${source%/*} ;; *) directory=$IMAGES ;; esac
        since=${mine#*:}
        since=${since%:*}
        mode="backupmode='full'"
        [ "$since" = full ] || mode="backupmode='incremental' incremental='$since'"
        disks="$disks<disk name='$target' backup='yes' type='file' exportname='$target' $mode><driver type='qcow2'/>"
        disks="$disks<scratch file='$(escaped "$directory")/strongroom-$run-$target.scratch'/></disk>"
        case $mine in
            *:yes) points="$points<disk name='$target' checkpoint='bitmap'/>" ;;
            *) points="$points<disk name='$target' checkpoint='no'/>" ;;
        esac
    done <<DISKS
$known
DISKS
    [ "$found" = $# ] || fail "$vm has no such disk, or it was asked for twice"
    set -- "$vm" /dev/fd/3
    [ "$point" = none ] || set -- "$@" /dev/fd/4
    libvirt backup-begin "$@" 3<<BACKUP 4<<CHECKPOINT
<domainbackup mode='pull'>$server<disks>$disks</disks></domainbackup>
BACKUP
<domaincheckpoint><name>strongroom-$run</name><description>$DESCRIPTION</description><disks>$points</disks></domaincheckpoint>
CHECKPOINT
}

# end VM: of a backup job of ours. Any other job is left alone.
end() {
    [ $# = 1 ] || refuse
    listed "$1"
    job=$(libvirt backup-dumpxml "$1") || exit 1
    all=$(printf '%s\n' "$job" | grep -c '<scratch ')
    ours=$(printf '%s\n' "$job" | grep -c "<scratch file='[^']*/strongroom-[0-9A-Za-z-]*\.scratch'")
    [ "$all" -gt 0 ] && [ "$all" = "$ours" ] || fail "the backup job of $1 is not one of Strongroom's"
    libvirt domjobabort "$1"
}

# forget VM CHECKPOINT [metadata]: without its bitmaps where these are broken.
forget() {
    case $#:${3-} in 2: | 3:metadata) ;; *) refuse ;; esac
    listed "$1"
    checkpoint "$2"
    libvirt checkpoint-delete "$1" "$2" ${3+--metadata}
}

# resume VM: one that QEMU stopped because its storage was full, and no other.
resume() {
    [ $# = 1 ] || refuse
    listed "$1"
    [ "$(libvirt domstate "$1" --reason)" = 'paused (I/O error)' ] || fail "$1 was not stopped by an I/O error"
    libvirt resume "$1"
}

# attach OWN VM DIGITS TARGET AS: an export of the run with these digits, as a disk that takes no writes.
attach() {
    [ $# = 5 ] || refuse
    own "$1"
    listed "$2"
    short "$3"
    target "$4"
    lent "$5"
    socket "$2"
    libvirt attach-disk "$1" "$4" "$5" --live --sourcetype network --source-protocol nbd --source-host-transport unix \
        --source-host-socket "$socket" --targetbus virtio --driver qemu --subdriver raw --cache none --mode readonly \
        --serial "sr-$short-$4"
}

# detach OWN AS
detach() {
    [ $# = 2 ] || refuse
    own "$1"
    lent "$2"
    libvirt detach-disk "$1" "$2" --live
}

case $asked in *[!A-Za-z0-9._+:\ -]*) refuse ;; esac
[ ${#asked} -le 4096 ] || refuse
set -- $asked
case ${1-} in
    begin | end | forget | resume | attach | detach) "$@" ;;
    *) refuse ;;
esac
