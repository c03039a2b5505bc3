//! What the system knows about names: `/etc/resolv.conf` (resolv.conf(5)) and `/etc/hosts` (hosts(5)).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use weft_core::dns::ResolverOptions;

/// Names with fewer dots are looked for in the search list first (resolv.conf(5)).
const DEFAULT_NDOTS: usize = 1;
const PORT: u16 = 53;

/// The system's configuration, as it is at the moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct System {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
    hosts: String,
}

impl System {
    /// Read both files; what is not there says nothing. They are read for each lookup: an administrator's change counts at once.
    pub fn read() -> System {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        System::parse(&read("/etc/resolv.conf"), read("/etc/hosts"))
    }

    pub fn parse(resolv_conf: &str, hosts: String) -> System {
        let mut system = System { ndots: DEFAULT_NDOTS, hosts, ..System::default() };
        for line in resolv_conf.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address: Option<IpAddr> = words.next().and_then(|word| word.parse().ok());
                    system.servers.extend(address.map(|address| SocketAddr::new(address, PORT)));
                }
                // The last one counts.
                Some("search" | "domain") => system.search = words.map(Into::into).collect(),
                Some("options") => {
                    let ndots = words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok()).next_back();
                    system.ndots = ndots.unwrap_or(system.ndots);
                }
                _ => {}
            }
        }
        system
    }

    /// Whom to ask, in order.
    pub fn servers(&self, options: &ResolverOptions) -> Vec<SocketAddr> {
        let own = !options.servers.is_empty() && (!options.as_fallback || self.servers.is_empty());
        match (own, self.servers.is_empty()) {
            (true, _) => options.servers.to_vec(),
            (false, false) => self.servers.clone(),
            (false, true) => vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT)],
        }
    }

    /// What *name* may stand for, in the order in which it is tried.
    pub fn candidates(&self, name: &str, options: &ResolverOptions) -> Vec<String> {
        if name.ends_with('.') || !options.search {
            return vec![name.into()];
        }
        let mut candidates: Vec<String> =
            self.search.iter().map(|domain| format!("{name}.{}", domain.trim_start_matches('.'))).collect();
        let first = name.matches('.').count() >= self.ndots;
        candidates.insert(if first { 0 } else { candidates.len() }, name.into());
        candidates
    }

    /// The addresses of *name* in the hosts file.
    pub fn hosts(&self, name: &str) -> Vec<IpAddr> {
        let name = name.strip_suffix('.').unwrap_or(name);
        self.hosts
            .lines()
            .filter_map(|line| {
                let mut words = line.split('#').next()?.split_ascii_whitespace();
                let address = words.next()?.parse().ok()?;
                words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ResolverOptions {
        ResolverOptions::default()
    }

    #[test]
    fn servers_are_those_of_the_cluster_or_of_the_system() {
        let system = System::parse("nameserver 10.0.0.1\nnameserver ::1\n# nameserver 10.0.0.9\n", String::new());
        let told = ["127.0.0.1:5353".parse().unwrap()];
        let of_cluster = ResolverOptions { servers: told.into(), ..options() };
        let fallback = ResolverOptions { as_fallback: true, ..of_cluster.clone() };
        let of_system: Vec<SocketAddr> = vec!["10.0.0.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(system.servers(&options()), of_system);
        assert_eq!(system.servers(&of_cluster), told);
        assert_eq!(system.servers(&fallback), of_system);
        let nothing = System::parse("", String::new());
        assert_eq!(nothing.servers(&fallback), told);
        assert_eq!(nothing.servers(&options()), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn short_names_are_looked_for_in_the_search_list() {
        let system = System::parse("domain old\nsearch svc.local local\noptions timeout:1 ndots:2", String::new());
        assert_eq!(system.candidates("api", &options()), ["api.svc.local", "api.local", "api"]);
        assert_eq!(system.candidates("api.a.b", &options()), ["api.a.b", "api.a.b.svc.local", "api.a.b.local"]);
        assert_eq!(system.candidates("api.", &options()), ["api."]);
        assert_eq!(system.candidates("api", &ResolverOptions { search: false, ..options() }), ["api"]);
    }

    #[test]
    fn the_hosts_file_knows_names_and_aliases() {
        let hosts = "127.0.0.1 localhost\n::1\tlocalhost ip6-localhost # not-this\n10.0.0.1 a.example A\nbad line\n";
        let system = System::parse("", hosts.into());
        let found = |name| system.hosts(name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found("localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(found("a.EXAMPLE."), ["10.0.0.1"]);
        assert!(found("not-this").is_empty() && found("line").is_empty());
    }
}
