//! Registrations for libvirt's events: what C calls back, and who owns what.
//!
//! Each registration holds one reference on the [`Events`] that it counts in, as its opaque pointer; libvirt gives it
//! back through [`release`] when the registration is gone. Callbacks only read the domain's UUID and count.

use std::ffi::{c_char, c_int, c_void};
use std::mem::transmute;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;

use uuid::Uuid;
use virt::connect::Connect;
use virt::error::Error;
use virt::sys;

use crate::events::Events;

type Generic = sys::virConnectDomainEventGenericCallback;

/// The registrations on one connection: they end when this is dropped.
pub struct Subscription {
    connection: Connect,
    callbacks: Vec<c_int>,
    watches_end: bool,
}

impl Subscription {
    /// Registers for block jobs, I/O errors and lifecycle of all domains, and for the connection's end.
    pub fn new(connection: &Connect, events: &Arc<Events>) -> Result<Self, Error> {
        let mut subscription = Self {
            connection: connection.clone(),
            callbacks: Vec::new(),
            watches_end: false,
        };
        // What fails half-way is taken back by the drop.
        subscription.register_all(events)?;
        Ok(subscription)
    }

    fn register_all(&mut self, events: &Arc<Events>) -> Result<(), Error> {
        // SAFETY: all of these are C function pointers of one size, and null for none; libvirt's API takes them in the
        // type of the generic one (`VIR_DOMAIN_EVENT_CALLBACK`) and calls each in the type that its event id stands for.
        let kinds = unsafe {
            [
                (
                    sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                    transmute::<sys::virConnectDomainEventCallback, Generic>(Some(on_lifecycle)),
                ),
                (
                    sys::VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2,
                    transmute::<sys::virConnectDomainEventBlockJobCallback, Generic>(Some(on_block_job)),
                ),
                (
                    sys::VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON,
                    transmute::<sys::virConnectDomainEventIOErrorReasonCallback, Generic>(Some(on_io_error)),
                ),
            ]
        };
        for (kind, callback) in kinds {
            let opaque = Arc::into_raw(Arc::clone(events)).cast_mut().cast();
            // SAFETY: the connection is alive while borrowed, a null domain means all; the callback fits the kind, and
            // the opaque pointer is a reference that `release` takes back.
            let id = unsafe {
                sys::virConnectDomainEventRegisterAny(
                    self.connection.as_ptr(),
                    ptr::null_mut(),
                    kind as c_int,
                    callback,
                    opaque,
                    Some(release),
                )
            };
            if id < 0 {
                let error = Error::last_error();
                // SAFETY: libvirt keeps nothing of a registration that failed, so the reference is still ours.
                unsafe { release(opaque) };
                return Err(error);
            }
            self.callbacks.push(id);
        }
        let opaque = Arc::into_raw(Arc::clone(events)).cast_mut().cast();
        // SAFETY: as above.
        let result = unsafe {
            sys::virConnectRegisterCloseCallback(
                self.connection.as_ptr(),
                Some(on_close),
                opaque,
                Some(release),
            )
        };
        self.watches_end = result >= 0;
        if !self.watches_end {
            // SAFETY: as above.
            unsafe { release(opaque) };
        }
        // Without it the end is noticed by the next call.
        Ok(())
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // That libvirtd cannot be told because it is gone is no matter: libvirt forgets the callbacks on this side first.
        for id in &self.callbacks {
            // SAFETY: the connection is alive; the id is from it and not given back yet.
            unsafe { sys::virConnectDomainEventDeregisterAny(self.connection.as_ptr(), *id) };
        }
        if self.watches_end {
            // SAFETY: the connection is alive and has this callback.
            unsafe { sys::virConnectUnregisterCloseCallback(self.connection.as_ptr(), Some(on_close)) };
        }
    }
}

/// Takes back the reference of a registration.
///
/// # Safety
/// `opaque` is from `Arc::into_raw` of an `Arc<Events>` and is not used again.
unsafe extern "C" fn release(opaque: *mut c_void) {
    // SAFETY: by the contract.
    drop(unsafe { Arc::from_raw(opaque.cast::<Events>().cast_const()) });
}

/// Counts an event of the domain. A panic would end the process at the border to C, so none gets there.
///
/// # Safety
/// `domain` is null or a domain that lives for the call, `opaque` the reference of a registration.
unsafe fn count(domain: sys::virDomainPtr, opaque: *mut c_void) {
    let mut uuid = [0; 16];
    // SAFETY: by the contract; a UUID has 16 bytes (`VIR_UUID_BUFLEN`).
    let known = !domain.is_null() && unsafe { sys::virDomainGetUUID(domain, uuid.as_mut_ptr()) } >= 0;
    // SAFETY: by the contract; libvirt holds the reference for as long as it calls back.
    let events = unsafe { &*opaque.cast::<Events>() };
    let _ = catch_unwind(AssertUnwindSafe(|| {
        if known {
            events.count(Uuid::from_bytes(uuid));
        } else {
            events.count_all();
        }
    }));
}

unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: libvirt gives a domain and the registration's pointer.
    unsafe { count(domain, opaque) };
    0
}

unsafe extern "C" fn on_block_job(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _disk: *const c_char,
    _kind: c_int,
    _status: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt gives a domain and the registration's pointer.
    unsafe { count(domain, opaque) };
}

unsafe extern "C" fn on_io_error(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _path: *const c_char,
    _alias: *const c_char,
    _action: c_int,
    _reason: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt gives a domain and the registration's pointer.
    unsafe { count(domain, opaque) };
}

unsafe extern "C" fn on_close(_: sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: libvirt gives the registration's pointer; a null domain means all.
    unsafe { count(ptr::null_mut(), opaque) };
}
