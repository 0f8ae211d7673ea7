//! Memory that was needed for a moment only.

/// Give what the allocator keeps of freed memory back to the system. For after work that takes many times what it
/// leaves behind; it takes a millisecond or so.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "there is no other way to ask the allocator")]
    // SAFETY: malloc_trim takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
