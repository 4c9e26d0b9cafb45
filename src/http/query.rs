//! Queries: parameters between `&`, encoded as forms are (the URL standard: a plus sign is a blank).

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// All but what is unreserved (RFC 3986 section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Each parameter as it is written, with its name and value, which are encoded.
pub fn parameters(query: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let parameters = query.split('&').filter(|parameter| !parameter.is_empty());
    parameters.map(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        (parameter, name, value)
    })
}

/// Whether `encoded`, a name or a value, stands for `text`.
pub fn decodes_to(encoded: &str, text: &str) -> bool {
    if !encoded.contains(['%', '+']) {
        return encoded == text;
    }
    decode(encoded).eq(text.bytes())
}

/// The bytes of a name or a value. An encoded plus sign is itself.
pub fn decode(encoded: &str) -> impl Iterator<Item = u8> + '_ {
    let mut parts = encoded.split('+');
    let first = parts.next().into_iter().flat_map(percent_decode_str);
    let rest = parts.flat_map(|part| std::iter::once(b' ').chain(percent_decode_str(part)));
    first.chain(rest)
}

/// Appends a parameter.
pub fn push(query: &mut String, name: &[u8], value: &[u8]) {
    if !query.is_empty() {
        query.push('&');
    }
    query.extend(percent_encode(name, RESERVED));
    query.push('=');
    query.extend(percent_encode(value, RESERVED));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parameters_are_compared_decoded() {
        for (encoded, text, same) in [
            ("a", "a", true),
            ("%61", "a", true),
            ("a+b%2Bc", "a b+c", true),
            ("+", " ", true),
            ("%zz", "zz", false),
            ("a", "A", false),
        ] {
            assert_eq!(decodes_to(encoded, text), same, "{encoded}");
        }
    }

    #[test]
    fn a_parameter_need_not_have_a_value() {
        let all: Vec<_> = parameters("a=1&&b&c=d=e&=f").collect();
        assert_eq!(
            all,
            [
                ("a=1", "a", "1"),
                ("b", "b", ""),
                ("c=d=e", "c", "d=e"),
                ("=f", "", "f")
            ]
        );
        assert_eq!(parameters("").count(), 0);
    }

    proptest! {
        #[test]
        fn what_is_pushed_is_read_back(name in "\\PC{0,8}", value in "\\PC{0,8}", before in "[a-z=&]{0,8}") {
            let mut query = before;
            push(&mut query, name.as_bytes(), value.as_bytes());
            let (_, n, v) = parameters(&query).last().unwrap();
            prop_assert!(decodes_to(n, &name) && decodes_to(v, &value));
        }
    }
}
