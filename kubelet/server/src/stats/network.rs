//! The counters of a network namespace's devices, as `/proc/<pid>/net/dev` has them (proc(5)).

/// One device's counters since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Device {
    /// Name.
    pub(crate) name: String,
    /// What came in.
    pub(crate) received: Traffic,
    /// What went out.
    pub(crate) sent: Traffic,
}

/// One direction of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    pub(crate) errors: u64,
    pub(crate) dropped: u64,
}

/// The devices that count: loopback and the host's ends of other namespaces' links do not, as in stock.
pub(crate) fn devices(dev: &str) -> Vec<Device> {
    const IGNORED: [&str; 4] = ["lo", "veth", "docker", "nerdctl"];
    let counts = |device: &Device| !IGNORED.iter().any(|prefix| device.name.starts_with(prefix));
    dev.lines().skip(2).filter_map(device).filter(counts).collect()
}

fn device(line: &str) -> Option<Device> {
    let (name, counters) = line.split_once(':')?;
    let counters: Vec<u64> = counters.split_whitespace().map_while(|c| c.parse().ok()).collect();
    let traffic = |at: usize| {
        let [bytes, packets, errors, dropped] = *counters.get(at..at + 4)? else { return None };
        Some(Traffic { bytes, packets, errors, dropped })
    };
    Some(Device { name: name.trim().to_owned(), received: traffic(0)?, sent: traffic(8)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_devices_and_passes_over_what_is_not_the_namespace_s_own() {
        let text = "Inter-| Receive\n face |bytes\n    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n\
                    veth12: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n  bad: 1\n";
        let want = Device {
            name: "eth0".into(),
            received: Traffic { bytes: 1, packets: 2, errors: 3, dropped: 4 },
            sent: Traffic { bytes: 5, packets: 6, errors: 7, dropped: 8 },
        };
        assert_eq!(devices(text), [want]);
    }
}
