//! The cookies of a request (RFC 6265 section 4.2).

use http::{HeaderMap, header};

/// Name and value of each, as sent, in the order sent; HTTP/2 may split the header in several (RFC 9113 section 8.2.3).
pub fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let headers = headers.get_all(header::COOKIE).iter();
    let pairs = headers.flat_map(|value| value.as_bytes().split(|&b| b == b';'));
    pairs.filter_map(|pair| {
        let equals = memchr::memchr(b'=', pair)?;
        let (name, value) = (&pair[..equals], &pair[equals + 1..]);
        Some((name.trim_ascii(), value.trim_ascii()))
    })
}

/// Whether a cookie may be called so: a token of RFC 9110 section 5.6.2.
pub fn is_name(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_come_in_the_order_sent() {
        let values = ["a=b; SESSION = s%3D ;c", "d=e=f;;=g"];
        let values = values.map(|value| (header::COOKIE, value.parse().expect("a header")));
        let headers = HeaderMap::from_iter(values);
        let found: Vec<_> = pairs(&headers)
            .map(|(name, value)| {
                let text = |bytes| std::str::from_utf8(bytes).expect("all of it is ASCII");
                (text(name), text(value))
            })
            .collect();
        let expected = [("a", "b"), ("SESSION", "s%3D"), ("d", "e=f"), ("", "g")];
        assert_eq!(found, expected);
    }

    #[test]
    fn names_are_tokens() {
        assert!(is_name("weir_app") && is_name("__Host-x"));
        for name in ["", "a b", "a=b", "a;b", "é", "a\r\n"] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
