//! Memory that was needed for a moment only.

/// Lets the allocator have at most `most` arenas. Threads that come and go (blocking calls have theirs) would leave one
/// each behind, up to eight a processor, with what was freed in it. Call it before any thread starts.
pub fn limit_arenas(most: usize) {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "there is no other way to tell the allocator")]
    // SAFETY: mallopt sets a number under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, libc::c_int::try_from(most).unwrap_or(libc::c_int::MAX));
    }
}

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
