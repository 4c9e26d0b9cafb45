//! What requests and responses of HTTP/1 have in common, for the clients and the origins.

use std::fmt;

/// First line and headers of a message.
#[derive(Clone, Debug, Default)]
pub struct Head {
    pub first_line: String,
    pub headers: Headers,
}

/// Headers in the order and spelling in which they came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Headers(pub Vec<(String, String)>);

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Framing {
    Length(u64),
    Chunked,
    /// A response without either ends with its connection; a request without either has no body.
    Neither,
}

impl Head {
    /// Reads a head at the start of `bytes`, with its length; `None` while it is not complete.
    pub fn parse(bytes: &[u8]) -> Option<(Head, usize)> {
        const END: &[u8] = b"\r\n\r\n";
        let end = bytes.windows(END.len()).position(|window| window == END)?;
        let text = String::from_utf8_lossy(&bytes[..end]);
        let mut lines = text.split("\r\n");
        let first_line = lines.next().unwrap_or_default().to_owned();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            (name.to_owned(), value.trim().to_owned())
        });
        let head = Head {
            first_line,
            headers: Headers(headers.collect()),
        };
        Some((head, end + END.len()))
    }

    /// The word at `index` of the first line.
    pub fn word(&self, index: usize) -> &str {
        self.first_line.split(' ').nth(index).unwrap_or_default()
    }

    pub fn framing(&self) -> Framing {
        let chunked = self.headers.get("transfer-encoding");
        if chunked.is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            return Framing::Chunked;
        }
        let length = self.headers.get("content-length");
        match length.and_then(|value| value.parse().ok()) {
            Some(length) => Framing::Length(length),
            None => Framing::Neither,
        }
    }
}

impl Headers {
    /// The value of the first header of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let same = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        let (_, value) = self.0.iter().find(same)?;
        Some(value)
    }

    /// The values of all headers of this name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let same = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        let found = self.0.iter().filter(same);
        found.map(|(_, value)| value.as_str()).collect()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}

impl fmt::Display for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.0 {
            write!(f, "{name}: {value}\r\n")?;
        }
        Ok(())
    }
}
