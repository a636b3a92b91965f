# What the key may do as this account: talk to libvirt, and read the exports of backups that are under way.
set -fu
PATH=/usr/bin:/bin:/usr/sbin:/sbin LC_ALL=C IFS=' '
export PATH LC_ALL
asked=${SSH_ORIGINAL_COMMAND-}

refuse() {
    echo "strongroom: refused" >&2
    exit 126
}

# The export of a backup: `nc -U 'SOCKET'`. The socket has to be that of a listed VM, by the number that libvirt gives it: names
# of directories are cut, so that another VM's may look the same.
reach() {
    socket=${asked#"nc -U '"}
    socket=${socket%"'"}
    case $socket in
        *[!A-Za-z0-9._+/-]* | *..*) refuse ;;
        "$SOCKETS"*/sr-[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f].sock) ;;
        *) refuse ;;
    esac
    place=${socket#"$SOCKETS"}
    place=${place%/sr-*}
    id=${place%%-*}
    case $place in */*) refuse ;; esac
    case $id in '' | *[!0-9]*) refuse ;; esac
    for vm in $VMS; do
        if [ "$id-$(printf %.20s "$vm")" = "$place" ] && [ "$(virsh -q -c qemu:///system domid "$vm")" = "$id" ]; then
            exec nc -U "$socket"
        fi
    done
    refuse
}

# Passes a client's messages on to libvirt. Each is 4 bytes of length, 24 of header (program, version, call, …), and the rest.
# libvirt opens the URI that a client names in its first message, whichever: also one that names a host, or a program, which
# root would run. So only messages for libvirt itself pass, and only this machine's QEMU is opened. Bytes are octal here.
messages() {
    opens='000 000 000 001 000 000 000 016 161 145 155 165 072 057 057 057 163 171 163 164 145 155 000 000'
    while header=$(dd bs=28 count=1 iflag=fullblock 2>/dev/null | od -An -v -to1 | tr '\n' ' ') && set -- $header && [ $# = 28 ]; do
        rest=$(((0$1 << 24 | 0$2 << 16 | 0$3 << 8 | 0$4) - 28))
        [ "$rest" -ge 0 ] && [ "$rest" -le 33554432 ] || return
        case "$5 $6 $7 $8 ${13} ${14} ${15} ${16}" in
            '040 000 200 206 000 000 000 001')
                [ "$rest" = 28 ] || return
                body=$(dd bs=28 count=1 iflag=fullblock 2>/dev/null | od -An -v -to1 | tr '\n' ' ')
                say $header
                set -- $body
                body="$*"
                [ "${body% * * * *}" = "$opens" ] || return
                say $body
                ;;
            # libvirt's calls, those to its QEMU driver, and signs of life.
            '040 000 200 206 '* | '040 000 200 207 '* | '153 145 145 160 '*)
                say $header
                [ "$rest" = 0 ] || dd bs="$rest" count=1 iflag=fullblock 2>/dev/null || return
                ;;
            *) return ;;
        esac
    done
}

# Bytes, from octal.
say() {
    text=$(printf '\\%s' "$@")
    printf "$text"
}

case $asked in
    *virt-ssh-helper*)
        exec 3<&0
        messages <&3 3<&- 2>/dev/null | {
            exec 3<&-
            virt-ssh-helper qemu:///system
            # Nothing waits for a client any more when libvirt has gone.
            kill 0
        }
        ;;
    "nc -U '"*"'") reach ;;
    *) refuse ;;
esac
