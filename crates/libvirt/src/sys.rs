//! Calls that the `virt` crate lacks: jobs, checkpoints, events, sizes. The only unsafe code of this crate.
//!
//! All of them are plain libvirt calls on a domain that the caller holds. Strings that libvirt gives are copied
//! and freed here; nothing borrowed from C leaves this module.

#![allow(unsafe_code)]

mod events;

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulong};
use std::ptr;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

pub use self::events::Subscription;

/// Starts a backup job with, or without, a new checkpoint.
pub fn backup_begin(domain: &Domain, backup: &str, checkpoint: Option<&str>) -> Result<(), Error> {
    let backup = CString::new(backup)?;
    let checkpoint = checkpoint.map(CString::new).transpose()?;
    let checkpoint = checkpoint.as_ref().map_or(ptr::null(), |xml| xml.as_ptr());
    // SAFETY: the domain is alive while borrowed; both strings outlive the call and end in NUL, a null checkpoint
    // means none.
    done(unsafe { sys::virDomainBackupBegin(domain.as_ptr(), backup.as_ptr(), checkpoint, 0) })
}

/// Describes the backup job that runs; `VIR_ERR_NO_DOMAIN_BACKUP` when there is none.
pub fn backup_xml(domain: &Domain) -> Result<String, Error> {
    // SAFETY: the domain is alive while borrowed; the result is null or a string that is ours to free.
    unsafe { owned_string(sys::virDomainBackupGetXMLDesc(domain.as_ptr(), 0)) }
}

/// The definition that a domain's saved memory is resumed with.
pub fn managed_save_xml(domain: &Domain) -> Result<String, Error> {
    // SAFETY: the domain is alive while borrowed; the result is null or a string that is ours to free.
    unsafe { owned_string(sys::virDomainManagedSaveGetXMLDesc(domain.as_ptr(), 0)) }
}

/// Asks whatever job holds the domain to stop.
pub fn abort_job(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the domain is alive while borrowed.
    done(unsafe { sys::virDomainAbortJob(domain.as_ptr()) })
}

/// The operation of the job that holds a domain (`virDomainJobOperation`), if there is one.
///
/// The `virt` crate has this call, but makes a slice of the null pointer that libvirt gives where there is no job.
pub fn job_operation(domain: &Domain) -> Result<Option<u32>, Error> {
    let mut kind: c_int = 0;
    let mut count: c_int = 0;
    let mut operation: c_int = 0;
    let mut list: sys::virTypedParameterPtr = ptr::null_mut();
    // SAFETY: the domain is alive while borrowed; the three places take what libvirt gives.
    done(unsafe {
        sys::virDomainGetJobStats(domain.as_ptr(), &raw mut kind, &raw mut list, &raw mut count, 0)
    })?;
    if !list.is_null() {
        // SAFETY: `list` has `count` parameters that libvirt allocated for us, freed once, here, after the look-up; the
        // name is a constant that ends in NUL. Without such a parameter the operation stays 0, which means unknown.
        unsafe {
            let name = sys::VIR_DOMAIN_JOB_OPERATION.as_ptr();
            sys::virTypedParamsGetInt(list, count, name.cast(), &raw mut operation);
            sys::virTypedParamsFree(list, count);
        }
    }
    Ok((kind != 0).then(|| u32::try_from(operation).unwrap_or_default()))
}

/// The type of the block job on a disk (`virDomainBlockJobType`), if there is one.
pub fn block_job(domain: &Domain, disk: &str) -> Result<Option<i32>, Error> {
    let disk = CString::new(disk)?;
    let mut info = sys::virDomainBlockJobInfo {
        type_: 0,
        bandwidth: 0,
        cur: 0,
        end: 0,
    };
    // SAFETY: the domain is alive while borrowed; the name outlives the call and ends in NUL; `info` is a plain
    // structure that libvirt fills.
    let found = unsafe { sys::virDomainGetBlockJobInfo(domain.as_ptr(), disk.as_ptr(), &raw mut info, 0) };
    done(found)?;
    Ok((found > 0).then_some(info.type_))
}

/// Starts to merge the active overlay `top` of a disk into `base`. A bandwidth of 0 means no limit.
pub fn commit_active(
    domain: &Domain,
    disk: &str,
    base: &str,
    top: &str,
    bandwidth: u64,
) -> Result<(), Error> {
    let (disk, base, top) = (CString::new(disk)?, CString::new(base)?, CString::new(top)?);
    let flags = sys::VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | sys::VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES;
    // SAFETY: the domain is alive while borrowed; the strings outlive the call and end in NUL.
    done(unsafe {
        sys::virDomainBlockCommit(
            domain.as_ptr(),
            disk.as_ptr(),
            base.as_ptr(),
            top.as_ptr(),
            c_ulong::from(bandwidth),
            flags,
        )
    })
}

/// Ends a disk's block job, which has to be ready, by switching to where it copied.
pub fn pivot(domain: &Domain, disk: &str) -> Result<(), Error> {
    let disk = CString::new(disk)?;
    // SAFETY: the domain is alive while borrowed; the string outlives the call and ends in NUL.
    done(unsafe {
        sys::virDomainBlockJobAbort(
            domain.as_ptr(),
            disk.as_ptr(),
            sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT,
        )
    })
}

/// Whether the host describes its SEV; the error is the host's reason why it does not.
pub fn check_sev(connection: &Connect) -> Result<(), Error> {
    let mut list: sys::virTypedParameterPtr = ptr::null_mut();
    let mut count: c_int = 0;
    // SAFETY: the connection is alive while borrowed; the two places take what libvirt gives.
    done(unsafe { sys::virNodeGetSEVInfo(connection.as_ptr(), &raw mut list, &raw mut count, 0) })?;
    if !list.is_null() {
        // SAFETY: `list` has `count` parameters that libvirt allocated for us, freed once, here.
        unsafe { sys::virTypedParamsFree(list, count) };
    }
    Ok(())
}

/// Number and total time in nanoseconds of a disk's reads, writes and flushes that are done.
pub fn requests(domain: &Domain, disk: &str) -> Result<[(u64, u64); 3], Error> {
    let disk = CString::new(disk)?;
    let mut count: c_int = 0;
    // SAFETY: the domain is alive while borrowed; the string outlives the call and ends in NUL; without a place for
    // parameters libvirt only tells their number.
    done(unsafe {
        sys::virDomainBlockStatsFlags(domain.as_ptr(), disk.as_ptr(), ptr::null_mut(), &raw mut count, 0)
    })?;
    // SAFETY: a C structure of numbers, a union of numbers and pointers, and an array; all zeroes is valid.
    let empty = || unsafe { std::mem::zeroed::<sys::virTypedParameter>() };
    let mut list: Vec<_> = std::iter::repeat_with(empty)
        .take(usize::try_from(count).unwrap_or_default())
        .collect();
    // SAFETY: as above; `list` has room for `count` parameters, and libvirt sets `count` to those that it has filled, which
    // is not more.
    done(unsafe {
        sys::virDomainBlockStatsFlags(
            domain.as_ptr(),
            disk.as_ptr(),
            list.as_mut_ptr(),
            &raw mut count,
            0,
        )
    })?;
    let mut value = |name: &CStr| {
        let mut value = 0;
        // SAFETY: `list` has `count` parameters that libvirt has filled with numbers; the name ends in NUL. A parameter that
        // is not there leaves the value alone.
        unsafe { sys::virTypedParamsGetLLong(list.as_mut_ptr(), count, name.as_ptr(), &raw mut value) };
        u64::try_from(value).unwrap_or_default()
    };
    Ok([
        (
            sys::VIR_DOMAIN_BLOCK_STATS_READ_REQ,
            sys::VIR_DOMAIN_BLOCK_STATS_READ_TOTAL_TIMES,
        ),
        (
            sys::VIR_DOMAIN_BLOCK_STATS_WRITE_REQ,
            sys::VIR_DOMAIN_BLOCK_STATS_WRITE_TOTAL_TIMES,
        ),
        (
            sys::VIR_DOMAIN_BLOCK_STATS_FLUSH_REQ,
            sys::VIR_DOMAIN_BLOCK_STATS_FLUSH_TOTAL_TIMES,
        ),
    ]
    .map(|(requests, time)| (value(requests), value(time))))
}

/// Asks for the size of a disk that the guest sees, in bytes. The `virt` crate's own call gives uninitialised memory where
/// libvirt fails.
pub fn capacity(domain: &Domain, disk: &str) -> Result<u64, Error> {
    let disk = CString::new(disk)?;
    let mut info = sys::virDomainBlockInfo {
        capacity: 0,
        allocation: 0,
        physical: 0,
    };
    // SAFETY: the domain is alive while borrowed; the string outlives the call and ends in NUL, libvirt fills `info`.
    done(unsafe { sys::virDomainGetBlockInfo(domain.as_ptr(), disk.as_ptr(), &raw mut info, 0) })?;
    Ok(info.capacity)
}

/// Names of all checkpoints of a domain, parents before their children.
pub fn checkpoint_names(domain: &Domain) -> Result<Vec<String>, Error> {
    let mut list: *mut sys::virDomainCheckpointPtr = ptr::null_mut();
    // SAFETY: the domain is alive while borrowed; `list` takes an array that libvirt allocates.
    let count = unsafe {
        sys::virDomainListAllCheckpoints(
            domain.as_ptr(),
            &raw mut list,
            sys::VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL,
        )
    };
    let Ok(count) = usize::try_from(count) else {
        return Err(Error::last_error());
    };
    let mut checkpoints = Vec::with_capacity(count);
    for index in 0..count {
        // SAFETY: on success the array has `count` valid checkpoints, each with a reference that becomes ours.
        checkpoints.push(Checkpoint(unsafe { *list.add(index) }));
    }
    // SAFETY: the array was allocated with malloc for us; it is freed once and not used again.
    unsafe { libc::free(list.cast()) };
    checkpoints.iter().map(Checkpoint::name).collect()
}

/// Makes a checkpoint as `<domaincheckpoint>` describes it.
pub fn create_checkpoint(domain: &Domain, xml: &str) -> Result<(), Error> {
    create_checkpoint_with(domain, xml, 0)
}

/// Makes a checkpoint known again whose bitmaps are there; libvirt checks that they are.
pub fn redefine_checkpoint(domain: &Domain, xml: &str) -> Result<(), Error> {
    let flags =
        sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE;
    create_checkpoint_with(domain, xml, flags)
}

fn create_checkpoint_with(domain: &Domain, xml: &str, flags: c_uint) -> Result<(), Error> {
    let xml = CString::new(xml)?;
    // SAFETY: the domain is alive while borrowed; the string outlives the call and ends in NUL.
    let made = unsafe { sys::virDomainCheckpointCreateXML(domain.as_ptr(), xml.as_ptr(), flags) };
    if made.is_null() {
        return Err(Error::last_error());
    }
    // The reference that the handle owns is given back.
    drop(Checkpoint(made));
    Ok(())
}

/// A handle on a checkpoint.
pub struct Checkpoint(sys::virDomainCheckpointPtr);

impl Checkpoint {
    /// Finds a checkpoint; `VIR_ERR_NO_DOMAIN_CHECKPOINT` when there is none of that name.
    pub fn lookup(domain: &Domain, name: &str) -> Result<Self, Error> {
        let name = CString::new(name)?;
        // SAFETY: the domain is alive while borrowed; the name outlives the call and ends in NUL.
        let found = unsafe { sys::virDomainCheckpointLookupByName(domain.as_ptr(), name.as_ptr(), 0) };
        if found.is_null() {
            Err(Error::last_error())
        } else {
            Ok(Self(found))
        }
    }

    fn name(&self) -> Result<String, Error> {
        // SAFETY: the handle is valid until dropped.
        let name = unsafe { sys::virDomainCheckpointGetName(self.0) };
        if name.is_null() {
            return Err(Error::last_error());
        }
        // SAFETY: the string belongs to the handle, ends in NUL and is copied while the handle lives.
        Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
    }

    /// Describes the checkpoint with the size of the changes since then. Only a running domain can tell it.
    pub fn xml_with_sizes(&self) -> Result<String, Error> {
        let flags = sys::VIR_DOMAIN_CHECKPOINT_XML_SIZE | sys::VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN;
        // SAFETY: the handle is valid until dropped; the result is null or a string that is ours to free.
        unsafe { owned_string(sys::virDomainCheckpointGetXMLDesc(self.0, flags)) }
    }

    /// Deletes the checkpoint with its bitmaps.
    pub fn delete(&self) -> Result<(), Error> {
        self.delete_with(0)
    }

    /// Deletes what libvirt knows of the checkpoint and leaves bitmaps alone.
    pub fn delete_metadata(&self) -> Result<(), Error> {
        self.delete_with(sys::VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    }

    fn delete_with(&self, flags: c_uint) -> Result<(), Error> {
        // SAFETY: the handle is valid until dropped, also after the checkpoint itself is gone.
        done(unsafe { sys::virDomainCheckpointDelete(self.0, flags) })
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        // SAFETY: the one reference that this handle owns is given back once.
        unsafe { sys::virDomainCheckpointFree(self.0) };
    }
}

/// libvirt's convention for calls without a result: negative is an error.
fn done(result: i32) -> Result<(), Error> {
    if result < 0 {
        Err(Error::last_error())
    } else {
        Ok(())
    }
}

/// Copies and frees a string; null is an error.
///
/// # Safety
/// `string` is null or a NUL-terminated string allocated with malloc that has no other owner.
unsafe fn owned_string(string: *mut c_char) -> Result<String, Error> {
    if string.is_null() {
        return Err(Error::last_error());
    }
    // SAFETY: not null, so by the contract a NUL-terminated string.
    let copy = unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned();
    // SAFETY: by the contract it is ours, was allocated with malloc, and is not used again.
    unsafe { libc::free(string.cast()) };
    Ok(copy)
}
