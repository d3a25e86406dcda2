//! Who calls: the connection's other end, or whom a trusted proxy says that it speaks for.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// The address that an allowlist is asked about. Each proxy appends whom it heard; so from the right, what trusted
/// proxies wrote is believed, up to the first address that is no trusted proxy. `None` if one of them wrote no address.
pub(crate) fn client(peer: SocketAddr, headers: &HeaderMap, trusted_proxies: &[IpNet]) -> Option<IpAddr> {
    let mut client = peer.ip().to_canonical();
    let mut heard = headers.get_all(FORWARDED_FOR).iter().rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    while within(client, trusted_proxies) {
        match heard.next() {
            Some(entry) => client = address(entry)?,
            None => break,
        }
    }
    Some(client)
}

pub(crate) fn within(address: IpAddr, networks: &[IpNet]) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

/// Some proxies write the port too.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry).ok()?.trim();
    let address = entry.parse().or_else(|_| entry.parse::<SocketAddr>().map(|with_port| with_port.ip()));
    address.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(peer: &str, forwarded: &[&'static str], expected: Option<&str>) {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(FORWARDED_FOR, HeaderValue::from_static(line));
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let expected = expected.map(|address| address.parse().unwrap());
        assert_eq!(client(SocketAddr::new(peer.parse().unwrap(), 1), &headers, &trusted), expected, "{peer} {forwarded:?}");
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        check("203.0.113.9", &[], Some("203.0.113.9"));
        check("203.0.113.9", &["3.3.3.3"], Some("203.0.113.9"));
        check("10.0.0.1", &["3.3.3.3"], Some("3.3.3.3"));
        check("10.0.0.1", &["3.3.3.3, 198.51.100.1"], Some("198.51.100.1"));
        check("10.0.0.1", &["3.3.3.3, 198.51.100.1, 10.0.0.2"], Some("198.51.100.1"));
        check("10.0.0.1", &["3.3.3.3", "198.51.100.1,10.0.0.2"], Some("198.51.100.1"));
        check("10.0.0.1", &[], Some("10.0.0.1"));
        check("10.0.0.1", &["10.0.0.7"], Some("10.0.0.7"));
    }

    #[test]
    fn ports_and_mapped_addresses_are_understood() {
        check("::ffff:10.0.0.1", &["198.51.100.1:4711"], Some("198.51.100.1"));
        check("fd00::1", &["[2001:db8::1]:4711"], Some("2001:db8::1"));
        check("fd00::1", &["::ffff:198.51.100.1"], Some("198.51.100.1"));
    }

    #[test]
    fn what_is_no_address_is_nobody() {
        check("10.0.0.1", &["198.51.100.1, unknown"], None);
        check("10.0.0.1", &["198.51.100.1,"], None);
        check("10.0.0.1", &[""], None);
    }
}
