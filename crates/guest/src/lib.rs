//! The throwaway VM that makes an encrypted disk: what runs inside it ([`program`]), and the language that it and the
//! host speak ([`protocol`]).
//!
//! The VM has no network and no disk but the template, read-only, and the new, blank ones. The keys are made in its memory
//! and die with it; what leaves it for the host are the words of the protocol.

pub mod program;
pub mod protocol;
