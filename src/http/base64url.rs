//! base64 for URLs, without padding (RFC 4648 section 5; RFC 7515 section 2).

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The bytes of `text`; `None` if it is not the one text that stands for them.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.as_bytes().chunks(4) {
        let mut bits = 0u32;
        for byte in group {
            bits = bits << 6 | value(*byte)?;
        }
        bits <<= 6 * (4 - group.len());
        let [_, a, b, c] = bits.to_be_bytes();
        let (whole, rest) = match group.len() {
            4 => (3, 0),
            3 => (2, c),
            2 => (1, b | c),
            _ => return None,
        };
        // bits that no byte has
        if rest != 0 {
            return None;
        }
        bytes.extend_from_slice(&[a, b, c][..whole]);
    }
    Some(bytes)
}

pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |i: usize| group.get(i).copied().unwrap_or(0);
        let bits = u32::from_be_bytes([0, at(0), at(1), at(2)]);
        for i in 0..=group.len() {
            text.push(ALPHABET[(bits >> (18 - 6 * i) & 63) as usize].into());
        }
    }
    text
}

fn value(byte: u8) -> Option<u32> {
    Some(
        match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        }
        .into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_text_stands_for_its_bytes_alone() {
        assert_eq!(decode(""), Some(vec![]));
        assert_eq!(decode("_-8"), Some(vec![0xff, 0xef]));
        assert_eq!(decode("AQ"), Some(vec![1]));
        for text in ["A", "AR", "AQ==", "AQ=", "A+/A", "A A", "ä", "AQIDB"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(bytes: Vec<u8>) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }

        #[test]
        fn what_is_read_is_encoded_back(text in "[A-Za-z0-9_-]{0,12}|\\PC{0,12}") {
            if let Some(bytes) = decode(&text) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }
    }
}
