//! Huge pages for peers that need them, for as long as they run.

use super::process::output;

const SETTING: &str = "/proc/sys/vm/nr_hugepages";

/// Room in huge pages; dropping it restores the machine's setting.
#[derive(Debug)]
pub struct Hugepages {
    before: u64,
}

impl Hugepages {
    /// Makes sure that `mib` MiB of huge pages are free, beside those in use.
    pub fn free(mib: u64) -> Self {
        let before: u64 = std::fs::read_to_string(SETTING)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let guard = Self { before };
        let missing = (mib * 1024).div_ceil(page_kib()).saturating_sub(free());
        if missing > 0 {
            // What the kernel keeps in caches it gives back only when asked to.
            output(&["sysctl", "--quiet", "vm.compact_memory=1"]);
            std::fs::write(SETTING, (before + missing).to_string()).unwrap();
            let mib_free = free() * page_kib() / 1024;
            assert!(
                mib_free >= mib,
                "{mib} MiB of huge pages are needed, {mib_free} MiB could be had: free some memory"
            );
        }
        guard
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(SETTING, self.before.to_string()) {
            eprintln!(
                "{SETTING} was {} and could not be restored: {error}",
                self.before
            );
        }
    }
}

/// Huge pages that nobody uses or has reserved.
pub fn free() -> u64 {
    value("HugePages_Free:").saturating_sub(value("HugePages_Rsvd:"))
}

/// Their size, KiB.
pub fn page_kib() -> u64 {
    value("Hugepagesize:")
}

fn value(name: &str) -> u64 {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = memory.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|rest| rest.split_whitespace().next());
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}
