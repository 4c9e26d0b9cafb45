//! The cookie that an answer sets, and its attributes (RFC 6265 section 4.1).

/// One `Set-Cookie`, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct SetCookie<'a> {
    pub name: &'a [u8],
    /// `name=value`, as it came.
    pair: &'a [u8],
    attributes: Vec<Attribute<'a>>,
    changed: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Attribute<'a> {
    name: &'a [u8],
    value: Option<Vec<u8>>,
}

impl<'a> SetCookie<'a> {
    /// `None`: it sets no cookie.
    pub fn parse(text: &'a [u8]) -> Option<SetCookie<'a>> {
        let mut parts = text.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let pair = parts.next()?;
        let equals = memchr::memchr(b'=', pair)?;
        let attributes = parts.filter(|part| !part.is_empty()).map(|part| {
            let equals = memchr::memchr(b'=', part);
            Attribute {
                name: part[..equals.unwrap_or(part.len())].trim_ascii(),
                value: equals.map(|equals| part[equals + 1..].trim_ascii().to_vec()),
            }
        });
        Some(SetCookie {
            name: pair[..equals].trim_ascii(),
            pair,
            attributes: attributes.collect(),
            changed: false,
        })
    }

    /// The value of an attribute; of several, the last counts.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let attributes = self.attributes.iter().rev();
        let mut named = attributes.filter(|attribute| is(attribute.name, name));
        named
            .next()
            .map(|attribute| attribute.value.as_deref().unwrap_or_default())
    }

    /// Gives an attribute this value, or none (`Secure`).
    pub fn set(&mut self, name: &'static str, value: Option<&[u8]>) {
        self.remove(name);
        self.attributes.push(Attribute {
            name: name.as_bytes(),
            value: value.map(<[u8]>::to_vec),
        });
        self.changed = true;
    }

    pub fn remove(&mut self, name: &str) {
        let before = self.attributes.len();
        self.attributes
            .retain(|attribute| !is(attribute.name, name));
        self.changed |= self.attributes.len() < before;
    }

    /// The header, if something about it has changed.
    pub fn changed(&self) -> Option<Vec<u8>> {
        if !self.changed {
            return None;
        }
        let mut text = self.pair.to_vec();
        for Attribute { name, value } in &self.attributes {
            text.extend_from_slice(b"; ");
            text.extend_from_slice(name);
            if let Some(value) = value {
                text.push(b'=');
                text.extend_from_slice(value);
            }
        }
        Some(text)
    }
}

fn is(name: &[u8], known: &str) -> bool {
    name.eq_ignore_ascii_case(known.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_changed_and_the_rest_stays() {
        let mut cookie =
            SetCookie::parse(b"sid=a b\"; path=/x;HttpOnly ; Expires=Thu, 01 Jan 2026").unwrap();
        assert_eq!(
            (cookie.name, cookie.get("Path")),
            (&b"sid"[..], Some(&b"/x"[..]))
        );
        assert_eq!(
            (cookie.get("httponly"), cookie.get("domain")),
            (Some(&b""[..]), None)
        );
        assert_eq!(cookie.changed(), None);
        cookie.remove("Domain");
        assert_eq!(cookie.changed(), None);
        cookie.set("Path", Some(b"/"));
        cookie.set("Secure", None);
        cookie.remove("HTTPONLY");
        assert_eq!(
            cookie.changed().unwrap(),
            b"sid=a b\"; Expires=Thu, 01 Jan 2026; Path=/; Secure"
        );
        assert_eq!(SetCookie::parse(b"none"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_taken_apart_and_keeps_its_pair(text in "[a=; é\\x00]{0,16}") {
            if let Some(mut cookie) = SetCookie::parse(text.as_bytes()) {
                cookie.set("Secure", None);
                let changed = cookie.changed().unwrap();
                let again = SetCookie::parse(&changed).unwrap();
                prop_assert_eq!(again.name, cookie.name);
                prop_assert_eq!(again.get("secure"), Some(&b""[..]));
            }
        }
    }
}
