//! The calls that have no safe form in `rustix`: write-out hints, and the two that Borg's host id is made of.
//!
//! Borg calls a host `NAME@NODE`. NAME is the canonical name that the resolver has for the host's name; NODE is
//! Python's `uuid.getnode()`, which is on Linux what libuuid takes: the first address of hardware that is not all
//! zero, in the order of `SIOCGIFCONF`.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// Asks the kernel to begin writing a part of a file. What it answers does not matter.
pub(crate) fn begin_writeback(file: BorrowedFd<'_>, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else {
        return;
    };
    // SAFETY: no memory is involved.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}

/// The resolver's canonical name of a host.
pub(crate) fn canonical_name(host: &str) -> Option<String> {
    let host = CString::new(host).ok()?;
    // SAFETY: `addrinfo` is plain data, for which zeroes mean "nothing given".
    let mut hints: libc::addrinfo = unsafe { std::mem::zeroed() };
    hints.ai_socktype = libc::SOCK_DGRAM;
    hints.ai_flags = libc::AI_CANONNAME;
    let mut list = std::ptr::null_mut();
    // SAFETY: all pointers are valid for the call, and `list` is written if it returns 0.
    if unsafe { libc::getaddrinfo(host.as_ptr(), std::ptr::null(), &raw const hints, &raw mut list) } != 0 {
        return None;
    }
    let mut at = list;
    let mut name = None;
    while !at.is_null() && name.is_none() {
        // SAFETY: `at` is an element of the list that getaddrinfo made; its name is a C string or null.
        let (canonical, next) = unsafe { ((*at).ai_canonname, (*at).ai_next) };
        if !canonical.is_null() {
            // SAFETY: as above.
            let text = unsafe { CStr::from_ptr(canonical) }
                .to_string_lossy()
                .into_owned();
            name = (!text.is_empty()).then_some(text);
        }
        at = next;
    }
    // SAFETY: the list is getaddrinfo's own and freed once.
    unsafe { libc::freeaddrinfo(list) };
    name
}

/// The first address of hardware, as a number.
pub(crate) fn hardware_address() -> Option<u64> {
    const INTERFACES: usize = 64;
    // SAFETY: no memory is involved.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return None;
    }
    // SAFETY: the descriptor is new and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: both are plain data, for which zeroes are valid.
    let (mut interfaces, mut list): ([libc::ifreq; INTERFACES], libc::ifconf) = unsafe { std::mem::zeroed() };
    list.ifc_len = size_of_val(&interfaces) as libc::c_int;
    list.ifc_ifcu.ifcu_req = interfaces.as_mut_ptr();
    // SAFETY: `list` names a buffer and its length; the kernel writes no more than that.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFCONF as _, &raw mut list) } != 0 {
        return None;
    }
    let found = (list.ifc_len as usize / size_of::<libc::ifreq>()).min(INTERFACES);
    interfaces[..found].iter_mut().find_map(|interface| {
        // SAFETY: the kernel reads the name and writes the address into the same structure.
        let answer =
            unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR as _, &raw mut *interface) };
        if answer < 0 {
            return None;
        }
        // SAFETY: SIOCGIFHWADDR fills this member of the union.
        let bytes = unsafe { interface.ifr_ifru.ifru_hwaddr.sa_data };
        let node = bytes[..6]
            .iter()
            .fold(0, |node, byte| node << 8 | u64::from(*byte as u8));
        (node != 0).then_some(node)
    })
}
