//! How much memory there is for one more model.

use std::fs;

/// Bytes that can be had without taking them from anybody: of the machine, and of the control group that
/// this process is in. `None` where the system does not say.
pub fn available() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.and_then(|text| of_machine(&text));
    let group = of_group(|name| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok());
    [machine, group].into_iter().flatten().min()
}

fn of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

fn of_group(read: impl Fn(&str) -> Option<String>) -> Option<u64> {
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    // What was read from files goes when memory is short.
    let stat = read("memory.stat").unwrap_or_default();
    let files = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file "));
    let files: u64 = files.and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
    let used = number("memory.current")?.saturating_sub(files);
    Some(number("memory.max")?.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_s_and_the_group_s() {
        let meminfo = "MemTotal:       32768 kB\nMemFree: 5 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(of_machine(meminfo), Some(2 << 20));
        assert_eq!(of_machine("MemTotal: 1 kB"), None);
        let group = |max: &'static str| {
            of_group(move |name| {
                let text = match name {
                    "memory.max" => max,
                    "memory.current" => "1000\n",
                    "memory.stat" => "anon 300\ninactive_file 600\n",
                    _ => return None,
                };
                Some(text.to_owned())
            })
        };
        assert_eq!(group("5000\n"), Some(4_600));
        assert_eq!(group("300\n"), Some(0));
        assert_eq!(group("max\n"), None);
    }
}
