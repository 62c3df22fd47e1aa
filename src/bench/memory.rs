//! The most memory that this process held, as Linux tells it.

use std::fs;

/// Forgets the peak so far; where the system does not let it, later peaks include earlier ones.
pub fn forget_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Most bytes held since `forget_peak`; none where the system does not say.
#[must_use]
pub fn peak() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_knows_of_memory_that_was_touched() {
        let Some(before) = peak() else { return };
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        assert!(peak().unwrap() >= before.max(block.len() as u64));
    }
}
