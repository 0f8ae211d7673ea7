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

/// Gives back what was needed for a moment only: freed memory that the allocator keeps, and mapped program text (most of
/// it is for starting, for rare requests or for errors). For after work that takes many times what it leaves behind; it
/// takes a millisecond or so, and text that is called again is mapped again from the page cache.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "there is no other way to ask the allocator")]
    // SAFETY: malloc_trim takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, len) in text(&maps) {
        #[expect(unsafe_code, reason = "there is no other way to tell the kernel")]
        // SAFETY: the range is program text, mapped from its file and never written: the next access to a page of it
        // reads the same bytes again (madvise(2), MADV_DONTNEED of a file mapping).
        unsafe {
            libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED);
        }
    }
}

/// Where program text is mapped, as start and length, by `/proc/PID/maps` (proc(5)): executable and not writable, from a
/// file. Data that was relocated at the start is not among it.
fn text(maps: &str) -> impl Iterator<Item = (usize, usize)> {
    maps.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (range, permissions, path) = (words.next()?, words.next()?, words.nth(3)?);
        let (start, end) = range.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        let (start, end) = (address(start)?, address(end)?);
        (permissions == "r-xp" && path.starts_with('/')).then(|| (start, end.saturating_sub(start)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_is_let_go() {
        let maps = "\
            1000-3000 r--p 00000000 fe:00 1 /bin/x\n\
            3000-7000 r-xp 00002000 fe:00 1 /bin/x\n\
            7000-8000 rw-p 00006000 fe:00 1 /bin/x\n\
            8000-9000 rwxp 00007000 fe:00 1 /bin/x\n\
            9000-a000 r-xp 00000000 00:00 0\n\
            a000-b000 r-xp 00000000 00:00 0 [vdso]\n";
        assert_eq!(text(maps).collect::<Vec<_>>(), [(0x3000, 0x4000)]);
    }

    #[test]
    fn the_program_goes_on() {
        let kept = vec![7_u8; 1 << 20];
        give_back();
        assert!(kept.iter().all(|byte| *byte == 7));
        assert!(text(&std::fs::read_to_string("/proc/self/maps").unwrap()).count() > 0);
    }
}
