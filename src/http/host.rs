//! The host that a request asks for, out of `Host` or `:authority`, in the form that sites are looked up by.

use std::fmt;
use std::net::Ipv6Addr;

/// The text does not name a host (400).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidHost;

impl fmt::Display for InvalidHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the host is not a name or an address")
    }
}

impl std::error::Error for InvalidHost {}

/// The longest name that DNS has (RFC 1035 section 2.3.4).
const LONGEST: usize = 253;

/// Writes the host of `host[:port]` to `out`: lower case, without port and trailing dot; an IPv6 address stays in its
/// brackets, in its canonical spelling. Nothing is a host too: a client may send an empty `Host` (RFC 9110 section
/// 7.2). `out` is empty after an error.
///
/// A name is letters, digits, hyphens, underscores and dots. RFC 3986 would let more stand there, but nothing that
/// resolves has it, and a strict alphabet means that `$host` can be put into a redirect, a log or a cache key as it is.
pub fn normalise_into(authority: &[u8], out: &mut String) -> Result<(), InvalidHost> {
    out.clear();
    if authority.is_empty() {
        return Ok(());
    }
    let authority = str::from_utf8(authority).map_err(|_| InvalidHost)?;
    if let Some(bracketed) = authority.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']').ok_or(InvalidHost)?;
        let address: Ipv6Addr = address.parse().map_err(|_| InvalidHost)?;
        check_port(port)?;
        *out = format!("[{address}]");
        return Ok(());
    }
    let colon = authority.bytes().position(|byte| byte == b':');
    let (name, port) = authority.split_at(colon.unwrap_or(authority.len()));
    check_port(port)?;
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > LONGEST || !is_name(name) {
        return Err(InvalidHost);
    }
    out.push_str(name);
    out.make_ascii_lowercase();
    Ok(())
}

/// `:port`, or nothing; the number may be missing (RFC 3986 section 3.2.3).
fn check_port(port: &str) -> Result<(), InvalidHost> {
    let digits = match port.strip_prefix(':') {
        Some(digits) => digits,
        None if port.is_empty() => return Ok(()),
        None => return Err(InvalidHost),
    };
    // `parse` alone would take a plus sign
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    if digits.is_empty() || (all_digits && digits.parse::<u16>().is_ok()) {
        Ok(())
    } else {
        Err(InvalidHost)
    }
}

/// Labels of the alphabet above, none of them empty.
fn is_name(name: &str) -> bool {
    let mut after_dot = true;
    for byte in name.bytes() {
        match byte {
            b'.' if after_dot => return false,
            b'.' => after_dot = true,
            b'-' | b'_' => after_dot = false,
            _ if byte.is_ascii_alphanumeric() => after_dot = false,
            _ => return false,
        }
    }
    !after_dot
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normalise(authority: &str) -> Result<String, InvalidHost> {
        let mut out = String::from("old");
        normalise_into(authority.as_bytes(), &mut out).map(|()| out)
    }

    #[test]
    fn hosts() {
        for (authority, host) in [
            ("", ""),
            ("example.com", "example.com"),
            ("Shop.Example.COM", "shop.example.com"),
            ("example.com.", "example.com"),
            ("example.com:8080", "example.com"),
            ("example.com.:443", "example.com"),
            ("example.com:", "example.com"),
            ("localhost:0", "localhost"),
            ("_dmarc.a-b.example", "_dmarc.a-b.example"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[::1]:8443", "[::1]"),
            ("[2001:DB8:0:0::1]:", "[2001:db8::1]"),
        ] {
            assert_eq!(normalise(authority).as_deref(), Ok(host), "{authority}");
        }
    }

    #[test]
    fn refused() {
        let long = "a".repeat(LONGEST + 1);
        for authority in [
            ".",
            "..",
            ".a",
            "a..b",
            "a..",
            ":80",
            "a b",
            " a",
            "a/b",
            "a\\b",
            "a@b",
            "user@a:80",
            "a:b",
            "a:+1",
            "a:65536",
            "a:80:80",
            "::1",
            "[::1",
            "[]",
            "[::1]x",
            "[::1]:x",
            "[a.b]",
            "[fe80::1%25eth0]",
            "*.example",
            "a%2eb",
            "ü.example",
            "a,b",
            "a\0",
            "a\n",
            &long,
        ] {
            assert_eq!(normalise(authority), Err(InvalidHost), "{authority:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_a_host_or_an_error(authority in "[a-zA-Z0-9.:\\[\\]_@%/ -]{0,40}") {
            if let Ok(host) = normalise(&authority) {
                prop_assert_eq!(normalise(&host), Ok(host.clone()));
            }
        }
    }
}
